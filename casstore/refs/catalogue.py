"""The catalogue: what this machine knows of a store's records, in the SQLite file of its machine state.

It is a copy that follows the listing of names, folder by folder (`refs/<namespace>/<hh>/` holds all records
of the names in it):

- `folders` says of which listing of a folder its rows are the result: `mark` is a digest of the names listed
  in it, and of the bytes of exclusive records, whose names recur, and of damaged ones, which someone may put
  right; `damaged` has the keys of the latter, a line each. Rows and mark change in one transaction.
- `records` has a row for each newest record of a ref. Records never change (invariant 1), so a row stays true
  for as long as its name is listed. `state` says whether it is the value of its ref. A row without
  `metadata` is one that JSON or SQLite cannot hold exactly: its record is decoded instead.
- `bodies` keeps the records' own bytes, which are verified again when they are decoded.

A query is answered only from rows whose marks are those of a listing made for this query, in the same
transaction; so whatever other processes do to the file meanwhile, an answer is that of the listing. Rows that
are handed out carry a checksum, `seal`; a wrong one, or lost rows, cause the file to be rebuilt.
"""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

import msgpack

from casstore.errors import FormatError
from casstore.format import names
from casstore.format import record as record_format
from casstore.refs.conditions import MAX_INTEGER, conditions, is_plain, key_range, metadata_conditions
from casstore.refs.rows import RefRow, facts_of, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from casstore.format.record import Record
    from casstore.machine.state import MachineState
    from casstore.refs.rows import RefQuery

T = TypeVar("T")

_COLUMNS = "key, name, target, manifest, base, time, writer, metadata, seal"


class _State(IntEnum):
    """What a row is to its ref; states from VALUE on mean that it is the ref's value."""

    OTHER = 0
    DELETION = 1
    VALUE = 2
    ODD_VALUE = 3


@dataclass(frozen=True, slots=True)
class Kept:
    """A record to keep: its key, its bytes as the store has them, and what they say."""

    key: str
    data: bytes
    record: Record


@dataclass(frozen=True, slots=True)
class FolderRows:
    """What the rows of one folder are to be.

    `heads` are the newest records of its refs, of which `values` win; `fresh` are those that were not held,
    or no longer true. `damaged` are newest records that could not be read: they have no rows. `mark` says of
    which listing all that is the result.
    """

    prefix: str
    mark: bytes
    heads: frozenset[str]
    values: frozenset[str]
    fresh: tuple[Kept, ...]
    damaged: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the folder has no record."""
        return not (self.values or self.damaged)


@dataclass(frozen=True, slots=True)
class Answer:
    """The catalogue's answer to a query: `found`, or the folders that are `stale` and must be read first."""

    found: Any = None
    stale: frozenset[str] = frozenset()


class Catalogue:
    """The tables of one machine state; a failure here gives the same answer as an empty catalogue."""

    def __init__(self, machine: MachineState) -> None:
        self._machine = machine

    @property
    def keeps(self) -> bool:
        """Whether there is a file in which anything can be kept."""
        return self._machine.keeps

    # ---- single records

    def data(self, key: str) -> bytes | None:
        """Return one kept record's bytes, which the caller verifies."""
        sql = "SELECT data FROM records JOIN bodies USING (id) WHERE key = ?"
        row = self._machine.run(lambda state: state.execute(sql, (key,)).fetchone(), None)
        return bytes(row[0]) if row else None

    def keep(self, records: Sequence[Kept]) -> None:
        """Keep records that are in the store; they count once a listing names them."""
        if records:

            def work(state: sqlite3.Connection) -> None:
                # A row that another process wrote from its listing meanwhile stays; it may be the value of its ref.
                new = [item for item in records if not _mend_body(state, item)]
                _insert(state, new, frozenset())

            self._machine.run(work, None, writes=True)

    # ---- folders

    def marks(self, base: str) -> dict[str, tuple[bytes, tuple[str, ...]]]:
        """Return the mark of every folder below `base` whose rows are kept, and the keys of its damaged records."""

        def work(state: sqlite3.Connection) -> dict[str, tuple[bytes, tuple[str, ...]]]:
            return {row[0]: (row[1], tuple(row[3].split())) for row in _folders(state, base)}

        return self._machine.run(work, {})

    def held(self, folder: str) -> frozenset[str]:
        """Return the keys of the records of one folder that are kept."""
        return self._machine.run(lambda state: frozenset(_states(state, folder)), frozenset())

    def bring(self, folders: Sequence[FolderRows]) -> None:
        """Make the rows of folders those of a listing; one whose held rows another process dropped stays stale."""

        def work(state: sqlite3.Connection) -> None:
            for item in folders:
                _bring(state, item)

        if folders:
            self._machine.run(work, None, writes=True)

    # ---- queries

    def find(
        self, marks: Mapping[str, bytes], query: RefQuery, *, limit: int | None, newest_first: bool
    ) -> Answer | None:
        """Return the rows that a query wants, in its order; None where nothing is kept."""

        def work(state: sqlite3.Connection) -> list[RefRow]:
            return _find(state, query, limit=limit, newest_first=newest_first)

        return self._ask(marks, (query.folder,), work)

    def values(self, marks: Mapping[str, bytes], query: RefQuery) -> Answer | None:
        """Return the keys and bytes of the values that a query for names wants, in the order of names.

        Bytes that were lost are None, here and in `targets`.
        """
        sql = (
            "SELECT key, data FROM records LEFT JOIN bodies USING (id) WHERE state >= ? AND key >= ? AND key < ? "
            "AND substr(name, 1, ?) = ? ORDER BY name"
        )
        arguments = (_State.VALUE, *key_range(query.folder), len(query.prefix), query.prefix)

        def work(state: sqlite3.Connection) -> list[tuple[str, bytes | None]]:
            return state.execute(sql, arguments).fetchall() if is_plain(query.prefix) else []

        return self._ask(marks, (query.folder,), work)

    def targets(
        self, marks: Mapping[str, bytes], bases: Sequence[str], first: bytes, last: bytes
    ) -> Answer | None:
        """Return the targets from `first` to `last` that refs below `bases` name.

        If it is one, the keys and bytes of the records that may be its newest come with it.
        """
        inside = " OR ".join("name >= ? AND name < ?" for _ in bases)
        sql = (
            "SELECT target FROM records WHERE state IN (?, ?) AND target BETWEEN ? AND ? "  # noqa: S608  # no part comes from outside
            f"AND ({inside}) GROUP BY target ORDER BY target"
        )
        ends = [end for base in bases for end in key_range(base.removeprefix(names.PREFIX))]
        # Left to itself, SQLite walks through the records of all targets by time until it meets one of this.
        body = (
            "SELECT key, data FROM (SELECT id, key FROM records INDEXED BY records_by_target "  # noqa: S608  # as above
            f"WHERE state = ? AND target = ? AND ({inside}) ORDER BY time DESC, name DESC LIMIT ?) "
            "LEFT JOIN bodies USING (id)"
        )

        def work(state: sqlite3.Connection) -> tuple[list[bytes], list[tuple[str, bytes | None]]]:
            values = (_State.VALUE, _State.ODD_VALUE, first, last, *ends)
            found = [target for (target,) in state.execute(sql, values)]
            bodies: list[tuple[str, bytes | None]] = []
            if len(found) == 1:
                # The row of an odd record may lack its time, so all of those are read.
                for kind, limit in ((_State.VALUE, 1), (_State.ODD_VALUE, -1)):
                    bodies += state.execute(body, (kind, found[0], *ends, limit)).fetchall()
            return found, bodies

        return self._ask(marks, bases, work)

    def _ask(
        self, marks: Mapping[str, bytes], bases: Iterable[str], work: Callable[[sqlite3.Connection], Any]
    ) -> Answer | None:
        """Answer from rows that are what was listed below `bases`, or say which folders are not."""

        def ask(state: sqlite3.Connection) -> Answer:
            kept = {row[0]: row[1] for base in bases for row in _folders(state, base)}
            stale = {folder for folder in kept.keys() | marks.keys() if kept.get(folder) != marks.get(folder)}
            if stale:
                return Answer(stale=frozenset(stale))
            _require_whole(state)
            return Answer(work(state))

        return self._machine.run(ask, None)


def _folders(state: sqlite3.Connection, base: str) -> list[tuple[str, bytes, int, str]]:
    return state.execute("SELECT * FROM folders WHERE prefix >= ? AND prefix < ?", key_range(base)).fetchall()


def _states(state: sqlite3.Connection, folder: str) -> dict[str, tuple[int, bool, bool]]:
    """Return the state of each record of a folder, whether it is a deletion, and whether it is odd."""
    sql = "SELECT key, state, target IS NULL, metadata IS NULL FROM records WHERE key >= ? AND key < ?"
    return {key: (number, gone, odd) for key, number, gone, odd in state.execute(sql, key_range(folder))}


def _require_whole(state: sqlite3.Connection) -> None:
    """Raise unless there are as many values as there should be: a lost row must not make a ref disappear."""
    ((wanted,),) = state.execute("SELECT ifnull(sum(refs), 0) FROM folders")
    ((found,),) = state.execute("SELECT count(*) FROM records WHERE state >= ?", (_State.DELETION,))
    if wanted != found:
        raise sqlite3.DatabaseError(f"it lists {found} refs and should list {wanted}")


def _delete(state: sqlite3.Connection, keys: Iterable[str]) -> None:
    rows = [(key,) for key in keys]
    state.executemany("DELETE FROM bodies WHERE id = (SELECT id FROM records WHERE key = ?)", rows)
    state.executemany("DELETE FROM records WHERE key = ?", rows)


def _bring(state: sqlite3.Connection, folder: FolderRows) -> None:
    known = _states(state, folder.prefix)
    fresh = {item.key for item in folder.fresh}
    kept = (known.keys() & folder.heads) - fresh
    # If another process dropped a row that was held, these rows match no listing.
    whole = kept | fresh == folder.heads
    values = folder.values if whole else frozenset()
    _delete(state, known.keys() - kept)
    _insert(state, folder.fresh, values)
    changed = []
    for key in kept:
        row_state, is_deletion, is_odd = known[key]
        new = _state(key in values, is_deletion=is_deletion, is_odd=is_odd)
        if new != row_state:
            changed.append((int(new), key))
    state.executemany("UPDATE records SET state = ? WHERE key = ?", changed)
    state.execute("DELETE FROM folders WHERE prefix = ?", (folder.prefix,))
    if whole and not folder.empty:
        state.execute(
            "INSERT INTO folders VALUES (?, ?, ?, ?)",
            (folder.prefix, folder.mark, len(values), "\n".join(folder.damaged)),
        )


def _state(is_value: bool, *, is_deletion: bool, is_odd: bool) -> _State:  # noqa: FBT001  # one of three
    if not is_value:
        return _State.OTHER
    return _State.DELETION if is_deletion else _State.ODD_VALUE if is_odd else _State.VALUE


def _insert(state: sqlite3.Connection, records: Sequence[Kept], values: Container[str]) -> None:
    """Insert records that are not there, of which `values` are those of their refs."""
    for item in records:
        record = item.record
        facts = facts_of(record.metadata)
        fits = isinstance(facts, str) and abs(record.time) <= MAX_INTEGER
        row = (
            item.key,
            record.name,
            record.target,
            record.manifest,
            record.base,
            record.time if fits else 0,
            record.writer,
            facts if fits else None,
        )
        done = state.execute(
            f"INSERT INTO records (state, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608  # a constant
            (
                _state(item.key in values, is_deletion=record.target is None, is_odd=not fits),
                *row,
                _seal(row),
            ),
        )
        state.execute("INSERT INTO bodies VALUES (?, ?)", (done.lastrowid, item.data))


def _mend_body(state: sqlite3.Connection, item: Kept) -> bool:
    """Give the row of a record its bytes again; say whether there is such a row."""
    row = state.execute("SELECT id FROM records WHERE key = ?", (item.key,)).fetchone()
    if row is not None:
        state.execute("INSERT OR REPLACE INTO bodies VALUES (?, ?)", (row[0], item.data))
    return row is not None


def _seal(row: tuple[object, ...]) -> int:
    """Return a checksum over the columns of a row, so that a flipped bit is detected."""
    return zlib.crc32(msgpack.packb(row))


def _find(
    state: sqlite3.Connection, query: RefQuery, *, limit: int | None, newest_first: bool
) -> list[RefRow]:
    if not is_plain(query.prefix):
        return []
    # Rows that SQLite cannot compare: few, or none.
    common, arguments = conditions(query, by="name")
    odd = state.execute(
        f"SELECT key, data FROM records INDEXED BY records_by_time LEFT JOIN bodies USING (id) WHERE state = ? AND {common}",  # noqa: S608  # no part comes from outside
        (_State.ODD_VALUE, *arguments),
    )
    found = [row for key, data in odd.fetchall() if query.matches(row := _row_of_body(key, data))]
    filters, values, exact = metadata_conditions(query)
    limited = limit is not None and exact
    if query.target is not None:
        source = "records INDEXED BY records_by_target"
    elif limited and not filters:
        source = "records INDEXED BY records_by_time"
    else:
        # Rows of a namespace lie side by side: an index that only sorts would read all over the file.
        source = "records INDEXED BY sqlite_autoindex_records_1"
        common, arguments = conditions(query, by="key")
    sql = " AND ".join([f"SELECT {_COLUMNS} FROM {source} WHERE state = ?", common, *filters])  # noqa: S608  # as above
    values = [_State.VALUE, *arguments, *values]
    if limited:
        direction = "DESC" if newest_first else "ASC"
        sql += f" ORDER BY time {direction}, name {direction} LIMIT ?"
        values.append(min(limit or 0, MAX_INTEGER))
    for columns in state.execute(sql, values):
        row = RefRow(*columns[1:-1])
        if columns[-1] != _seal(columns[:-1]):
            raise sqlite3.DatabaseError(f"a row in it is damaged, {columns[0]!r}")
        if exact or query.matches(row):
            found.append(row)
    found.sort(key=lambda row: row.order, reverse=newest_first)
    return found[:limit]


def _row_of_body(key: str, data: bytes | None) -> RefRow:
    try:
        record = record_format.decode(data or b"", key=key)
    except FormatError as error:
        # Invariant 4: the file is rebuilt from the store's own copies.
        raise sqlite3.DatabaseError(f"a record in it is damaged, {key}") from error
    return row_of(record)
