"""`casstore ls`: list refs. Reads records only, so it is fast however large the models are."""

import click

from casstore.cli.support.command import Command
from casstore.cli.support.session import Session
from casstore.cli.support.text import local_time, short_id, utc_time
from casstore.machine.local_names import tree_name


@click.command(cls=Command)
@click.argument("prefix", default="", type=tree_name, metavar="[PREFIX]", help="Only refs with this prefix.")
def run(out: Session, *, prefix: str) -> None:
    """List refs: name, model id, base, time."""
    with out.open(read_only=True) as store:
        rows = sorted(out.answer_for(store).find(prefix), key=lambda row: row.name)
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
