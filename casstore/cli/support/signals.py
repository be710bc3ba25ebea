"""Signals that end a command become an exception, so that unfinished work is cleaned up."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casstore.errors import add_note, notes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command in an orderly way."""

_SAME = 2.0
"""Seconds in which further signals count as the first one: a terminal that closes sends several."""


class Ended(KeyboardInterrupt):
    """A signal ends this process. Like KeyboardInterrupt, this is not an Exception, so no handler of failures catches it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Raise Ended in the block at the first SIGINT, SIGTERM or SIGHUP that is not ignored.

    While the block cleans up, further signals are ignored for a moment; then one ends the process where it stands.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may handle signals; leave that to it.
        return
    first: float | None = None
    ended: Ended | None = None

    def end(number: int, _: FrameType | None) -> None:
        nonlocal first, ended
        now = time.monotonic()
        if first is None:
            first, ended = now, Ended(number)
            raise ended
        if now - first > _SAME:
            # Invariant 3: without its record nothing is committed, so stopping anywhere is safe.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    # As under nohup, signals that the parent ignored stay ignored.
    taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    except Exception as error:
        if ended is None:
            raise
        # Some code cannot be interrupted where the signal met it, the end of a lock's block for one. Invariant 11: the
        # command ends all the same, as one that a signal ends.
        for note in notes(error):
            add_note(ended, note)
        raise ended from error
    finally:
        if (
            first is None
        ):  # Otherwise the process is about to exit, and a late signal must not interrupt that.
            for number, handler in taken.items():
                signal.signal(number, handler)
