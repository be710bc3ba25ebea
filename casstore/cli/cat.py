"""`casstore cat`: the bytes of one file."""

import shutil
import sys
from typing import Annotated

import typer

from casstore.cli.support.options import DebugOption, ModelArgument, StoreOption
from casstore.cli.support.session import session
from casstore.errors import ConfigError
from casstore.machine.local_names import tree_name

_PIECE = 4 << 20


def run(
    *,
    ref_or_id: ModelArgument,
    path: Annotated[
        str,
        typer.Argument(
            parser=tree_name,
            metavar="PATH",
            help="A file of the model, as `casstore show` prints it.",
            show_default=False,
        ),
    ],
    store: StoreOption = None,
    debug: DebugOption = False,
) -> None:
    """Write one file of a model to the standard output, as it is."""
    with (
        session(store=store, as_json=False, quiet=False, debug=debug) as out,
        out.open(read_only=True) as opened,
        opened.open_file(ref_or_id, path) as file,
    ):
        if sys.stdout is None:
            raise ConfigError("There is nowhere to write to: the standard output is closed.")
        shutil.copyfileobj(file, sys.stdout.buffer, _PIECE)
