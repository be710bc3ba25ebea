"""`casstore unpin`: let policies delete models again."""

import click

from casstore.cli.support.command import Command
from casstore.cli.support.session import Session
from casstore.machine.local_names import tree_name


@click.command(cls=Command)
@click.argument(
    "refs_or_ids",
    nargs=-1,
    required=True,
    type=tree_name,
    metavar="REF_OR_ID...",
    help="What was pinned, the pin itself, or the model's id.",
)
def run(out: Session, *, refs_or_ids: tuple[str, ...]) -> None:
    """Delete pins, so that `gc` may delete the models by policy again."""
    with out.open() as store:
        gone = [name for item in refs_or_ids for name in store.unpin(item)]
    out.report({"unpinned": gone}, *(f"Deleted {name}." for name in gone))
