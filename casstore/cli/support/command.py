"""What the commands' declarations share: the class of a command, its common options, and arguments of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

F = TypeVar("F", bound="Callable[..., Any]")

SHARED_OPTIONS = (
    click.Option(
        ["--store"],
        metavar="PATH_OR_URL",
        help="The store to use (~ is your home); without it CASSTORE_STORE, else one in your data directory.",
    ),
    click.Option(
        ["as_json", "--json"], is_flag=True, help="Print one JSON value: ids as hex, sizes in bytes."
    ),
    click.Option(["--quiet", "-q"], is_flag=True, help="No progress, notes or summaries."),
    click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
)
"""Accepted before and behind the command; what stands behind it wins."""

# Names of refs and files are UTF-8, as in a model; Python decodes a command line by the locale, hence type=tree_name.
MODEL = click.argument(
    "ref_or_id",
    type=tree_name,
    metavar="REF_OR_ID",
    help="A ref, a model id, or the first 4 or more digits of one.",
)
DRY_RUN = click.option("--dry-run", "-n", is_flag=True, help="Say what would be done; change nothing.")
LIMIT = click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Only the newest N.")


def several(name: str, *, metavar: str, what: str) -> Callable[[F], F]:
    """Declare the argument of a command that takes one or more refs or ids; `what` is its help."""
    return click.argument(name, nargs=-1, required=True, type=tree_name, metavar=f"{metavar}...", help=what)


class Command(click.Command):
    """A command with the shared options: its function gets a Session for them; errors in it become exit codes."""

    def __init__(
        self, *, params: Sequence[click.Parameter] = (), without: Sequence[str] = (), **options: Any
    ) -> None:
        """`without` names shared options that would mean nothing; one that `params` declares is not added either."""
        own = {*without, *(param.name for param in params)}
        shared = [option for option in SHARED_OPTIONS if option.name not in own]
        super().__init__(params=[*params, *shared], **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command's function."""
        # The imports of a session take most of the time of `casstore --help`, which needs none.
        from casstore.cli.support.session import session  # noqa: PLC0415

        before = ctx.find_root().params
        given: dict[str, Any] = {
            option.name: ctx.params.pop(option.name, None) or before.get(option.name)
            for option in SHARED_OPTIONS
        }
        assert self.callback is not None
        with session(**given) as out:
            return ctx.invoke(self.callback, out, **ctx.params)
