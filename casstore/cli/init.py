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
    help="Who else may read and write it: the group of the folder. Private without this.",
)
def run(out: Session, *, place: str | None, shared: Literal["group"] | None) -> None:
    """Make a store; one that is already there is left as it is."""
    if place is not None and out.store_option:
        raise click.UsageError("Give either PATH_OR_URL or --store, not both.")
    opened, created = out.open_or_create(place or out.place, shared=shared)
    with opened:
        url, store_id = opened.backend.url, opened.store_id
    out.report(
        {"url": url, "store_id": store_id, "created": created},
        f"Made a store at {url}." if created else f"There is a store at {url} already.",
    )
