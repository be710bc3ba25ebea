"""`casstore explain`: why a run was a miss."""

import click

from casstore.cache.run_cache import RunCacheManager
from casstore.cache.runs.explain import explain_run
from casstore.cli.support.command import Command
from casstore.cli.support.lineage import plain
from casstore.cli.support.session import Session
from casstore.machine.local_names import tree_name


@click.command(cls=Command)
@click.argument(
    "run_name",
    type=tree_name,
    metavar="RUN",
    help="A run, as `casstore runs` prints it, or the short id that a pipeline gave it.",
)
def run(out: Session, *, run_name: str) -> None:
    """Compare a run with the nearest earlier run of its pass.

    Names what differs: this is why the earlier result was not used.
    """
    with out.open(read_only=True) as store:
        found = explain_run(RunCacheManager(store), run_name.removeprefix("runs/"))
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
