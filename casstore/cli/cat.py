"""`casstore cat`: the bytes of one file."""

import shutil
import sys

import click

from casstore.cli.support.command import MODEL, Command
from casstore.cli.support.session import Session
from casstore.errors import ConfigError
from casstore.machine.local_names import tree_name

_PIECE = 4 << 20


@click.command(cls=Command, without=("as_json", "quiet"))
@MODEL
@click.argument(
    "path", type=tree_name, metavar="PATH", help="A file of the model, as `casstore show` prints it."
)
def run(out: Session, *, ref_or_id: str, path: str) -> None:
    """Write one file of a model to the standard output."""
    with out.open(read_only=True) as store, store.open_file(ref_or_id, path) as file:
        if sys.stdout is None:
            raise ConfigError("There is nowhere to write to: the standard output is closed.")
        shutil.copyfileobj(file, sys.stdout.buffer, _PIECE)
