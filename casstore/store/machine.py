"""What belongs to this machine and can be made again: the stat cache and copies of records.

A store may sit on a shared folder or be read-only, so none of this lies in it. One SQLite file per store
in the user's cache directory; without it everything works, slower.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import platformdirs

from casstore.digest import DIGEST_SIZE, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_log = logging.getLogger("casstore")

_CHECK_SIZE = 8
_BUSY_SECONDS = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What an unchanged file is known to be: its id, and the layout it was cut by."""

    file_id: bytes
    layout_id: bytes


class MachineState:
    """The SQLite file of one store; safe in threads and after a fork. With no `path`, it forgets at once."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self.lock = threading.RLock()
        self._held: sqlite3.Connection | None = None
        _states.add(self)

    def known_file(self, key: bytes) -> KnownFile | None:
        """Return what the file with this stat key was when it was last read, or None."""
        for (value,) in self._query("SELECT value FROM files WHERE key = ?", (key,)):
            file_id, layout_id = value[:DIGEST_SIZE], value[DIGEST_SIZE : 2 * DIGEST_SIZE]
            if value == _file_value(key, KnownFile(file_id, layout_id)):
                return KnownFile(file_id, layout_id)
        return None

    def remember_files(self, files: Iterable[tuple[bytes, KnownFile]]) -> None:
        """Keep stat keys with what they mean."""
        self._write(
            "INSERT OR REPLACE INTO files VALUES (?, ?)",
            [(key, _file_value(key, known)) for key, known in files],
        )

    def records(self) -> dict[str, bytes]:
        """Return all kept records as they were read from the store; the reader checks them again."""
        return {str(key): bytes(data) for key, data in self._query("SELECT key, data FROM records", ())}

    def record(self, key: str) -> bytes | None:
        """Return one kept record."""
        for (data,) in self._query("SELECT data FROM records WHERE key = ?", (key,)):
            return bytes(data)
        return None

    def remember_records(self, records: Iterable[tuple[str, bytes]]) -> None:
        """Keep verified records; they never change, so a copy stays true (invariant 1)."""
        self._write("INSERT OR REPLACE INTO records VALUES (?, ?)", list(records))

    def forget_records(self, keys: Iterable[str]) -> None:
        """Drop records that the store no longer has."""
        self._write("DELETE FROM records WHERE key = ?", [(key,) for key in keys])

    def _query(self, sql: str, arguments: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._guard(), self.lock:
            connection = self._connection()
            if connection is not None:
                return connection.execute(sql, arguments).fetchall()
        return []

    def _write(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        if not rows:
            return
        with self._guard(), self.lock:
            connection = self._connection()
            if connection is not None:
                with connection:
                    connection.executemany(sql, rows)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            # Everything here can be made again from the store, so a failure costs time, never truth.
            _log.warning("The machine state %s is not used: %s. It is safe to delete.", self._path, error)
            self._path = None
            self.close()

    def _connection(self) -> sqlite3.Connection | None:
        """Return the connection that all threads share, one at a time."""
        if self._path is None or self._held is not None:
            return self._held
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        self._held = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, check_same_thread=False)
        self._held.executescript(_SCHEMA)
        self._held.execute("PRAGMA journal_mode = WAL")
        self._held.execute("PRAGMA synchronous = OFF")
        return self._held

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self.lock:
            held, self._held = self._held, None
            if held is not None:
                # All that is lost with a failed close can be made again from the store.
                with contextlib.suppress(sqlite3.Error):
                    held.close()

    def __del__(self) -> None:
        self.close()


_states: weakref.WeakSet[MachineState] = weakref.WeakSet()
_forking: list[MachineState] = []


def _before_fork() -> None:
    """Close every connection: SQLite forbids to carry one into a child, which could not even close it."""
    _forking[:] = _states
    for state in _forking:
        state.lock.acquire()
        state.close()


def _after_fork() -> None:
    while _forking:
        _forking.pop().lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def state_path(store_id: bytes, url: str) -> str:
    """Return where this machine keeps what it knows of the store with this id at this URL."""
    place = f"{store_id.hex()}-{digest(url.encode()).hex()[:16]}"
    return os.path.join(platformdirs.user_cache_dir("casstore"), "stores", place, "state.sqlite")


def _file_value(key: bytes, known: KnownFile) -> bytes:
    value = known.file_id + known.layout_id
    return value + digest(key + value)[:_CHECK_SIZE]
