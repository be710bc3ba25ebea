"""The bound of a cache's store, as its pipelines see it: they count what they add, and start a collector when it is due."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from casstore.cache.quota.collector import PRIORITY, alone, slack
from casstore.cache.quota.ledger import Ledger
from casstore.concurrency.forks import ForkAware, watch_forks
from casstore.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_START = f"""
import json, os, sys
os.setsid()
os.nice({PRIORITY})
sys.path[:] = json.loads(sys.argv.pop(1))
from casstore.cache.quota.collector import main
sys.exit(main())
"""
"""Ctrl-C in the pipeline's terminal is not meant for it; with the paths of this process, it is the same casstore."""

_ERRORS = "store-collector.log"
_WAIT = 3.0
"""Seconds for which the end of a run waits for a collection; a longer one goes on without it."""

_POLL = 0.01


class Quota(ForkAware):
    """Keeps one store below `max_bytes`, None for no bound. Safe in threads; never raises, and never waits in a pass."""

    def __init__(
        self, store: Path, folder: Path, *, max_bytes: int | None, note: Callable[[str, BaseException], None]
    ) -> None:
        """`folder` holds what the pipelines of this store share; `note(doing, error)` is called for failures."""
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes
        self._note = note
        self._ledger = Ledger(folder)
        self._not_below = 0
        self.after_fork_in_child()
        watch_forks(self)

    def after_fork_in_child(self) -> None:
        """Start afresh: the collector is a child of the parent, and the lock may be held by a thread of it."""
        self._lock = threading.Lock()
        self._child: int | None = None

    def added(self, size: int) -> None:
        """Count bytes that were written to the store, whether or not this cache has a bound: another one may."""
        self._ledger.add(size)
        self.check()

    def check(self, *, ended: bool = False) -> None:
        """Start a collector if the store seems too large; log how the last one ended.

        Where a run has `ended`, what it used may go.
        """
        if self._max_bytes is None or not self._lock.acquire(blocking=False):
            return  # Another thread is doing it.
        try:
            if not self._is_running() and self._is_due(self._max_bytes, ended=ended):
                self._start(self._max_bytes)
        finally:
            self._lock.release()

    def finish(self) -> None:
        """Do what is due, and wait for it, but not for long: the collector goes on when this process has ended."""
        until = time.monotonic() + _WAIT
        earlier = self._child
        self.check(ended=True)
        is_new = self._child not in (None, earlier)
        self._wait(until)
        if not is_new:
            # One that was at work already may have met what this run still used.
            self.check(ended=True)
            self._wait(until)

    def _wait(self, until: float) -> None:
        while self._max_bytes is not None and time.monotonic() < until:
            with self._lock:
                if not self._is_running():
                    return
            time.sleep(_POLL)

    def _is_due(self, max_bytes: int, *, ended: bool) -> bool:
        measured = self._ledger.read()
        if measured is None or measured.max_bytes != max_bytes:
            is_due = self._not_below == 0
        else:
            size = measured.size + self._ledger.written()
            above = max_bytes if ended and measured.in_use else max(measured.start_above, self._not_below)
            is_due = size > above
        if not is_due:
            return False
        try:
            with alone(self._folder) as is_free:
                return is_free  # Another pipeline's collector may be at work.
        except OSError:
            return True  # Invariant 13: the collector itself says what is wrong.

    def _start(self, max_bytes: int) -> None:
        measured = self._ledger.read()
        known = measured.size + self._ledger.written() if measured is not None else max_bytes
        # Until more was added, a collector that fails without a word is not started again.
        self._not_below = known + slack(max_bytes)
        if not sys.executable or getattr(sys, "frozen", False):
            # Invariant 11, as below: such a program would start itself instead of Python.
            self._note(
                f"keep {self._store} below {max_bytes} bytes",
                BackendError("this program contains Python, and cannot start it for a collector"),
            )
            return
        paths = [os.path.abspath(path) for path in sys.path]
        arguments = [str(self._store), str(self._folder), str(max_bytes)]
        errors = str(self._folder / _ERRORS)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-c", _START, json.dumps(paths), *arguments],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, errors, flags, 0o666),
                ],
            )
        except OSError as error:
            # Invariant 11: the store grows, and the pipeline goes on.
            self._note(f"keep {self._store} below {max_bytes} bytes", error)

    def _is_running(self) -> bool:
        """Say whether the collector that this process started runs; log how it failed."""
        if self._child is None:
            return False
        try:
            found, status = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:
            found, status = self._child, 0  # Somebody else has waited for it.
        if not found:
            return True
        self._child = None
        if status:
            said = ""
            with contextlib.suppress(OSError):
                said = (self._folder / _ERRORS).read_text(errors="replace").strip().rpartition("\n")[2]
            text = said or f"its collector ended with {os.waitstatus_to_exitcode(status)}"
            self._note(f"keep {self._store} below {self._max_bytes} bytes", BackendError(text))
            return False
        self._not_below = 0
        measured = self._ledger.read()
        if measured is not None and measured.error:
            self._note(f"keep {self._store} below {self._max_bytes} bytes", BackendError(measured.error))
        return False
