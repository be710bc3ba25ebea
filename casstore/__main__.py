"""The command `casstore`, which is also `python -m casstore`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_COLLECT_AFTER = 20_000
"""New objects after which Python looks for cycles; its own default is 700."""


def main() -> None:
    """Run the command line; always ends by SystemExit, or by a signal's exit code while there is nothing to clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _leave)
    _stand_in_for_closed_streams()
    # Imports make 100,000 objects that stay: looking through them again and again takes a tenth of a short command's time.
    gc.set_threshold(_COLLECT_AFTER)
    # The imports take most of a short command's time, so signal handlers are set first.
    from casstore.cli import main as run  # noqa: PLC0415

    run()


def _stand_in_for_closed_streams() -> None:
    """Keep the numbers 0 to 2 taken: what a library prints would end up in a file that got one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203 - three numbers
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free number, which is this one.
    if sys.stderr is None:
        # print(file=None) would print messages to the standard output, into the bytes of `cat`.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it is open as long as the process


def _leave(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
