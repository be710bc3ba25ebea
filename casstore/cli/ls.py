"""`casstore ls`: list refs. Reads records only, so it is fast however large the models are."""

from typing import Annotated

import typer

from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import local_time, short_id, utc_time
from casstore.machine.local_names import tree_name


def run(
    *,
    prefix: Annotated[
        str,
        typer.Argument(
            parser=tree_name, metavar="[PREFIX]", help="Only refs whose names start so.", show_default=False
        ),
    ] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """List refs: name, model id, base, time."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        with out.open(read_only=True) as opened:
            rows = sorted(out.answer_for(opened).find(prefix), key=lambda row: row.name)
        if out.as_json:
            out.print_json(
                [
                    {
                        "ref": row.name,
                        "model_id": row.target.hex(),
                        "base": row.base.hex() if row.base else None,
                        "time": utc_time(row.time),
                        "time_ns": row.time,
                        "writer": row.writer,
                    }
                    for row in rows
                ]
            )
        elif out.quiet:
            for row in rows:
                out.print_line(row.name)
        else:
            out.table(
                ("ref", "model", "base", "time"),
                (
                    (
                        row.name,
                        short_id(row.target.hex()),
                        short_id(row.base.hex()) if row.base else "-",
                        local_time(row.time),
                    )
                    for row in rows
                ),
            )
