"""`casstore sync`: copy refs between any two stores."""

from typing import Any

import click

from casstore.cli.support.command import Command
from casstore.cli.support.session import Session
from casstore.cli.support.transfer import transfer, transfer_options


@click.command(cls=Command)
@click.argument("src", metavar="SRC", help="The store to read: a path or URL.")
@click.argument("dst", metavar="DST", help="The store to write: a path or URL.")
@transfer_options
def run(out: Session, *, src: str, dst: str, **options: Any) -> None:
    """Copy refs between any two stores.

    All refs, or those named. SRC and DST may also be remotes of the store that --store names.
    """
    one, other = out.places((src, dst))
    with (
        out.open_at(one, read_only=True) as source,
        out.open_at(other, read_only=options["dry_run"]) as destination,
    ):
        transfer(out, source, destination, label="Copying", **options)
