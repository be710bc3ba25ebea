"""The options that commands share. typer reads these at run time.

Names of refs are UTF-8, as those of files in a model are; Python decodes a command line by the locale.
"""

from typing import Annotated

import typer

from casstore.machine.local_names import tree_name

__all__ = [
    "DebugOption",
    "DryRunOption",
    "JsonOption",
    "LimitOption",
    "ModelArgument",
    "OverwriteOption",
    "QuietOption",
    "RefsArgument",
    "RemoteArgument",
    "StoreOption",
]

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH_OR_URL",
        help="The store to use (~ is your home); without it CASSTORE_STORE, else one in your data directory.",
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
        parser=tree_name,
        metavar="REF_OR_ID",
        help="A ref, a model id, or the first 4 or more digits of one.",
        show_default=False,
    ),
]
RemoteArgument = Annotated[
    str,
    typer.Argument(
        metavar="REMOTE", help="A name that `casstore remote add` made, a path or a URL.", show_default=False
    ),
]
RefsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        parser=tree_name,
        metavar="[REF]...",
        help="Refs, prefixes that end with '/', or model ids.",
        show_default=False,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Say what would be done; change nothing.", show_default=False),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Write refs even where the other side has a value of its own.",
        show_default=False,
    ),
]
LimitOption = Annotated[
    str | None,
    typer.Option("--limit", metavar="RATE", help="Bytes per second at most, such as 5M.", show_default=False),
]
