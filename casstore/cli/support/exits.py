"""Exit codes (README.md lists them), and one line on stderr for each error."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from casstore.cli.support.signals import Ended, ending_by_signals
from casstore.cli.support.text import printable
from casstore.errors import CasstoreError, notes

if TYPE_CHECKING:
    from collections.abc import Iterator

ERROR = 1
BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""

SIGNALLED = 128
"""What a shell adds to the number of the signal that ended a program."""

_STDOUT = 1
_ENDINGS: dict[int, str] = {
    signal.SIGINT: "interrupted.",
    signal.SIGTERM: "terminated.",
    signal.SIGHUP: "hung up.",
}


def say(message: str) -> None:
    """Print one line to stderr, safe for a terminal."""
    line = " ".join(part.strip() for part in message.splitlines())
    # Nothing can be reported to a terminal that is gone or a full disk behind stderr.
    with suppress(OSError):
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
        with ending_by_signals():
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
    except (click.exceptions.Exit, click.ClickException):
        raise  # click ends the process, or says what is wrong with the command line.
    except BrokenPipeError:
        # The reader of the output has stopped reading, as `head` does.
        discard_output()
        raise click.exceptions.Exit(BROKEN_PIPE) from None
    except KeyboardInterrupt as ended:
        # Invariant 3: without its record nothing is committed, so stopping anywhere is safe.
        discard_output()  # Nobody may be reading what is still buffered.
        number = ended.number if isinstance(ended, Ended) else signal.SIGINT
        say(" ".join([_ENDINGS[number], *notes(ended)]))
        raise click.exceptions.Exit(SIGNALLED + number) from None
    except Exception as error:  # noqa: BLE001 - the process ends here, and people need a line to read
        # Invariant 11: an error ends the command, none passes for a success.
        if debug:
            for line in traceback.format_exc().splitlines():
                print(printable(line), file=sys.stderr)  # noqa: T201
        say(" ".join([_sentence(error, debug=debug), *notes(error)]))
        raise click.exceptions.Exit(ERROR) from None


def _sentence(error: Exception, *, debug: bool) -> str:
    if isinstance(error, CasstoreError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}."
    advice = "" if debug else " Run again with --debug to see where."
    return f"unexpected {type(error).__name__}: {error}.{advice}"
