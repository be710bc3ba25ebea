"""The options that commands share. typer reads these at run time."""

from typing import Annotated

import typer

__all__ = ["DebugOption", "JsonOption", "ModelArgument", "QuietOption", "StoreOption"]

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH_OR_URL",
        help="The store to use; without it CASSTORE_STORE, else one in your data directory.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON value: ids as hex, sizes in bytes.", show_default=False)
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, notes or summaries.", show_default=False)
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", show_default=False)
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="REF_OR_ID",
        help="A ref, a model id, or the first 4 or more digits of one.",
        show_default=False,
    ),
]
