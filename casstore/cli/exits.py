"""Exit codes (README.md lists them), and one line on stderr for each error."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from casstore.cli.text import printable
from casstore.errors import CasstoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BROKEN_PIPE", "ERROR", "INTERRUPTED", "discard_output", "exit_codes", "say"]

ERROR = 1
INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""

_STDOUT = 1


def say(message: str) -> None:
    """Print one line to stderr, safe for a terminal."""
    line = " ".join(part.strip() for part in message.splitlines())
    print(f"casstore: {printable(line)}", file=sys.stderr, flush=True)  # noqa: T201


def discard_output() -> None:
    """Point stdout at nothing, so that what is still buffered cannot fail again when Python exits."""
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, _STDOUT)
        os.close(null)


@contextmanager
def exit_codes(*, debug: bool) -> Iterator[None]:
    """Turn whatever happens inside into one line and an exit code; `debug` adds the traceback."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        # The reader of the output has stopped reading, as `head` does.
        discard_output()
        raise typer.Exit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        # Invariant 3: without its record nothing is committed, so stopping anywhere is safe.
        say("interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - the process ends here, and people need a line to read
        # Invariant 11: an error ends the command, none passes for a success.
        if debug:
            traceback.print_exc()
        say(_sentence(error, debug=debug))
        raise typer.Exit(ERROR) from None


def _sentence(error: Exception, *, debug: bool) -> str:
    if isinstance(error, CasstoreError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}."
    advice = "" if debug else " Run again with --debug to see where."
    return f"unexpected {type(error).__name__}: {error}.{advice}"
