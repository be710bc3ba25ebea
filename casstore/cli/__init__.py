"""The command line: one file per command; prints, and maps errors to exit codes, nothing else.

The command NAME is `run` in NAME.py, which is imported when the command runs or its own help is asked for. `--help`
imports none: it prints the table below.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from gc import freeze  # Not the module, whose name is that of a command here.
from typing import Any

import click

from casstore._build import kernels_name
from casstore._version import __version__
from casstore.cli.support.command import SHARED_OPTIONS
from casstore.cli.support.exits import ERROR, SIGNALLED, discard_output, say
from casstore.cli.support.signals import SIGNALS

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "init": "Make a store; one that is already there is left as it is.",
    "add": "Add a model; only what the store lacks is written.",
    "get": "Write the files of a model, every byte verified.",
    "ls": "List refs: name, model id, base, time.",
    "show": "Show a model, a run or an evaluation.",
    "diff": "Compare two models tensor by tensor.",
    "log": "List models with the runs that made them, newest first.",
    "runs": "List runs, newest first.",
    "explain": "Compare a run with the nearest earlier run of its pass.",
    "adopt": "Import an existing Olive cache (read-only).",
    "cat": "Write one file of a model to the standard output.",
    "tag": "Point a tag at a model; an existing tag is moved.",
    "pin": "Keep models, whatever `gc` is told to delete.",
    "unpin": "Delete pins, so that `gc` may delete the models by policy again.",
    "rm": "Delete a ref.",
    "undelete": "Give deleted refs their last values again.",
    "gc": "Free what no ref reaches any more.",
    "push": "Send refs to another store: only what it lacks.",
    "pull": "Fetch refs from another store: only what is missing here.",
    "sync": "Copy refs between any two stores.",
    "serve": "Serve the models to huggingface_hub, over HTTP.",
    "stats": "Measure what a store holds and what it takes.",
    "du": "Say where the bytes are, and what removing refs would free.",
    "check": "Verify a store; changes nothing.",
    "repair": "Take good copies of what is damaged or missing.",
    "quarantine": "Stop relying on the damaged packs of a model.",
    "demo": "Add a model and variants of it, and show what is saved.",
    "remote": "Manage names for other stores.",
}


class _Lazy(click.Command):
    """Stands for the command of a module until its arguments are to be parsed."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        command: click.Command = importlib.import_module(f"casstore.cli.{self.name}").run
        return command.make_context(info_name, args, parent, **extra)


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
    if wanted:
        click.echo(f"casstore {__version__} ({kernels_name} kernels)")
        context.exit()


class _Commands(click.Group):
    """Lists the commands in the order of the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


app = _Commands(
    help="Keep ML models in a content-addressed store: deduplicated, compressed, verified.",
    commands=[_Lazy(name, short_help=line) for name, line in COMMANDS.items()],
    params=[
        *SHARED_OPTIONS,
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version.",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
        # Only help and the version, which no command prints, get here: there was no room for them.
        discard_output()
        say(f"{error.strerror or error}.")
        sys.exit(ERROR)
    finally:
        try:
            with contextlib.suppress(AttributeError):  # a process may start without an output
                sys.stdout.flush()
        except OSError:
            discard_output()  # Output that could not be written has been reported already, if it matters.
        # Python looks for cycles as it exits, several times: that took a tenth of a short command, and what it frees the system frees.
        freeze()
