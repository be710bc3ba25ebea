"""`casstore runs`: list the runs of passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from casstore.cache.run_cache import RunCacheManager
from casstore.cli.support.command import LIMIT, Command
from casstore.cli.support.text import human_duration, local_time, short_id, utc_time
from casstore.digest import is_hex
from casstore.errors import RefNotFound
from casstore.format.run import RunStatus
from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from casstore import Store
    from casstore.cache.run_cache import RunSummary
    from casstore.cli.support.session import Session


@click.command(cls=Command)
@click.option("pass_name", "--pass", type=tree_name, metavar="NAME", help="Only runs of this pass.")
@click.option(
    "--status", type=click.Choice([item.value for item in RunStatus]), help="Only runs of this status."
)
@click.option(
    "input_model",
    "--input",
    type=tree_name,
    metavar="MODEL",
    help="Only runs on this model: a ref, an id, or the pipeline's name for it.",
)
@click.option(
    "output_model", "--output", type=tree_name, metavar="MODEL", help="Only runs that made this model."
)
@LIMIT
def run(
    out: Session,
    *,
    pass_name: str | None,
    status: str | None,
    input_model: str | None,
    output_model: str | None,
    limit: int | None,
) -> None:
    """List runs, newest first.

    `casstore show runs/NAME` shows one.
    """
    with out.open(read_only=True) as store:
        source, unknown_source = _model(store, input_model)
        made, unknown_made = _model(store, output_model)
        rows: list[RunSummary] = []
        if unknown_made is None:
            rows = RunCacheManager(out.answer_for(store)).list_runs(
                pass_name=pass_name,
                status=RunStatus(status) if status else None,
                input_model=source,
                output_model=made,
                limit=limit if unknown_source is None else None,
            )
        if unknown_source is not None:
            rows = [row for row in rows if row.input_name == unknown_source][:limit]
    out.listing(
        map(_as_json, rows),
        names=(f"runs/{row.name}" for row in rows),
        columns=("started", "run", "pass", "status", "input", "output", ">took"),
        rows=(
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


def _model(store: Store, given: str | None) -> tuple[str | None, str | None]:
    """Return the id of the model that is meant, or else the name that only a pipeline may know."""
    if given is None:
        return None, None
    try:
        return store.resolve(given).model_id, None
    except RefNotFound:
        # Runs tell of models that are no longer kept, or never were (§8: their links are weak).
        return (given, None) if is_hex(given) else (None, given)


def _as_json(row: RunSummary) -> dict[str, Any]:
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
