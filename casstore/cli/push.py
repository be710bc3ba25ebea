"""`casstore push`: copy refs to another store."""

from typing import Any

import click

from casstore.cli.support.command import Command
from casstore.cli.support.session import Session
from casstore.cli.support.transfer import REMOTE, transfer, transfer_options


@click.command(cls=Command)
@REMOTE
@transfer_options
@click.option("--init", is_flag=True, help="Make a store there if there is none.")
def run(out: Session, *, remote: str, init: bool, **options: Any) -> None:
    """Send refs to another store: only what it lacks.

    All refs, or those named.
    """
    dry_run = options["dry_run"]
    if init and dry_run:
        raise click.UsageError("--init makes a store, and --dry-run changes nothing: leave out one of them.")
    with (
        out.open(read_only=dry_run) as store,
        out.open_remote(remote, store, read_only=dry_run, create=init) as other,
    ):
        transfer(out, store, other, label="Pushing", **options)
