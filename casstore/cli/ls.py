"""`casstore ls`: list refs. Reads records only, so it is fast however large the models are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casstore.cli.support.command import LIMIT, Command
from casstore.cli.support.text import local_time, short_id, utc_time
from casstore.digest import is_hex
from casstore.machine.local_names import tree_name
from casstore.store.times import nanoseconds

if TYPE_CHECKING:
    from datetime import datetime

    from casstore import Store
    from casstore.cli.support.session import Session


@click.command(cls=Command)
@click.argument("prefix", default="", type=tree_name, metavar="[PREFIX]", help="Only refs with this prefix.")
@click.option("--model", type=tree_name, metavar="REF_OR_ID", help="Only refs of this model.")
@click.option("--base", type=tree_name, metavar="REF_OR_ID", help="Only models made from this one.")
@click.option("--since", type=click.DateTime(), help="Only what was written at this local time or later.")
@LIMIT
def run(
    out: Session,
    *,
    prefix: str,
    model: str | None,
    base: str | None,
    since: datetime | None,
    limit: int | None,
) -> None:
    """List refs: name, model id, base, time."""
    with out.open(read_only=True) as store:
        rows = out.answer_for(store).find(
            prefix,
            target=_model_id(store, model),
            base=_model_id(store, base),
            since=nanoseconds(since) if since else None,
            limit=limit,
        )
        rows.sort(key=lambda row: row.name)
    out.listing(
        (
            {
                "ref": row.name,
                "model_id": row.target,
                "base": row.base or None,
                "time": utc_time(row.time),
                "time_ns": row.time,
                "writer": row.writer,
            }
            for row in rows
        ),
        names=(row.name for row in rows),
        columns=("ref", "model", "base", "time"),
        rows=(
            (
                row.name,
                short_id(row.target.hex()),
                short_id(row.base.hex()) if row.base else "-",
                local_time(row.time),
            )
            for row in rows
        ),
    )


def _model_id(store: Store, ref_or_id: str | None) -> str | None:
    """Return a model id; a whole one need not be in the store any more."""
    if ref_or_id is None or is_hex(ref_or_id):
        return ref_or_id
    return store.resolve(ref_or_id).model_id
