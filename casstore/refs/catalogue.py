"""What this machine remembers of a store's records, in the SQLite file of its machine state.

All records of a ref lie in one folder, `refs/<namespace>/<hh>/`. Two tables follow the store:

- `records` has the bytes of records, mostly newest ones. They are verified again whenever they are decoded.
- `folders` has for each folder the rows of its refs, and the digest of the listing that they were made from.

Records never change (invariant 1), so rows stay true for as long as the names in their folder are the same. They are
used only if the digest is that of a listing made for this very question; so whatever happens to the file, or other
processes do to it meanwhile, an answer is that of the listing. Rows with a wrong checksum cause the file to be rebuilt.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import msgpack

from casstore.digest import digest
from casstore.refs.rows import RefRow

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from casstore.machine.state import MachineState

_KEEP = "INSERT OR REPLACE INTO records VALUES (?, ?)"


@dataclass(frozen=True, slots=True)
class FolderRows:
    """The rows of one folder, made from the listing with the digest `listing`.

    `reread` are the newest records of the refs that have no row because these may change under their names. `packed`
    has the keys of the other refs' records, and their rows; `oldest` and `newest` are the first and last time in these.
    """

    prefix: str
    listing: bytes
    reread: tuple[str, ...]
    oldest: int
    newest: int
    packed: bytes

    @classmethod
    def of(cls, prefix: str, listing: bytes, reread: Iterable[str], rows: Mapping[str, RefRow]) -> FolderRows:
        """Return what the catalogue is to hold of a folder; `rows` are by the keys of their records."""
        packed: bytes = msgpack.packb((tuple(rows), tuple(rows.values())))
        times = [row.time for row in rows.values()] or [0]
        return cls(prefix, listing, tuple(reread), min(times), max(times), packed)

    def rows(
        self, containing: Iterable[bytes] = (), *, since: int | None = None, until: int | None = None
    ) -> Iterable[tuple[str, RefRow]]:
        """Return the rows with the keys of their records.

        None may be returned where none contains all of `containing`, or none has a time from `since` to `until`.
        """
        if (
            (since is not None and self.newest < since)
            or (until is not None and self.oldest > until)
            or not all(part in self.packed for part in containing)
        ):
            return ()
        keys, rows = msgpack.unpackb(self.packed, use_list=False)
        # What RefRow._make does, without a call in Python for each row.
        return zip(keys, map(tuple.__new__, repeat(RefRow), rows), strict=True)

    def encode(self) -> tuple[str, bytes, bytes, bytes]:
        """Return the columns that `decode` reads."""
        head: bytes = msgpack.packb((self.listing, self.reread, self.oldest, self.newest))
        return self.prefix, head, self.packed, _checksum(self.prefix, head, self.packed)

    @classmethod
    def decode(cls, prefix: str, head: bytes, packed: bytes, checksum: bytes) -> FolderRows:
        """Return the rows in these columns; raise DatabaseError if they are damaged or another folder's."""
        if checksum != _checksum(prefix, head, packed):
            # Invariant 4: the file is rebuilt from the store's own records.
            raise sqlite3.DatabaseError(f"rows in it are damaged, those of {prefix}")
        listing, reread, oldest, newest = msgpack.unpackb(head, use_list=False)
        return cls(prefix, listing, reread, oldest, newest, packed)


class Catalogue:
    """The tables of one machine state; where there is none, or it fails, nothing is remembered."""

    def __init__(self, machine: MachineState) -> None:
        self._machine = machine

    @property
    def keeps(self) -> bool:
        """Whether there is a file in which anything can be kept."""
        return self._machine.keeps

    def folders(self, after: str, last: str) -> dict[str, FolderRows]:
        """Return what is held of the folders beyond `after`, up to `last`."""
        sql = "SELECT prefix, head, CAST(packed AS BLOB), checksum FROM folders WHERE prefix > ? AND prefix <= ?"

        def work(state: sqlite3.Connection) -> dict[str, FolderRows]:
            found = (FolderRows.decode(*columns) for columns in state.execute(sql, (after, last)))
            return {rows.prefix: rows for rows in found}

        return self._machine.run(work, {})

    def records(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of those of these records that are held, which the caller verifies."""
        sql = "SELECT key, CAST(data AS BLOB) FROM records WHERE key = ?"

        def work(state: sqlite3.Connection) -> dict[str, bytes]:
            return dict(row for key in keys for row in state.execute(sql, (key,)))

        return self._machine.run(work, {})

    def records_in(self, folder: str) -> dict[str, bytes]:
        """Return the bytes of all records of a folder that are held, which the caller verifies."""
        sql = "SELECT key, CAST(data AS BLOB) FROM records WHERE key > ? AND key < ?"
        return self._machine.run(lambda state: dict(state.execute(sql, _inside(folder))), {})

    def keys(self, base: str) -> frozenset[str]:
        """Return the keys of the records below `base`, which ends with "/", that are held."""
        sql = "SELECT key FROM records WHERE key > ? AND key < ?"

        def work(state: sqlite3.Connection) -> frozenset[str]:
            return frozenset(key for (key,) in state.execute(sql, _inside(base)))

        return self._machine.run(work, frozenset())

    def keep(self, records: Mapping[str, bytes]) -> None:
        """Hold records that are in the store; they count once a listing names them."""
        if records:
            rows = list(records.items())
            self._machine.run(lambda state: state.executemany(_KEEP, rows), None, writes=True)

    def update(
        self, folders: Mapping[str, FolderRows | None], records: Mapping[str, bytes], newest: Container[str]
    ) -> None:
        """Replace the rows of folders, None for a folder that is gone, and hold `records` of theirs.

        Records of these folders that are not among the `newest` are forgotten.
        """

        def work(state: sqlite3.Connection) -> None:
            for prefix, rows in folders.items():
                state.execute("DELETE FROM folders WHERE prefix = ?", (prefix,))
                found = state.execute("SELECT key FROM records WHERE key > ? AND key < ?", _inside(prefix))
                old = [key for key in found.fetchall() if key[0] not in newest]
                state.executemany("DELETE FROM records WHERE key = ?", old)
                if rows is not None:
                    state.execute("INSERT INTO folders VALUES (?, ?, ?, ?)", rows.encode())
            state.executemany(_KEEP, records.items())

        if folders or records:
            self._machine.run(work, None, writes=True)


def _checksum(*columns: object) -> bytes:
    """Return a digest of columns, of whatever types SQLite finds in a damaged file."""
    return digest(msgpack.packb(columns))


def _inside(folder: str) -> tuple[str, str]:
    """Return bounds of the keys in a folder, whose prefix ends with '/': '0' is the next character."""
    return folder, f"{folder[:-1]}0"
