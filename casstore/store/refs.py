"""Refs: names whose value is the newest of their immutable records (design §9)."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING, Any

from casstore.errors import BackendError, FormatError, ObjectExists, ObjectNotFound, RefConflict, RefNotFound
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.record import Record

if TYPE_CHECKING:
    from casstore.backend.base import Backend
    from casstore.format.names import RecordKey
    from casstore.store.machine import MachineState

_EXCLUSIVE_NAMESPACE = "tags"


class Refs:
    """The records of one store; safe in threads and after a fork."""

    def __init__(self, backend: Backend, machine: MachineState) -> None:
        self._backend = backend
        self._machine = machine

    def records(self, name: str) -> list[Record]:
        """Return all verified records of one ref, oldest first."""
        prefix = names.directory(name)
        folder = prefix[: prefix.rindex("/") + 1]
        keys = [entry.key for entry in self._backend.list(folder) if entry.key.startswith(prefix)]
        found = [record for key in keys if (record := self._read(key)) is not None]
        return sorted(found, key=lambda record: record.order)

    def value(self, name: str) -> Record | None:
        """Return the newest record of a ref, None if it was never written or is deleted."""
        records = self.records(name)
        return records[-1] if records and records[-1].target is not None else None

    def values(self, prefix: str = "") -> dict[str, Record]:
        """Return the value of every ref whose name starts with `prefix` and that has one, by name.

        A record that cannot be read is an error where it is the newest (invariant 8).
        """
        base = names.PREFIX
        namespace, slash, _ = prefix.partition("/")
        if slash and namespace in names.NAMESPACES:
            base += f"{namespace}/"
        listed = {entry.key for entry in self._backend.list(base)}
        kept = self._machine.records()
        self._machine.forget_records({key for key in kept if key.startswith(base)} - listed)
        keys: dict[str, list[tuple[RecordKey, str]]] = {}
        for key in listed:
            place = names.parse_key(key)
            if place.name.startswith(prefix):
                keys.setdefault(place.name, []).append((place, key))
        fresh: list[tuple[str, bytes]] = []
        found = {}
        for name in sorted(keys):
            highest = max(place.seq for place, _ in keys[name])
            newest = [item for item in keys[name] if item[0].seq == highest]
            records = [self._take(place, key, kept, fresh) for place, key in newest]
            record = max(filter(None, records), key=lambda record: record.order, default=None)
            if record is None:
                record = self.value(name)  # Trimmed since the listing: what replaced it is there now (§9).
            if record is not None and record.target is not None:
                found[name] = record
        self._machine.remember_records(fresh)
        return found

    def _take(
        self, place: RecordKey, key: str, kept: dict[str, bytes], fresh: list[tuple[str, bytes]]
    ) -> Record | None:
        """Return a listed record, from its kept copy if there is one; None if it is gone."""
        data = kept.get(key) if place.write_id is not None else None
        if data is None:
            try:
                data = self._backend.read(key)
            except ObjectNotFound:
                return None  # Trimmed since the listing: what replaced it is in the store (§9).
            if place.write_id is not None:
                fresh.append((key, data))
        return record_format.decode(data, key=key)

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
    ) -> Record:
        """Return the record that makes `target` the value of `name`: the newest one, if it says just that.

        Raises RefConflict for a tag that has two newest records: someone must decide which one was meant; and
        for a ref whose newest record has the highest number there is, so that none can follow.
        """
        names.check_name(name)
        records = self.records(name)
        newest = records[-1] if records else None
        if (
            newest
            and newest.target == target
            and (newest.manifest, newest.inline, newest.base, newest.metadata)
            == (manifest, inline, base, metadata or {})
        ):
            return newest
        if newest and newest.seq >= names.MAX_SEQ:
            raise RefConflict(
                f"{name} has used up its numbers: remove the file {newest.key}, then try again."
            )
        exclusive = name.startswith(f"{_EXCLUSIVE_NAMESPACE}/")
        if newest and exclusive and target is not None:
            forks = {record.target for record in records if record.seq == newest.seq}
            if len(forks) > 1:
                raise RefConflict(f"{name} was moved by two writers at once: delete it, then set it again.")
        return Record(
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
        )

    def put(self, record: Record) -> None:
        """Write a record, the only commit point (invariant 3); one that is there already is not repeated.

        Raises RefConflict if another writer took a tag's place first.
        """
        record_format.check_writable(record)
        if record in self.records(record.name):
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
        self._remember([(record.key, data)])

    def _is_ours(self, record: Record) -> bool:
        try:
            found = record_format.decode(self._backend.read(record.key), key=record.key)
        except (ObjectNotFound, FormatError):
            return False  # Invariant 3: what cannot be read back was not committed.
        return found.write_id == record.write_id

    def _remember(self, records: list[tuple[str, bytes]]) -> None:
        self._machine.remember_records([item for item in records if _is_unique(item[0])])

    def _read(self, key: str) -> Record | None:
        copy = self._machine.record(key) if _is_unique(key) else None
        fresh: list[tuple[str, bytes]] = []
        record = self._take(names.parse_key(key), key, {} if copy is None else {key: copy}, fresh)
        self._machine.remember_records(fresh)
        return record


def _is_unique(key: str) -> bool:
    """Say whether a record's key names one write for good; that of a tag recurs once it was trimmed or lost."""
    return names.parse_key(key).write_id is not None


def not_found(name: str) -> RefNotFound:
    """Return the error for a name that nothing answers to."""
    return RefNotFound(f"Nothing here is called {name!r}. `casstore ls` shows what there is.")
