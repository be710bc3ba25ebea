"""`casstore pull`: copy refs from another store."""

from typing import Any

import click

from casstore.cli.support.command import Command
from casstore.cli.support.session import Session
from casstore.cli.support.transfer import REMOTE, transfer, transfer_options


@click.command(cls=Command)
@REMOTE
@transfer_options
def run(out: Session, *, remote: str, **options: Any) -> None:
    """Fetch refs from another store: only what is missing here.

    All refs, or those named.
    """
    with (
        out.open(read_only=True) if options["dry_run"] else out.open_to_fill() as store,
        out.open_remote(remote, store, read_only=True) as other,
    ):
        transfer(out, other, store, label="Pulling", **options)
