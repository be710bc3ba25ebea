"""From the listing of names to the newest records: how the catalogue follows the store (design §9).

Listing names is the one thing that every listing of refs does; records are read only where a folder's names
differ from those that the catalogue's rows are the result of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from casstore.digest import digest
from casstore.errors import FormatError, ObjectNotFound
from casstore.format import names
from casstore.format import record as record_format
from casstore.store.catalogue import FolderRows, Kept
from casstore.store.round_trips import ask_all, is_far

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from casstore.backend.base import Backend
    from casstore.format.record import Record
    from casstore.store.catalogue import Answer, Catalogue
    from casstore.store.ref_rows import RefQuery

_ROUNDS = 8
"""Times that other processes may change the catalogue under one listing before it is answered without."""

_BATCH = 4096
"""Records after which what was read is written to the catalogue: each write costs pages of its indexes."""

_READ_AHEAD = 2048
"""Records that are in memory at once because they were read ahead."""

_SEQ_DIGITS = 16
_EXCLUSIVE = re.compile(f"@.{{{_SEQ_DIGITS}}}$", re.MULTILINE)
_TAILS = (_SEQ_DIGITS, _SEQ_DIGITS + 1 + 2 * names.WRITE_ID_SIZE)  # lengths of what follows the '@'


@dataclass(frozen=True, slots=True)
class _Folder:
    """One listing of a folder: its keys, the newest of each ref, and the records that were read for it."""

    keys: Sequence[str]
    newest: Sequence[Sequence[str]]
    read: Mapping[str, Kept]

    def rows(self, folder: str) -> FolderRows:
        """Return what the catalogue shall hold of the folder."""
        heads = frozenset(chain(*self.newest))
        exclusive = {key: self.read[key].data for key in heads if not is_unique(key)}
        values = frozenset(max(group, key=self._write_id) for group in self.newest)
        return FolderRows(
            folder, _mark("\n".join(self.keys), exclusive), heads, values, tuple(self.read.values())
        )

    def _write_id(self, key: str) -> str:
        """Return the write id; that of an exclusive record stands in the record, which was read."""
        return key[-2 * names.WRITE_ID_SIZE :] if is_unique(key) else self.read[key].record.write_id.hex()


class RefFolders:
    """Reads refs by their folders, with the catalogue's help where there is one."""

    def __init__(self, backend: Backend, catalogue: Catalogue) -> None:
        self._backend = backend
        self._is_far = is_far(backend)
        self._catalogue = catalogue

    def heads(self, name: str) -> list[Record]:
        """Return the verified records of one ref that have its highest number, in their order."""
        prefix = names.directory(name)
        folder = _folder_of(prefix)

        def listed() -> list[str]:
            return [key for key in self._backend.list_keys(folder) if key.startswith(prefix)]

        keys = listed()
        if not keys:
            return []
        kept = {
            key: record
            for key in chain(*newest_keys(keys))
            if is_unique(key) and (record := self._kept(key)) is not None
        }
        found = self._load(keys, listed, held=kept)
        self._catalogue.keep([item for key, item in found.read.items() if is_unique(key)])
        records = [
            kept[key] if key not in found.read else found.read[key].record for key in chain(*found.newest)
        ]
        return sorted(records, key=lambda record: record.order)

    def history(self, name: str) -> list[Record]:
        """Return every verified record of one ref, in their order; one that is trimmed meanwhile is left out (§9)."""
        prefix = names.directory(name)
        keys = [key for key in self._backend.list_keys(_folder_of(prefix)) if key.startswith(prefix)]
        records: list[Record] = []
        for key in keys:
            kept = self._kept(key) if is_unique(key) else None
            read = self._read(key) if kept is None else None
            if kept is not None or read is not None:
                records.append(kept if kept is not None else read.record)  # type: ignore[union-attr]
        return sorted(records, key=lambda record: record.order)

    def answer(self, bases: Sequence[str], ask: Callable[[Mapping[str, bytes]], Answer | None]) -> Any | None:
        """List names below `bases`, bring the catalogue up to them, and return what it answers.

        None where there is no catalogue, or other processes keep changing it.
        """
        marks: dict[str, bytes] = {}
        ahead: dict[str, Kept] = {}

        def changed(base: str) -> Iterator[tuple[str, Sequence[str]]]:
            known = self._catalogue.marks(base)
            for folder, keys in self._read_ahead(self._list(base), known, ahead):
                mark = known.pop(folder, b"")
                if mark == self._mark_of(keys, ahead):
                    marks[folder] = mark
                else:
                    yield folder, keys

        for base in bases:
            if not self._catalogue.keeps:
                return None
            marks.update(self._bring(changed(base), ahead))
        for _ in range(_ROUNDS):
            answer = ask(marks)
            if answer is None:
                return None
            if not answer.stale:
                return answer.found
            for folder in answer.stale:
                marks.pop(folder, None)
            marks.update(
                self._bring((folder, list(self._backend.list_keys(folder))) for folder in answer.stale)
            )
        return None

    def read_values(self, query: RefQuery) -> Iterator[Record]:
        """Yield the value of every ref whose name begins as a query says, by name, from the store alone."""
        newest: dict[str, list[str]] = {}
        for _, keys in self._list(query.folder):
            for group in newest_keys(keys):
                name = names.parse_key(group[0]).name
                if name.startswith(query.prefix):
                    newest[name] = group
        for name in sorted(newest):
            records = [self._read(key) for key in newest[name]]
            # Trimmed since the listing: what replaced it is there now (§9).
            found = self.heads(name) if None in records else [item.record for item in records if item]
            value = max(found, key=lambda record: record.order, default=None)
            if value is not None and value.target is not None:
                yield value

    def _list(self, base: str) -> Iterator[tuple[str, list[str]]]:
        """Yield each folder below `base` with its keys; what lies deeper is left in, and is no key."""
        folder = "/"
        keys: list[str] = []
        for key in self._backend.list_keys(base):
            if not key.startswith(folder):
                if keys:
                    yield folder, keys
                folder, keys = _folder_of(key), []
            keys.append(key)
        if keys:
            yield folder, keys

    def _read_ahead(
        self,
        listed: Iterator[tuple[str, list[str]]],
        known: Mapping[str, bytes],
        ahead: dict[str, Kept],
    ) -> Iterator[tuple[str, list[str]]]:
        """Yield the folders; from afar, read into `ahead` what their marks and rows will need, many at once."""
        if not self._is_far:
            yield from listed
            return
        last = False
        while not last:
            batch: list[tuple[str, list[str]]] = []
            wanted: list[str] = []
            while len(wanted) < _READ_AHEAD and not last:
                folder, keys = next(listed, ("", []))
                last = not keys
                newest = list(chain(*newest_keys(keys)))
                exclusive = [key for key in newest if not is_unique(key)]
                wanted += exclusive
                if exclusive or known.get(folder) != _mark("\n".join(keys), {}):
                    held = self._catalogue.held(folder)
                    wanted += [key for key in newest if is_unique(key) and key not in held]
                if keys:
                    batch.append((folder, keys))
            ahead.clear()
            ahead.update((item.key, item) for item in ask_all(self._read, wanted) if item is not None)
            yield from batch

    def _bring(
        self, folders: Iterable[tuple[str, Sequence[str]]], ahead: Mapping[str, Kept] | None = None
    ) -> dict[str, bytes]:
        """Make the catalogue's rows of folders those of their listings; return the marks of those with any.

        `ahead` are records that were read since their folder was listed.
        Where another process drops rows meanwhile, the catalogue says so when it is asked.
        """
        marks: dict[str, bytes] = {}
        batch: list[FolderRows] = []
        for folder, listed in folders:

            def relist(folder: str = folder) -> list[str]:
                return list(self._backend.list_keys(folder))

            found = self._load(listed, relist, held=self._catalogue.held(folder), ahead=ahead)
            rows = found.rows(folder)
            if found.keys:
                marks[folder] = rows.mark
            batch.append(rows)
            if sum(len(item.fresh) for item in batch) >= _BATCH:
                self._catalogue.bring(batch)
                batch.clear()
        self._catalogue.bring(batch)
        return marks

    def _load(
        self,
        keys: Sequence[str],
        relist: Callable[[], Sequence[str]],
        *,
        held: Collection[str],
        ahead: Mapping[str, Kept] | None = None,
    ) -> _Folder:
        """Read the newest records of a listing, but for those held; none of those returned is gone."""
        read: dict[str, Kept] = {}
        relisted = False
        while True:
            newest = newest_keys(keys)
            gone = set()
            for key in chain(*newest):
                if is_unique(key) and (key in held or key in read):
                    continue
                item = (ahead or {}).get(key) or self._read(key)
                if item is None:
                    gone.add(key)
                else:
                    read[key] = item
            if not gone:
                wanted = set(chain(*newest))
                return _Folder(keys, newest, {key: item for key, item in read.items() if key in wanted})
            # Trimmed since the listing: what replaced it is in the store now (§9). What a second listing
            # names and nobody can read is gone all the same: listings may lag behind.
            keys = [key for key in keys if key not in gone] if relisted else relist()
            relisted = True

    def _read(self, key: str) -> Kept | None:
        """Read a listed record, which must be one (invariant 8); return None if it is gone."""
        names.parse_key(key)
        try:
            data = self._backend.read(key)
        except ObjectNotFound:
            return None  # Trimmed since the listing.
        return Kept(key, data, record_format.decode(data, key=key))

    def _kept(self, key: str) -> Record | None:
        data = self._catalogue.data(key)
        try:
            return None if data is None else record_format.decode(data, key=key)
        except FormatError:
            return None  # Invariant 4: the store's own record decides.

    def _mark_of(self, keys: Sequence[str], ahead: Mapping[str, Kept]) -> bytes | None:
        """Return the mark of a listing as it is now, None if it needs another look."""
        exclusive: dict[str, bytes] = {}
        listed = "\n".join(keys)
        if _EXCLUSIVE.search(listed):
            for key in chain(*newest_keys(keys)):
                if not is_unique(key):
                    item = ahead.get(key) or self._read(key)
                    if item is None:
                        return None
                    exclusive[key] = item.data
        return _mark(listed, exclusive)


def is_unique(key: str) -> bool:
    """Say whether a record's key names one write for good; that of a tag recurs once it was trimmed or lost."""
    return key[-_SEQ_DIGITS - 1 : -_SEQ_DIGITS] != "@"


def newest_keys(keys: Iterable[str]) -> list[list[str]]:
    """Return the keys with the highest number of each ref; raise FormatError for what is not a key."""
    newest: dict[str, tuple[str, list[str]]] = {}
    for key in keys:
        place, _, tail = key.rpartition("@")
        if not place or len(tail) not in _TAILS:
            names.parse_key(key)
        seq = tail[:_SEQ_DIGITS]
        highest = newest.get(place)
        if highest is None or seq > highest[0]:
            newest[place] = (seq, [key])
        elif seq == highest[0]:
            highest[1].append(key)
    return [group for _, group in newest.values()]


def _folder_of(key: str) -> str:
    return key[: key.rindex("/") + 1]


def _mark(listed: str, exclusive: Mapping[str, bytes]) -> bytes:
    parts = [listed, *(f"{key} {digest(data).hex()}" for key, data in sorted(exclusive.items()))]
    return digest("\n\n".join(parts).encode())
