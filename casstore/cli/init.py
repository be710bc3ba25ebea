"""`casstore init`: make a store."""

from typing import Literal

import click

from casstore.cli.support.command import Command
from casstore.cli.support.session import Session


@click.command(cls=Command)
@click.argument(
    "place", required=False, metavar="[PATH_OR_URL]", help="Where; the same as --store PATH_OR_URL."
)
@click.option(
    "--shared",
    type=click.Choice(["group"]),
    help="Who else may read and write it: the group of the folder. Yours alone without this.",
)
@click.option(
    "--private",
    is_flag=True,
    help="Mark it, new or not, as used by this machine alone: gc may then go by size and last use.",
)
def run(out: Session, *, place: str | None, shared: Literal["group"] | None, private: bool) -> None:
    """Make a store; one that is already there is left as it is."""
    if place is not None and out.store_option:
        raise click.UsageError("Give either PATH_OR_URL or --store, not both.")
    if private and shared:
        raise click.UsageError("A store is either --private to this machine or --shared, not both.")
    opened, created = out.open_or_create(place or out.place, shared=shared)
    with opened:
        url, store_id = opened.backend.url, opened.store_id
        if private:
            opened.mark_private()
        is_private = opened.is_private
    sentences = [f"Made a store at {url}." if created else f"There is a store at {url} already."]
    if private:
        sentences.append("It is private to this machine.")
    out.report({"url": url, "store_id": store_id, "created": created, "private": is_private}, *sentences)
