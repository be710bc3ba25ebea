"""What the package does around a fork, in one place, so that a child never waits for its parent's threads.

One lock lets one thread fork at a time, and keeps new objects from appearing between the preparation and the fork.
Python calls `_before` in the thread that forks, then `_after_in_parent` and, in the child's only thread,
`_after_in_child`; that includes subprocess with `preexec_fn`, and multiprocessing.
"""

from __future__ import annotations

import os
import threading
import weakref


class ForkAware:
    """An object that prepares for a fork of its process; `watch_forks` makes it known. Each step must be short."""

    def before_fork(self) -> None:
        """Put shared state in order for the child; locks taken here are held during the fork."""

    def after_fork_in_parent(self) -> None:
        """Undo what `before_fork` did; called only if that returned."""

    def after_fork_in_child(self) -> None:
        """Start afresh without the parent's threads: locks may be held by threads that do not exist here."""


_watched: dict[int, weakref.ref[ForkAware]] = {}


def watch_forks(item: ForkAware) -> None:
    """Have an object prepared for each fork, as long as it lives. Waits for a fork that is under way."""
    key = id(item)

    def forget(reference: weakref.ref[ForkAware]) -> None:
        if _watched.get(key) is reference:
            del _watched[key]

    with _forks.lock:
        _watched[key] = weakref.ref(item, forget)


def _alive() -> list[ForkAware]:
    # A copy is made in one step: objects come and go in other threads.
    return [item for reference in _watched.copy().values() if (item := reference()) is not None]


class _Forks:
    """The forks of the one thread that holds the lock: one, or more if a signal handler forks meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._thread: int | None = None
        self._prepared: list[list[ForkAware]] = []

    def before(self) -> None:
        self.lock.acquire()
        self._thread = threading.get_ident()
        prepared: list[ForkAware] = []
        self._prepared.append(prepared)
        # All are held from here on: none is finalized by a thread that keeps another one locked.
        for item in _alive():
            item.before_fork()
            prepared.append(item)

    def after_in_parent(self) -> None:
        if self._thread != threading.get_ident():
            return  # An exception from a signal handler interrupted the preparation of this fork.
        prepared = self._prepared.pop()
        if not self._prepared:
            self._thread = None
        try:
            while prepared:
                prepared.pop().after_fork_in_parent()
        finally:
            self.lock.release()

    def after_in_child(self) -> None:
        self.lock = threading.RLock()
        self._thread = None
        self._prepared = []
        for item in _alive():
            item.after_fork_in_child()


_forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_forks.before, after_in_parent=_forks.after_in_parent, after_in_child=_forks.after_in_child
    )
