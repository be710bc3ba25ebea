"""`casstore remote`: names for stores elsewhere."""

from collections.abc import Callable
from typing import Annotated

import typer

from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.machine.remotes import Remotes
from casstore.machine.user_folders import expand_home

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The remote's name.", show_default=False)]


def add(
    *,
    name: NameArgument,
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A path or URL, without user name or secrets.", show_default=False
        ),
    ],
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Give a store elsewhere a name. Nothing is connected to, and no credentials are kept."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        place = Remotes(out.store_id()).add(name, expand_home(url))
        if out.as_json:
            out.print_json({"name": name, "url": place})
        else:
            out.summary(f"{name} means {place}.")


def show(
    *,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """List the remotes of this store."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        remotes = Remotes(out.store_id()).list()
        if out.as_json:
            out.print_json([{"name": name, "url": url} for name, url in remotes.items()])
        elif out.quiet:
            for name in remotes:
                out.print_line(name)
        else:
            out.table(("remote", "url"), remotes.items())


def remove(
    *,
    name: NameArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Forget a remote's name. The store there is not touched."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        place = Remotes(out.store_id()).remove(name)
        if out.as_json:
            out.print_json({"name": name, "url": place, "removed": True})
        else:
            out.summary(f"{name} meant {place}.")


app = typer.Typer(
    name="remote", rich_markup_mode=None, no_args_is_help=True, help="Names for stores elsewhere."
)
COMMANDS: dict[str, Callable[..., None]] = {"add": add, "list": show, "remove": remove}
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)
