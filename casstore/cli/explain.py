"""`casstore explain`: why a run was a miss."""

from typing import Annotated

import typer

from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.machine.local_names import tree_name


def run(
    *,
    name: Annotated[
        str,
        typer.Argument(
            parser=tree_name,
            metavar="RUN",
            help="A run, as `casstore runs` prints it, or the short id that a pipeline gave it.",
            show_default=False,
        ),
    ],
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Name what differs between a run and the nearest earlier run of the same pass."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        from casstore.cache.explain import explain_run  # noqa: PLC0415 - see cli/__init__.py
        from casstore.cache.run_cache import RunCacheManager  # noqa: PLC0415 - as above
        from casstore.cli.support.lineage import plain  # noqa: PLC0415 - as above

        with out.open(read_only=True) as opened:
            found = explain_run(RunCacheManager(opened), name.removeprefix("runs/"))
        if out.as_json:
            out.print_json(
                {
                    "run": f"runs/{found.run}",
                    "pass": found.pass_name,
                    "nearest": f"runs/{found.nearest}" if found.nearest else None,
                    "differences": [
                        {"field": item.field, "earlier": plain(item.earlier), "now": plain(item.now)}
                        for item in found.differences
                    ],
                }
            )
            return
        if not found.differences:
            out.summary(str(found))
            return
        out.summary(f"Against runs/{found.nearest}, the nearest earlier run of {found.pass_name}:")
        out.table(
            ("field", "earlier", "now"),
            ((item.field, _text(item.earlier), _text(item.now)) for item in found.differences),
        )


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
