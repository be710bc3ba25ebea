"""`casstore unpin`: let policies delete models again."""

from functools import partial

import click

from casstore.cli.support.command import DRY_RUN, Command, several
from casstore.cli.support.session import Session
from casstore.store.pins import find_pins


@click.command(cls=Command)
@several("refs_or_ids", metavar="REF_OR_ID", what="What was pinned, the pin itself, or the model's id.")
@DRY_RUN
def run(out: Session, *, refs_or_ids: tuple[str, ...], dry_run: bool) -> None:
    """Delete pins, so that `gc` may delete the models by policy again."""
    with out.open(read_only=dry_run) as store:
        find = partial(find_pins, store) if dry_run else store.unpin
        gone = [name for item in refs_or_ids for name in find(item)]
    did = "Would delete" if dry_run else "Deleted"
    out.report({"pins": gone, "deleted": not dry_run}, *(f"{did} {name}." for name in gone))
