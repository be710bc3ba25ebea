"""State of this machine that can be rebuilt: the stat cache, the tables of the catalogue, which packs were read, sketches.

A store may sit on a shared folder or be read-only, so none of this lies in it. One SQLite file per store
in the user's cache directory; without it (there is none, or it is on a network file system), everything
works, slower.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from casstore.concurrency.forks import ForkAware, watch_forks
from casstore.digest import DIGEST_SIZE, digest
from casstore.machine.unchanged import UnchangedFiles
from casstore.machine.user_folders import cache_folder, keeps_databases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")

_log = logging.getLogger("casstore")

_CHECK_SIZE = 8
_RENEWALS = 4
"""Times that one process rebuilds a damaged file before it goes on without one."""

_VERSION = 5
"""The version of the tables below: a file of another version is rebuilt."""

_SCHEMA = f"""
BEGIN;
CREATE TABLE files (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

-- The catalogue; refs/catalogue.py says what these mean.
CREATE TABLE records (key TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE folders (
    prefix TEXT PRIMARY KEY,
    head BLOB NOT NULL,
    packed BLOB NOT NULL,
    checksum BLOB NOT NULL
);

-- When packs were last read whole; packs_read.py.
CREATE TABLE packs_read (pack BLOB PRIMARY KEY, time INTEGER NOT NULL, good INTEGER NOT NULL) WITHOUT ROWID;

-- Parts of tensors, to find like ones; sketches.py. The index also has the rowid: the newest are found first.
CREATE TABLE sketches (
    layout BLOB NOT NULL,
    span INTEGER NOT NULL,
    elements INTEGER NOT NULL,
    signature INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (layout, span)
);
CREATE INDEX sketches_alike ON sketches (elements, signature);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What an unchanged file is known to be: its id, and the layout it was cut by."""

    file_id: bytes
    layout_id: bytes


class MachineState(ForkAware):
    """The SQLite file of one store; safe in threads and after a fork. Without a `path`, nothing is kept.

    `unchanged_files` makes the object that says, for one call, which files can be recognised by their stat identity.
    For `patience` seconds, a file that another process has locked is waited for.
    """

    def __init__(
        self,
        path: str | None,
        *,
        unchanged_files: Callable[[], UnchangedFiles] = UnchangedFiles,
        patience: float = 10.0,
    ) -> None:
        self._path = path
        self._patience = patience
        self.unchanged_files = unchanged_files
        self.lock = threading.RLock()
        self._held: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._renewals = 0
        watch_forks(self)

    def known_files(self, keys: Sequence[bytes | None]) -> list[KnownFile | None]:
        """Return for each stat key what its file was when it was last read, None if that is not known."""
        sql = "SELECT value FROM files WHERE key = ?"

        def look_up(state: sqlite3.Connection) -> list[KnownFile | None]:
            return [
                None if key is None else _known_file(key, state.execute(sql, (key,)).fetchone())
                for key in keys
            ]

        return self.run(look_up, [None] * len(keys))

    def remember_files(self, files: Iterable[tuple[bytes, KnownFile]]) -> None:
        """Keep stat keys with what they mean."""
        rows = [(key, _file_value(key, known)) for key, known in files]
        if rows:
            self.run(
                lambda state: state.executemany("INSERT OR REPLACE INTO files VALUES (?, ?)", rows),
                None,
                writes=True,
            )

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all; False from the first failure on."""
        return self._path is not None

    def run(self, work: Callable[[sqlite3.Connection], T], otherwise: T, *, writes: bool = False) -> T:
        """Return what `work` does in one transaction, `otherwise` where there is no state or it fails.

        A damaged file is rebuilt, once, and `work` repeated; it must not depend on what was in it, and
        may itself raise sqlite3.DatabaseError for rows that cannot be true.
        """
        with self.lock:
            for last in (False, True):
                try:
                    connection = self._connection()
                    if connection is None:
                        break
                    return _transact(connection, work, writes=writes)
                except (sqlite3.Error, OSError) as error:
                    # Everything here can be rebuilt from the store, so a failure only costs time.
                    if last or not _is_damage(error) or not self._renew(error):
                        _log.warning(
                            "The machine state %s is not used: %s. It is safe to delete.", self._path, error
                        )
                        self._path = None
                        self.close()
        return otherwise

    def _connection(self) -> sqlite3.Connection | None:
        """Return the connection that all threads share, one at a time."""
        if self._path is None:
            return None
        if self._held is not None:
            if _inode(self._path) == self._inode:
                return self._held
            # The file was removed: this connection must not share side files with one to the new file.
            self.close()
        with _opening(self._path):
            if _inode(self._path) is None:
                # Side files of a removed file would be taken for this one's.
                _remove(self._path)
            self._held = sqlite3.connect(
                self._path, timeout=self._patience, isolation_level=None, check_same_thread=False
            )
            _prepare(self._held)
            self._inode = _inode(self._path)
        return self._held

    def _renew(self, error: Exception) -> bool:
        """Remove a damaged file, unless another process has done so already; say whether that worked."""
        assert self._path is not None
        self._renewals += 1
        if self._renewals > _RENEWALS:
            return False
        _log.warning("The machine state %s is rebuilt: %s. It is safe to delete.", self._path, error)
        inode = self._inode
        self.close()
        try:
            with _opening(self._path):
                if inode is None or inode == _inode(self._path):
                    _remove(self._path)
        except OSError:
            return False  # Like any other failure here: the caller goes on without this state.
        return True

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self.lock:
            held, self._held = self._held, None
            self._inode = None
            if held is not None:
                # Whatever a failed close loses can be rebuilt from the store.
                with contextlib.suppress(sqlite3.Error):
                    held.close()

    def before_fork(self) -> None:
        """Close the connection: SQLite forbids carrying one into a child, which could not even close it."""
        self.lock.acquire()
        self.close()

    def after_fork_in_parent(self) -> None:
        """Let others go on."""
        self.lock.release()

    def after_fork_in_child(self) -> None:
        """Release a lock that threads of the parent may have waited for."""
        self.lock = threading.RLock()

    def __del__(self) -> None:
        self.close()


def machine_folder(store_id: bytes, url: str) -> str | None:
    """Return the folder in which this machine keeps its state of the store with this id at this URL, None for none."""
    folder = cache_folder()
    place = f"{store_id.hex()}-{digest(url.encode()).hex()[:16]}"
    return None if folder is None else os.path.join(folder, "stores", place)


def state_path(store_id: bytes, url: str) -> str | None:
    """Return the file of a store's MachineState, None if it is not to be kept."""
    folder = machine_folder(store_id, url)
    return os.path.join(folder, "state.sqlite") if folder is not None and keeps_databases(folder) else None


def _transact(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
    connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
    try:
        answer = work(connection)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return answer


def _prepare(connection: sqlite3.Connection) -> None:
    """Set a connection up; raise sqlite3.DatabaseError for a file of another version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and version != _VERSION:
        raise sqlite3.DatabaseError("it has the tables of another version")
    connection.execute("PRAGMA journal_mode = WAL")
    # Not torn even when the power fails, so that it need not be rebuilt. A crash loses only the latest changes, and no
    # commit waits for the disk.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 4096")
    # Room for the latest pages, in KiB: rows of many folders land all over the indexes.
    connection.execute("PRAGMA cache_size = -16384")
    if not tables:
        connection.executescript(_SCHEMA)


def _is_damage(error: Exception) -> bool:
    # A file that cannot be opened, a full disk or a lock is an OperationalError: the file itself is not damaged.
    return type(error) in (sqlite3.DatabaseError, sqlite3.IntegrityError)


def _inode(path: str) -> int | None:
    """Return which file is there, None for no file or an empty one."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino if status.st_size else None


def _remove(path: str) -> None:
    for name in (path, f"{path}-wal", f"{path}-shm"):
        with contextlib.suppress(FileNotFoundError):
            # As with invariant 5: nothing in it is the only copy of anything.
            os.unlink(name)


@contextlib.contextmanager
def _opening(path: str) -> Iterator[None]:
    """Keep other processes from opening, making or removing the file meanwhile."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Where locks do not work, a file removed at the same moment only costs a rebuild.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _known_file(key: bytes, row: tuple[bytes] | None) -> KnownFile | None:
    if row is None:
        return None
    known = KnownFile(row[0][:DIGEST_SIZE], row[0][DIGEST_SIZE : 2 * DIGEST_SIZE])
    return known if row[0] == _file_value(key, known) else None


def _file_value(key: bytes, known: KnownFile) -> bytes:
    value = known.file_id + known.layout_id
    return value + digest(key + value)[:_CHECK_SIZE]
