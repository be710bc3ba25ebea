"""One thread of this process makes an item; others that want the same one wait for it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Flight:
    """An item that is being made, and how many threads make it or wait."""

    __slots__ = ("lock", "threads")

    def __init__(self) -> None:
        # Re-entrant: a thread does not wait for what it is making itself.
        self.lock = threading.RLock()
        self.threads = 0


_lock = threading.Lock()
_flights: dict[tuple[str, str], _Flight] = {}


@contextlib.contextmanager
def single_flight(folder: str, name: str) -> Iterator[None]:
    """Let one thread at a time make the item `name` in `folder`; others wait, and then look for it."""
    key = (folder, name)
    with _lock:
        flight = _flights.setdefault(key, _Flight())
        flight.threads += 1
    try:
        with flight.lock:
            yield
    finally:
        with _lock:
            flight.threads -= 1
            if not flight.threads and _flights.get(key) is flight:
                del _flights[key]


def _after_fork() -> None:
    """Reset in the child, where the threads of its parent do not exist."""
    global _lock  # noqa: PLW0603  # a lock that another thread held stays locked in the child
    _lock = threading.Lock()
    _flights.clear()


os.register_at_fork(after_in_child=_after_fork)
