"""When this machine last read each pack of a store whole, and whether it was good: what lets `check` go on where it was."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

    from casstore.machine.state import MachineState

_WAITING = 64
_SECONDS = 2.0
"""Packs, and seconds, after which what was read is written down: a kill loses no more."""


class Read(NamedTuple):
    """When a pack was read whole, in nanoseconds since 1970, and whether it was good then."""

    time: int
    good: bool


class PacksRead:
    """The table of one machine state; where there is none, nothing is remembered. Safe in threads.

    The times are hints (invariant 13): they only decide what is read next.
    """

    def __init__(self, machine: MachineState) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._waiting: dict[bytes, Read] = {}
        self._written = time.monotonic()

    @property
    def keeps(self) -> bool:
        """Whether anything is remembered."""
        return self._machine.keeps

    def last(self) -> dict[bytes, Read]:
        """Return by pack the last time that it was read."""
        now = time.time_ns()

        def look_up(state: sqlite3.Connection) -> dict[bytes, Read]:
            rows = state.execute("SELECT pack, time, good FROM packs_read")
            # A clock that was wrong must not keep a pack from being read again.
            return {bytes(pack): Read(at, bool(good)) for pack, at, good in rows if 0 <= at <= now}

        return self._machine.run(look_up, {})

    def note(self, pack: bytes, *, good: bool) -> None:
        """Remember that a pack was read just now; it may take seconds until that is written down."""
        with self._lock:
            self._waiting[pack] = Read(time.time_ns(), good)
            if len(self._waiting) >= _WAITING or time.monotonic() - self._written >= _SECONDS:
                self._write()

    def flush(self) -> None:
        """Write down what waits."""
        with self._lock:
            self._write()

    def prune(self, there: Collection[bytes]) -> None:
        """Forget packs that are gone."""
        gone = [(pack,) for pack in self.last().keys() - set(there)]
        if gone:
            self._machine.run(
                lambda state: state.executemany("DELETE FROM packs_read WHERE pack = ?", gone),
                None,
                writes=True,
            )

    def _write(self) -> None:
        self._written = time.monotonic()
        rows, self._waiting = [(pack, *read) for pack, read in self._waiting.items()], {}
        if rows:
            self._machine.run(
                lambda state: state.executemany("INSERT OR REPLACE INTO packs_read VALUES (?, ?, ?)", rows),
                None,
                writes=True,
            )
