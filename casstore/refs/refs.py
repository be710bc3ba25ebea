"""Refs: names whose value is the newest of their immutable records (design §9)."""

from __future__ import annotations

import os
import platform
import re
import time
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from casstore.errors import (
    BackendError,
    FormatError,
    ObjectExists,
    ObjectNotFound,
    RefConflict,
    RefNotFound,
)
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.record import Record
from casstore.objects import Damage, DamageLog
from casstore.refs.catalogue import Catalogue
from casstore.refs.folders import RefFolders
from casstore.refs.keys import is_unique
from casstore.refs.rows import RefQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from casstore.backend.base import Backend
    from casstore.machine.state import MachineState
    from casstore.refs.folders import Heads, Unreadable
    from casstore.refs.rows import RefRow

_EXCLUSIVE_NAMESPACE = "tags"
_MODEL_FOLDERS = tuple(f"{names.PREFIX}{namespace}/" for namespace in names.MODEL_NAMESPACES)

_ORDER = attrgetter("time", "name")
_SHORT_ID = re.compile(r"[0-9a-f]{1,3}")
_SPARE = 100
"""Rows beyond those wanted that are collected before the last ones are dropped."""


class Refs:
    """The records of one store; safe in threads and after a fork.

    A record that cannot be read is never replaced by an older one. `on_damage` is called for each that a listing
    leaves out; by default it is logged. With `strict`, the first one is raised instead: for callers that must not miss
    any, such as a collector's mark (invariant 8).
    """

    def __init__(self, backend: Backend, machine: MachineState) -> None:
        self.on_damage: Callable[[Damage], None] = DamageLog()
        self._backend = backend
        self._catalogue = Catalogue(machine)
        self._folders = RefFolders(backend, self._catalogue)
        self._drafted: set[bytes] = set()  # write ids of records that nobody has tried to write yet

    def heads(self, name: str) -> Heads:
        """Return the newest records of a ref, the value last: there are several only if writers collided."""
        return self._folders.heads(name)

    def history(self, name: str) -> list[Record]:
        """Return every record of a ref, oldest first; raise as `value` does if the newest cannot be read."""
        records, damaged = self._folders.history(name)
        newest = max((names.parse_key(item.key).seq for item in damaged), default=0)
        if damaged and not (records and records[-1].seq > newest):
            self.value(name)  # It may be readable all the same, one of several with the same number.
        self._report(damaged, name)
        return records

    def value(self, name: str) -> Record | None:
        """Return the newest record of a ref, None if it was never written or is deleted.

        Raises IntegrityError, AccessDenied or another error if it is there but cannot be read.
        """
        return self._folders.value(name)

    def values(
        self,
        prefix: str = "",
        *,
        strict: bool = False,
        on_damage: Callable[[Damage], None] | None = None,
    ) -> dict[str, Record]:
        """Return the value of every ref whose name starts with `prefix` and that has one, by name.

        `on_damage` is called instead of the store's own.
        """
        found: dict[str, Record] = {}
        damaged: list[Unreadable] = []
        query = RefQuery(prefix)
        for folder in self._folders.read(query.folder, prefix=prefix):
            damaged += folder.damaged
            found.update((record.name, record) for record in self._folders.records(folder, query))
        self._report(damaged, prefix, strict=strict, on_damage=on_damage)
        return dict(sorted(found.items()))

    def find(
        self,
        query: RefQuery,
        *,
        limit: int | None = None,
        newest_first: bool = True,
        strict: bool = False,
    ) -> list[RefRow]:
        """Return the refs that a query wants, ordered by time and then name.

        A record that cannot be read may or may not be wanted: each one below the prefix is reported.
        """
        found: list[RefRow] = []
        damaged: list[Unreadable] = []
        contained = query.contained
        since, until = query.since, query.until
        for folder in self._folders.read(query.folder, prefix=query.prefix):
            damaged += folder.damaged
            found += query.choose(row for _, row in folder.rows(contained, since=since, until=until))
            if limit and len(found) > 2 * limit + _SPARE:
                # Folders whose rows are all beyond the last of these need not be unpacked.
                found = _first(found, limit, newest_first=newest_first)
                since, until = (found[-1].time, until) if newest_first else (since, found[-1].time)
        self._report(damaged, query.prefix, strict=strict)
        return _first(found, limit, newest_first=newest_first)

    def naming(self, id_prefix: str) -> tuple[list[bytes], Record | None]:
        """Return the model ids that refs name and that begin with a prefix; if there is only one, with its newest record."""
        contained = bytes.fromhex(id_prefix[: len(id_prefix) // 2 * 2])
        newest: dict[bytes, tuple[RefRow, str]] = {}
        damaged: list[Unreadable] = []
        for base in _MODEL_FOLDERS:
            for folder in self._folders.read(base):
                damaged += folder.damaged
                for key, row in folder.rows([contained]):
                    if row.target.hex().startswith(id_prefix) and (
                        row.target not in newest or row.order > newest[row.target][0].order
                    ):
                        newest[row.target] = row, key
        self._report(damaged, "")
        record = None
        if len(newest) == 1:
            [(row, key)] = newest.values()
            record = self._folders.record(key, row.name)
        if record is not None and record.target not in newest:
            record = None  # The ref was moved since the listing.
        return sorted(newest), record

    def _report(
        self,
        damaged: Iterable[Unreadable],
        prefix: str,
        *,
        strict: bool = False,
        on_damage: Callable[[Damage], None] | None = None,
    ) -> None:
        for item in damaged:
            if not item.name.startswith(prefix):
                continue
            if strict:
                raise item.error
            (on_damage or self.on_damage)(Damage(item.name, item.key, str(item.error)))

    def draft(
        self,
        name: str,
        *,
        target: bytes | None,
        manifest: bytes | None = None,
        inline: bytes | None = None,
        base: bytes | None = None,
        metadata: dict[str, Any] | None = None,
        packs: tuple[bytes, ...] = (),
        origin: bytes | None = None,
        stands: Callable[[Record], bool] | None = None,
        unless: Callable[[Record], bool] | None = None,
        again: bool = False,
    ) -> Record:
        """Return the record that makes `target` the value of `name`: the newest one, if it already says so.

        With `again` it is a new one all the same: this machine may know a record that nobody can read any more.

        `origin` is the write id of another store's record that this one copies. `stands` says of a ref's value
        that names the same model by another manifest (other executable bits, or cuts) that all it needs is
        there: then no new record is made. `unless` says of any value that it need not be replaced.
        Raises RefConflict for a tag that has two newest records, since someone must decide which one was meant, and
        for a ref whose newest record has the highest possible number, so that none can follow.
        """
        names.check_name(name)
        heads = self.heads(name)
        # The new record follows even one that cannot be read, whose number is in its key.
        newest = heads.records[-1] if heads.records and not heads.hidden and not again else None
        said = record_format.said(metadata or {})
        if newest and (newest.target, newest.base, record_format.said(newest.metadata)) == (
            target,
            base,
            said,
        ):
            is_same = (newest.manifest, newest.inline) == (manifest, inline)
            if is_same or (stands is not None and stands(newest)):
                return newest
        if newest and newest.target is not None and unless is not None and unless(newest):
            return newest
        if heads.number >= names.MAX_SEQ:
            last = names.record_key(name, seq=heads.number, write_id=None)
            raise RefConflict(
                f"{name} has used up its numbers: remove the file that begins with {last}, then try again."
            )
        exclusive = name.startswith(f"{_EXCLUSIVE_NAMESPACE}/")
        if exclusive and target is not None and len({record.target for record in heads.records} - {None}) > 1:
            raise RefConflict(f"{name} was moved by two writers at once. Delete it, then set it again.")
        record = Record(
            name=name,
            seq=heads.number + 1,
            write_id=os.urandom(names.WRITE_ID_SIZE),
            time=time.time_ns(),
            writer=platform.node(),
            target=target,
            manifest=manifest,
            inline=inline,
            base=base,
            metadata=metadata or {},
            packs=packs,
            exclusive=exclusive and self._backend.creates_exclusively,
            origin=origin,
        )
        self._drafted.add(record.write_id)
        return record

    def draft_copy(
        self,
        record: Record,
        packs: tuple[bytes, ...] = (),
        *,
        origin: bytes | None = None,
        unless: Callable[[Record], bool] | None = None,
        again: bool = False,
    ) -> Record:
        """Return the record that gives a ref the value of an earlier or another store's record; the rest is as in `draft`."""
        return self.draft(
            record.name,
            target=record.target,
            manifest=record.manifest,
            inline=record.inline,
            base=record.base,
            metadata=record.metadata,
            packs=packs,
            origin=origin,
            unless=unless,
            again=again,
        )

    def put(self, record: Record) -> Record:
        """Write a record, the only commit point (invariant 3), and return the one that counts.

        A record that is there already is not repeated. If another writer has just moved the tag, its record
        counts if it sets the same value. Raises RefConflict otherwise.
        """
        record_format.check_writable(record)
        data = record_format.encode(record)
        if not self._take_draft(record) and self._holds(record.key, data):
            # Invariant 2: its own writer may not have made it durable yet.
            self._backend.make_durable([record.key])
            return record
        try:
            if record.exclusive:
                self._backend.create(record.key, [data])
            else:
                self._backend.put(record.key, [data])
        except ObjectExists as error:
            # Invariant 1: nothing is overwritten. It may also be our own write, whose answer was lost.
            there = self._readable(record.key)
            if there is None or not _same_value(there, record):
                raise RefConflict(
                    f"{record.name} was moved by someone else just now. Check its new value, then try again."
                ) from error
            if there.write_id != record.write_id:
                self._backend.make_durable([record.key])  # Invariant 2: as above.
                return there
        except BackendError as error:
            # Design §9: after a put with an unclear result, the store's record decides.
            there = self._readable(record.key) if error.retryable else None
            if there is None or there.write_id != record.write_id:
                raise
        if is_unique(record.key):
            self._catalogue.keep({record.key: data})
        return record

    def _take_draft(self, record: Record) -> bool:
        """Say whether a record was drafted here and this is the first attempt to write it: then it cannot be there."""
        try:
            self._drafted.remove(record.write_id)
        except KeyError:
            return False
        return True

    def _holds(self, key: str, data: bytes) -> bool:
        stored = self._stored(key)
        return stored is not None and record_format.encode(stored) == data

    def _stored(self, key: str) -> Record | None:
        try:
            return record_format.decode(self._backend.read(key), key=key)
        except ObjectNotFound:
            return None  # Invariant 3: what is not there was not committed.

    def _readable(self, key: str) -> Record | None:
        try:
            return self._stored(key)
        except FormatError:
            return None  # Invariant 3: what cannot be read back was not committed.


def _same_value(one: Record, other: Record) -> bool:
    """Say whether two records give a ref the same value; a model's manifest may differ."""
    return one.target == other.target and (
        names.names_model(one.name) or (one.manifest, one.inline) == (other.manifest, other.inline)
    )


def _first(rows: list[RefRow], limit: int | None, *, newest_first: bool) -> list[RefRow]:
    return sorted(rows, key=_ORDER, reverse=newest_first)[:limit]


def not_found(name: str) -> RefNotFound:
    """Return the error for a name that no ref or model has."""
    short = " An id can be shortened to 4 digits, not further." if _SHORT_ID.fullmatch(name) else ""
    return RefNotFound(f"No ref or model named {name!r}. `casstore ls` lists them.{short}")
