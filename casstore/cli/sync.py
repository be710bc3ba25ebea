"""`casstore sync`: copy refs between any two stores."""

from typing import Annotated

import typer

from casstore.cli.support.options import (
    DebugOption,
    DryRunOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    QuietOption,
    RefsArgument,
    StoreOption,
)
from casstore.cli.support.session import session
from casstore.cli.support.transfer import bytes_per_second, transfer


def run(
    *,
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="The store to read: a path or URL.", show_default=False)
    ],
    dst: Annotated[
        str, typer.Argument(metavar="DST", help="The store to write: a path or URL.", show_default=False)
    ],
    refs: RefsArgument = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    limit: LimitOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Copy refs, all or those named, from one store to another. A remote's name works, too, if --store has it."""
    rate = bytes_per_second(limit)
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        places = out.places((src, dst))
        with (
            out.open_at(places[0], read_only=True) as one,
            out.open_at(places[1], read_only=dry_run) as other,
        ):
            transfer(out, one, other, refs, label="Copying", dry_run=dry_run, overwrite=overwrite, limit=rate)
