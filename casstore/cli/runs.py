"""`casstore runs`: list the runs of passes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import human_duration, local_time, short_id, utc_time
from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from casstore import Store
    from casstore.cache.run_cache import RunSummary


def run(
    *,
    pass_name: Annotated[
        str | None, typer.Option("--pass", parser=tree_name, metavar="NAME", help="Only runs of this pass.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="Only running, done, failed or pruned ones.")
    ] = None,
    input_model: Annotated[
        str | None,
        typer.Option(
            "--input",
            parser=tree_name,
            metavar="MODEL",
            help="Only runs on this model: a ref, an id, or the pipeline's name for it.",
        ),
    ] = None,
    output_model: Annotated[
        str | None,
        typer.Option("--output", parser=tree_name, metavar="MODEL", help="Only runs that made this model."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Only the newest N.", show_default=False)
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """List runs, newest first. `casstore show runs/NAME` shows one."""
    from casstore.format.run import RunStatus  # noqa: PLC0415 - see cli/__init__.py

    known = [item.value for item in RunStatus]
    if status is not None and status not in known:
        raise typer.BadParameter(f"{status!r} is none of {', '.join(known)}.", param_hint="--status")
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        from casstore.cache.run_cache import RunCacheManager  # noqa: PLC0415 - as above

        with out.open(read_only=True) as opened:
            source, name = _model(opened, input_model)
            made, unknown = _model(opened, output_model)
            rows = (
                RunCacheManager(out.answer_for(opened)).list_runs(
                    pass_name=pass_name,
                    status=RunStatus(status) if status else None,
                    input_model=source,
                    output_model=made,
                    limit=limit if name is None else None,
                )
                if unknown is None
                else []
            )
            if name is not None:
                rows = [row for row in rows if row.input_name == name][:limit]
        if out.as_json:
            out.print_json([_as_json(row) for row in rows])
        elif out.quiet:
            for row in rows:
                out.print_line(f"runs/{row.name}")
        else:
            out.table(
                ("started", "run", "pass", "status", "input", "output", ">took"),
                (
                    (
                        local_time(row.started),
                        f"runs/{row.name}",
                        row.pass_name,
                        row.status,
                        short_id(row.input) or row.input_name or "-",
                        short_id(row.output) or "-",
                        human_duration(row.duration / 1e9),
                    )
                    for row in rows
                ),
            )


def _model(opened: "Store", given: str | None) -> tuple[str | None, str | None]:
    """Return the id of the model that is meant, or else the name that only a pipeline may know."""
    import casstore  # noqa: PLC0415 - see cli/__init__.py
    from casstore.digest import is_hex  # noqa: PLC0415 - as above

    if given is None:
        return None, None
    try:
        return opened.resolve(given).model_id, None
    except casstore.RefNotFound:
        # Runs tell of models that are no longer kept, or never were (§8: their links are weak).
        return (given, None) if is_hex(given) else (None, given)


def _as_json(row: "RunSummary") -> dict[str, Any]:
    return {
        "run": f"runs/{row.name}",
        "pass": row.pass_name,
        "status": row.status,
        "input": row.input or None,
        "input_name": row.input_name or None,
        "output": row.output or None,
        "started": utc_time(row.started),
        "started_ns": row.started,
        "duration_seconds": row.duration / 1e9,
        "alias": row.alias or None,
    }
