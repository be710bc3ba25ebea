"""Refs: names whose value is the newest of their immutable records (design §9)."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING, Any

from casstore.digest import DIGEST_SIZE
from casstore.errors import BackendError, FormatError, ObjectExists, ObjectNotFound, RefConflict, RefNotFound
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.record import Record
from casstore.store.catalogue import Catalogue, Kept
from casstore.store.ref_folders import RefFolders, is_unique
from casstore.store.ref_rows import RefQuery, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from casstore.backend.base import Backend
    from casstore.store.machine import MachineState
    from casstore.store.ref_rows import RefRow

_EXCLUSIVE_NAMESPACE = "tags"
_MODEL_FOLDERS = tuple(f"{names.PREFIX}{namespace}/" for namespace in names.MODEL_NAMESPACES)


class Refs:
    """The records of one store; safe in threads and after a fork."""

    def __init__(self, backend: Backend, machine: MachineState) -> None:
        self._backend = backend
        self._catalogue = Catalogue(machine)
        self._folders = RefFolders(backend, self._catalogue)
        self._drafted: set[bytes] = set()  # write ids that nobody tried to write yet

    def heads(self, name: str) -> list[Record]:
        """Return the verified newest records of a ref: several only after writers that met, the value last."""
        return self._folders.heads(name)

    def history(self, name: str) -> list[Record]:
        """Return every verified record of a ref, oldest first."""
        return self._folders.history(name)

    def value(self, name: str) -> Record | None:
        """Return the newest record of a ref, None if it was never written or is deleted."""
        heads = self.heads(name)
        return heads[-1] if heads and heads[-1].target is not None else None

    def values(self, prefix: str = "") -> dict[str, Record]:
        """Return the value of every ref whose name starts with `prefix` and that has one, by name.

        A record that cannot be read is an error where it is the newest (invariant 8).
        """
        query = RefQuery(prefix)
        kept = self._folders.answer((query.folder,), lambda marks: self._catalogue.values(marks, query))
        if kept is None:
            return {record.name: record for record in self._folders.read_values(query)}
        found = {}
        for key, data in kept:
            record = self._verified(key, data)
            if record is not None and record.target is not None:
                found[record.name] = record
        return found

    def find(self, query: RefQuery, *, limit: int | None = None, newest_first: bool = True) -> list[RefRow]:
        """Return the refs that a query wants, ordered by time and then name; see `values` for errors."""
        rows: list[RefRow] | None = self._folders.answer(
            (query.folder,),
            lambda marks: self._catalogue.find(marks, query, limit=limit, newest_first=newest_first),
        )
        if rows is None:
            rows = [
                row for record in self._folders.read_values(query) if query.matches(row := row_of(record))
            ]
            rows.sort(key=lambda row: row.order, reverse=newest_first)
        return rows[:limit]

    def naming(self, id_prefix: str) -> tuple[list[bytes], Record | None]:
        """Return the model ids that refs of models name and that begin so; if it is one, its newest record."""
        first = bytes.fromhex(id_prefix.ljust(2 * DIGEST_SIZE, "0"))
        last = bytes.fromhex(id_prefix.ljust(2 * DIGEST_SIZE, "f"))
        answer = self._folders.answer(
            _MODEL_FOLDERS, lambda marks: self._catalogue.targets(marks, _MODEL_FOLDERS, first, last)
        )
        if answer is not None:
            targets, bodies = answer
            read = [self._verified(*body) for body in bodies]
            return targets, _newest(record for record in read if record and record.target == targets[0])
        found: dict[bytes, list[Record]] = {}
        for namespace in names.MODEL_NAMESPACES:
            for record in self._folders.read_values(RefQuery(f"{namespace}/")):
                if record.target is not None and first <= record.target <= last:
                    found.setdefault(record.target, []).append(record)
        return sorted(found), _newest(next(iter(found.values()))) if len(found) == 1 else None

    def _verified(self, key: str, data: bytes | None) -> Record | None:
        """Return a kept record; where its copy is damaged or lost, what the store has."""
        try:
            return record_format.decode(data or b"", key=key)
        except FormatError:
            # Invariant 4: the copy is a hint, the store's own record decides.
            return self.value(names.parse_key(key).name)

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
    ) -> Record:
        """Return the record that makes `target` the value of `name`: the newest one, if it says just that.

        `origin` is the write id of another store's record that this one copies. `stands` says of a ref's value
        that names the same model by another manifest (other executable bits, or cuts) that all it needs is
        there: then nothing new is said. `unless` says of any value that it need not be replaced.
        Raises RefConflict for a tag that has two newest records: someone must decide which one was meant; and
        for a ref whose newest record has the highest number there is, so that none can follow.
        """
        names.check_name(name)
        heads = self.heads(name)
        newest = heads[-1] if heads else None
        if newest and (newest.target, newest.base, newest.metadata) == (target, base, metadata or {}):
            is_same = (newest.manifest, newest.inline) == (manifest, inline)
            if is_same or (stands is not None and stands(newest)):
                return newest
        if newest and newest.target is not None and unless is not None and unless(newest):
            return newest
        if newest and newest.seq >= names.MAX_SEQ:
            raise RefConflict(
                f"{name} has used up its numbers: remove the file {newest.key}, then try again."
            )
        exclusive = name.startswith(f"{_EXCLUSIVE_NAMESPACE}/")
        if newest and exclusive and target is not None and len({record.target for record in heads}) > 1:
            raise RefConflict(f"{name} was moved by two writers at once: delete it, then set it again.")
        record = Record(
            name=name,
            seq=newest.seq + 1 if newest else 1,
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

    def put(self, record: Record) -> None:
        """Write a record, the only commit point (invariant 3); one that is there already is not repeated.

        Raises RefConflict if another writer took a tag's place first.
        """
        record_format.check_writable(record)
        if not self._take_draft(record) and self._stored(record.key) == record:
            self._backend.settle([record.key])  # Invariant 2: its own writer may not have come that far.
            return
        data = record_format.encode(record)
        try:
            if record.exclusive:
                self._backend.create(record.key, [data])
            else:
                self._backend.put(record.key, [data])
        except ObjectExists as error:
            # Invariant 1: nothing is overwritten; it may also be our own write, acknowledged too late.
            if not self._is_ours(record):
                raise RefConflict(
                    f"{record.name} was moved by someone else just now: look, then try again."
                ) from error
        except BackendError as error:
            # Design §9: after an unclear put, what is there decides.
            if not (error.retryable and self._is_ours(record)):
                raise
        if is_unique(record.key):
            # What the bytes say, not what the caller's value may become.
            kept = record_format.decode(data, key=record.key)
            self._catalogue.keep([Kept(record.key, data, kept)])

    def _take_draft(self, record: Record) -> bool:
        """Say whether a record was drafted here and this is the first try to write it: then it cannot be there."""
        try:
            self._drafted.remove(record.write_id)
        except KeyError:
            return False
        return True

    def _stored(self, key: str) -> Record | None:
        try:
            return record_format.decode(self._backend.read(key), key=key)
        except ObjectNotFound:
            return None  # Invariant 3: what is not there was not committed.

    def _is_ours(self, record: Record) -> bool:
        try:
            found = self._stored(record.key)
        except FormatError:
            return False  # Invariant 3: what cannot be read back was not committed.
        return found is not None and found.write_id == record.write_id


def _newest(records: Iterable[Record]) -> Record | None:
    """Return the record that was written last, by its writer's clock."""
    return max(records, key=lambda record: (record.time, record.name), default=None)


def not_found(name: str) -> RefNotFound:
    """Return the error for a name that nothing answers to."""
    return RefNotFound(f"Nothing here is called {name!r}. `casstore ls` shows what there is.")
