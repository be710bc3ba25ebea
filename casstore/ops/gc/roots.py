"""The records of a store, read from the store itself: which of them keep objects, and which may be trimmed."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casstore.backend.base import Entry
from casstore.concurrency.fan_out import ask_all
from casstore.errors import BackendUnavailable, FormatError, ObjectNotFound, UnsupportedVersion
from casstore.format import names
from casstore.format import record as record_format
from casstore.ops.gc.policy import HOUR, KEPT_ELDERS, WEEK
from casstore.refs.catalogue import Catalogue
from casstore.refs.keys import is_unique, number_of, records_by_ref

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from casstore.format.record import Record
    from casstore.ops.gc.policy import GcPolicy
    from casstore.store.model_store import ModelStore

_BATCH = 4096
_LISTINGS = 3


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """A record's key and size, when it was written, and when a newer one replaced it (None: it is the newest).

    Times are in POSIX seconds by the storage's clock.
    """

    key: str
    size: int
    written: float
    replaced: float | None


@dataclass(slots=True)
class Roots:
    """What the last reading found. `records` are those that keep their objects; `heads` are the newest of each ref.

    `recent` are the keys of records of the last hour or two that keep nothing, and that were not read for that.
    `problems` are sentences about records that could not be read and that no ref needs.
    """

    refs: dict[str, list[ListedRecord]] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    heads: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    recent: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def replacing(self) -> list[str]:
        """Return the keys of the newest records of all refs that were moved or deleted."""
        return [
            item.key
            for group in self.refs.values()
            if len(group) > 1
            for item in group
            if item.replaced is None
        ]


class RootReader:
    """Reads records, each of those that never change once. For one thread."""

    def __init__(self, store: ModelStore, policy: GcPolicy, *, two_phases: bool) -> None:
        self._backend = store.backend
        self._is_far = store.backend.is_remote
        self._catalogue = Catalogue(store.machine)
        self._policy = policy
        self.superseded = policy.superseded if two_phases else 0.0
        """Seconds for which values that were replaced keep what they name."""
        self._read: dict[str, Record | FormatError] = {}

    def read(self, now: float) -> Roots:
        """List all records and read those that matter; any doubt is an error (invariant 8)."""
        for attempt in range(_LISTINGS):
            refs = self._list(now)
            wanted = {place: self._wanted(group, now) for place, group in refs.items()}
            absent = self._read_all([item.key for group in wanted.values() for item in group])
            if not absent:
                return self._roots(refs, wanted, now)
            # Trimmed since the listing, so the next one shows what replaced it (§9).
            if attempt:
                time.sleep(0.1)
        raise BackendUnavailable(
            f"{self._backend.url} lists {min(absent)}, and it cannot be found. Nothing was deleted: try again later."
        )

    def _list(self, now: float) -> dict[str, list[ListedRecord]]:
        """List all records, in two ways, and ask for those that this machine knows of besides."""
        # Before the listing, which must show all that was known before it.
        known = self._catalogue.keys(names.PREFIX)
        folders = [f"{names.PREFIX}{namespace}/" for namespace in names.NAMESPACES]
        whole, *parts = ask_all(self._list_one, [names.PREFIX, *folders], at_once=self._is_far)
        entries = {entry.key: (entry.size, entry.modified) for entry in whole}
        for entry in itertools.chain(*parts):
            # Invariant 8: what any listing shows counts. It may also have been written since the first one.
            entries.setdefault(entry.key, (0, now))
        unlisted = sorted(known - entries.keys())
        for key, there in zip(
            unlisted, ask_all(self._exists, unlisted, at_once=self._backend.is_remote), strict=True
        ):
            if there:
                raise BackendUnavailable(
                    f"A listing of {self._backend.url} lacks {key}, which is there. Nothing was deleted: try again later."
                )
        refs: dict[str, list[ListedRecord]] = {}
        for place, keys in records_by_ref(entries).items():
            keys.sort(key=number_of)
            group: list[ListedRecord] = []
            following: dict[int, float] = {}
            for key in keys:
                number = number_of(key)
                written = entries[key][1]
                written = now if written != written else written  # noqa: PLR0124  # nan: the storage has no clock
                following[number] = min(following.get(number, written), written)
            numbers = sorted(following)
            later = dict(itertools.pairwise(numbers))
            for key in keys:
                number, (size, written) = number_of(key), entries[key]
                replaced = following[later[number]] if number in later else None
                group.append(ListedRecord(key, size, written, replaced))
            refs[place] = group
        return refs

    def _list_one(self, prefix: str) -> list[Entry]:
        if prefix == names.PREFIX:
            return list(self._backend.list(prefix))
        return [Entry(key, 0, math.nan) for key in self._backend.list_keys(prefix)]

    def _exists(self, key: str) -> bool:
        try:
            self._backend.stat(key)
        except ObjectNotFound:
            return False
        return True

    def _wanted(self, group: Sequence[ListedRecord], now: float) -> list[ListedRecord]:
        """Return the records of one ref that may keep objects."""
        return [item for item in group if self._keeps(item, group, now=now)]

    def _keeps(
        self, item: ListedRecord, group: Sequence[ListedRecord], *, now: float, deleted: bool = False
    ) -> bool:
        """Say whether a record of a ref, which may be `deleted`, keeps what it names."""
        if item.replaced is None or now - item.replaced < self.superseded:
            return True
        numbers = sorted({number_of(other.key) for other in group})
        return not deleted and number_of(item.key) in numbers[-self._policy.keep_last :]

    def _read_all(self, keys: Sequence[str]) -> list[str]:
        """Read records that were not read before, or may have changed; return those that are gone."""
        left = [key for key in keys if key not in self._read or not is_unique(key)]
        absent = []
        for start in range(0, len(left), _BATCH):
            batch = left[start : start + _BATCH]
            held = self._held(batch)
            self._read.update(held)
            batch = [key for key in batch if key not in held]
            fresh: dict[str, bytes] = {}
            for key, (item, data) in zip(
                batch, ask_all(self._one, batch, at_once=self._backend.is_remote), strict=True
            ):
                if item is None:
                    absent.append(key)
                    continue
                self._read[key] = item
                if self._is_far and is_unique(key) and not isinstance(item, FormatError):
                    fresh[key] = data
            self._catalogue.keep(fresh)
        return absent

    def _held(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return those records of which this machine has a copy, if the store is far away."""
        found: dict[str, Record] = {}
        wanted = [key for key in keys if is_unique(key)] if self._is_far else []
        for key, data in self._catalogue.records(wanted).items() if wanted else ():
            # A listed record never changes, and this copy carries the record's own checksum.
            with contextlib.suppress(FormatError):
                found[key] = record_format.decode(data, key=key)
        return found

    def _one(self, key: str) -> tuple[Record | FormatError | None, bytes]:
        try:
            data = self._backend.read(key)
            return record_format.decode(data, key=key), data
        except ObjectNotFound:
            return None, b""
        except FormatError as error:
            return error, b""  # Judged in `_roots`.

    def _roots(
        self, refs: dict[str, list[ListedRecord]], wanted: dict[str, list[ListedRecord]], now: float
    ) -> Roots:
        roots = Roots(refs)
        for place, group in wanted.items():
            name = names.parse_key(group[0].key).name
            heads = []
            for item in group:
                record = self._read[item.key]
                if isinstance(record, FormatError):
                    self._require_replaced(item, name, record)
                elif item.replaced is None:
                    heads.append(record)
            roots.heads[name] = tuple(sorted(heads, key=lambda record: record.order))
            deleted = all(record.target is None for record in heads)
            for item in group:
                record = self._read[item.key]
                keeps = self._keeps(item, refs[place], now=now, deleted=deleted)
                if isinstance(record, FormatError):
                    if keeps:
                        roots.problems.append(
                            f"{item.key}, an earlier record of {name}, cannot be read, so what it named is not kept: "
                            f"{record}"
                        )
                    continue
                if keeps and record.target is not None:
                    roots.records[item.key] = record
            roots.recent += [
                item.key
                for item in refs[place]
                if now - item.written < 2 * HOUR and item.key not in roots.records
            ]
        return roots

    def packs_named_lately(self, roots: Roots) -> set[bytes]:
        """Return the packs that records of the last hour or two name, whether they keep them or not.

        A record that cannot be read, or was trimmed since it was listed, names nothing: then its packs stay for longer.
        """
        self._read_all(roots.recent)
        read = [*map(self._read.get, roots.recent), *roots.records.values()]
        return {pack for item in read if not isinstance(item, FormatError | None) for pack in item.packs}

    def _require_replaced(self, item: ListedRecord, name: str, error: FormatError) -> None:
        """Raise for a record that may be a ref's value; one that was replaced is only reported."""
        if item.replaced is None or isinstance(error, UnsupportedVersion):
            # Invariant 8: nobody can know what it keeps.
            raise type(error)(
                f"Nothing was collected, since the newest record of {name} cannot be read: {error} Write the ref again, "
                f"or delete it: `casstore rm {name}`."
            ) from error


def trimmable(roots: Roots, policy: GcPolicy, now: float) -> list[list[ListedRecord]]:
    """Return records that may be deleted, for each ref in the order in which they must be.

    Elders of a deletion go before it, or a crash in between would bring the ref back.
    """
    found: list[list[ListedRecord]] = []
    for group in roots.refs.values():
        name = names.parse_key(group[0].key).name
        heads = roots.heads.get(name, ())
        newest = [item for item in group if item.replaced is None]
        elders = [item for item in group if item.replaced is not None and now - item.replaced >= WEEK]
        deleted = len(heads) == len(newest) and all(head.target is None for head in heads)
        keep = 0 if deleted else max(KEPT_ELDERS, policy.keep_last - 1)
        older = [item for item in group if item.replaced is not None]
        spared = {item.key for item in (older[-keep:] if keep else [])}
        gone = [item for item in elders if item.key not in spared]
        whole = len(gone) == len(older)
        if deleted and whole and all(now - item.written >= WEEK for item in newest):
            gone += newest
        if gone:
            found.append(gone)
    return found


def trim(store: ModelStore, groups: Iterable[Sequence[ListedRecord]]) -> tuple[int, int]:
    """Delete records in the order given; return how many, and their bytes."""
    count = size = 0
    for group in groups:
        name = names.parse_key(group[0].key).name
        prefix = names.directory(name)
        folder = prefix[: prefix.rindex("/") + 1]
        keys = [key for key in store.backend.list_keys(folder) if key.startswith(prefix)]
        newest = max(map(number_of, keys), default=0)
        planned = {item.key for item in group}
        # Invariant 2: the record that replaced these counts only once its name is on the disk.
        store.backend.make_durable([key for key in keys if number_of(key) == newest])
        for item in group:
            if number_of(item.key) == newest and not planned.issuperset(_same_number(keys, newest)):
                continue  # Somebody wrote the ref again: this record competes with that one.
            # Invariant 1: only records that newer ones have replaced for a week, and deletions as old; elders first.
            store.backend.delete(item.key)
            count += 1
            size += item.size
    return count, size


def _same_number(keys: Collection[str], number: int) -> list[str]:
    return [key for key in keys if number_of(key) == number]
