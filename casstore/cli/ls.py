"""`casstore ls`: list refs. Reads records only, so it is fast however large the models are."""

from typing import Annotated

import typer

from casstore.cli.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.session import session
from casstore.cli.text import local_time, short_id, utc_time


def run(
    *,
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only refs whose names start so.", show_default=False)
    ] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """List refs: name, model id, base, time."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        with out.open(readonly=True) as opened:
            refs = opened.refs(prefix)
        if out.as_json:
            out.print_json(
                [
                    {
                        "ref": name,
                        "model_id": record.target.hex() if record.target else None,
                        "base": record.base.hex() if record.base else None,
                        "time": utc_time(record.time),
                        "time_ns": record.time,
                        "writer": record.writer,
                    }
                    for name, record in refs.items()
                ]
            )
        elif out.quiet:
            for name in refs:
                out.print_line(name)
        else:
            out.table(
                ("ref", "model", "base", "time"),
                (
                    (
                        name,
                        short_id(record.target.hex()) if record.target else "-",
                        short_id(record.base.hex()) if record.base else "-",
                        local_time(record.time),
                    )
                    for name, record in refs.items()
                ),
            )
