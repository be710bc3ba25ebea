"""`casstore remote`: names for stores elsewhere."""

import click

from casstore.cli.support.command import Command
from casstore.cli.support.session import Session
from casstore.machine.remotes import Remotes
from casstore.machine.user_folders import expand_home

_NAME = click.argument("remote", metavar="NAME", help="The remote's name.")


@click.group()
def run() -> None:
    """Manage names for other stores."""


@run.command(cls=Command)
@_NAME
@click.argument("url", metavar="URL", help="A path or URL, without user name or secrets.")
def add(out: Session, *, remote: str, url: str) -> None:
    """Name a store elsewhere.

    Nothing is connected to, and no credentials are kept.
    """
    place = Remotes(out.store_id()).add(remote, expand_home(url))
    out.report({"name": remote, "url": place}, f"{remote} means {place}.")


@run.command("list", cls=Command)
def show(out: Session) -> None:
    """List the remotes of this store."""
    remotes = Remotes(out.store_id()).list()
    out.listing(
        ({"name": name, "url": url} for name, url in remotes.items()),
        names=remotes,
        columns=("remote", "url"),
        rows=remotes.items(),
    )


@run.command(cls=Command)
@_NAME
def remove(out: Session, *, remote: str) -> None:
    """Forget a remote's name; the store there is not touched."""
    place = Remotes(out.store_id()).remove(remote)
    out.report({"name": remote, "url": place, "removed": True}, f"{remote} meant {place}.")
