"""The command line: one file per command; prints, and maps errors to exit codes, nothing else.

Three rules keep `casstore --help` fast and the files alike:

- What a command needs is loaded when it runs: names come from `casstore`, which loads them on first use,
  and the few imports inside functions are of modules that only one command, or only a terminal, needs.
- typer reads annotations at run time, so the files that declare commands do not postpone their evaluation.
- Help is plain text: rich's markup in it costs as much as the rest of the start.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from casstore._build import kernels_name
from casstore._version import __version__
from casstore.cli import (
    add,
    adopt,
    cat,
    check,
    demo,
    explain,
    gc,
    get,
    init,
    log,
    ls,
    pull,
    push,
    quarantine,
    remote,
    rm,
    runs,
    show,
    stats,
    sync,
    tag,
)
from casstore.cli.support.exits import ERROR, SIGNALLED, discard_output, say
from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.signals import SIGNALS

__all__ = ["app", "main"]

app = typer.Typer(
    name="casstore",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the signature that typer calls
    if wanted:
        typer.echo(f"casstore {__version__} ({kernels_name} kernels)")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep ML models in a content-addressed store: deduplicated, compressed, verified."""
    given = {"store": store, "as_json": as_json, "quiet": quiet, "debug": debug}
    defaults = {name: value for name, value in given.items() if value}
    # An option before the command is the default of the same option after it.
    context.default_map = {
        **dict.fromkeys(_COMMANDS, defaults),
        "remote": dict.fromkeys(remote.COMMANDS, defaults),
    }


_COMMANDS: dict[str, Callable[..., None]] = {
    "init": init.run,
    "add": add.run,
    "get": get.run,
    "ls": ls.run,
    "show": show.run,
    "log": log.run,
    "runs": runs.run,
    "explain": explain.run,
    "adopt": adopt.run,
    "cat": cat.run,
    "tag": tag.run,
    "rm": rm.run,
    "gc": gc.run,
    "push": push.run,
    "pull": pull.run,
    "sync": sync.run,
    "stats": stats.run,
    "check": check.run,
    "quarantine": quarantine.run,
    "demo": demo.run,
}
for _name, _function in _COMMANDS.items():
    app.command(_name)(_function)
app.add_typer(remote.app)


def main() -> None:
    """Run the command line on the process's arguments; always ends by SystemExit."""
    # numpy would start a thread for each core, which spin while they wait for linear algebra that casstore never does.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks is shown escaped; it must not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="casstore")
    except SystemExit as ending:
        if isinstance(ending.code, int) and ending.code - SIGNALLED in SIGNALS:
            # Everything is cleaned up. Python takes its time to exit, and one more signal then would change the exit code.
            os._exit(ending.code)
        raise
    except OSError as error:
        # No invariant is at stake: help and the version, which no command prints, found no room.
        discard_output()
        say(f"{error.strerror or error}.")
        sys.exit(ERROR)
    finally:
        try:
            with contextlib.suppress(AttributeError):  # a process may start without an output
                sys.stdout.flush()
        except OSError:
            discard_output()  # Output that could not be written has been reported already, if it matters.
