"""Reads the newest records from a listing of names, and keeps the catalogue in step with the store (design §9).

Every listing of refs lists the names; records are read only where a folder's names
differ from those that the catalogue's rows were made from.

Files under names that no record can have are ignored. A record that cannot be read keeps the place that its key gives
it: no older one is used instead (invariant 8), and the caller learns of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from casstore.backend.round_trips import ask_all, ask_each, is_far
from casstore.digest import digest
from casstore.errors import BackendError, FormatError, ObjectNotFound
from casstore.format import names
from casstore.format import record as record_format
from casstore.objects import is_bad_file, is_refused
from casstore.refs.catalogue import FolderRows, Kept
from casstore.refs.keys import (
    folder_of,
    has_exclusive,
    is_unique,
    newest_keys,
    newest_of,
    number_of,
    records_by_ref,
    write_id_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from casstore.backend.base import Backend
    from casstore.errors import CasstoreError
    from casstore.format.record import Record
    from casstore.refs.catalogue import Answer, Catalogue
    from casstore.refs.rows import RefQuery

_ROUNDS = 8
"""Times that other processes may change the catalogue during one listing before the listing does without it."""

_BATCH = 4096
"""Records that are read before they are written to the catalogue together: each write costs pages of its indexes."""

_READ_AHEAD = 2048
"""Records read ahead that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A record that cannot be read: the bytes of its file, and the error."""

    key: str
    data: bytes
    error: CasstoreError

    @property
    def name(self) -> str:
        """The name of its ref, from the key."""
        return names.parse_key(self.key).name


@dataclass(frozen=True, slots=True)
class Heads:
    """The newest records of one ref: those with its highest number, in their order.

    `number` is the highest that any record has, readable or not, 0 if there is none. `damaged` are newest
    records that cannot be read; `hidden` says that one of them may be the value.
    """

    number: int
    records: tuple[Record, ...] = ()
    damaged: tuple[Unread, ...] = ()
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """The catalogue's answer, and the newest records in question that cannot be read."""

    found: Any
    damaged: tuple[Unread, ...]


@dataclass(frozen=True, slots=True)
class _Folder:
    """One listing of a folder: its keys, the newest of each ref, and the records that were read for it."""

    keys: Sequence[str]
    newest: Sequence[Sequence[str]]
    read: Mapping[str, Kept]
    damaged: Mapping[str, Unread]

    def rows(self, folder: str) -> FolderRows:
        """Return what the catalogue is to hold of the folder."""
        heads = frozenset(key for key in chain(*self.newest) if key not in self.damaged)
        told = {key: self.read[key].data for key in heads if not is_unique(key)}
        told.update((key, item.data) for key, item in self.damaged.items())
        winners = (self.winner(group) for group in self.newest)
        return FolderRows(
            folder,
            _mark("\n".join(self.keys), told),
            heads,
            frozenset(key for key in winners if key is not None),
            tuple(self.read.values()),
            tuple(self.damaged),
        )

    def winner(self, group: Sequence[str]) -> str | None:
        """Return the key of the newest record of a ref; None if it cannot be read or determined."""
        if any(key in self.damaged and not is_unique(key) for key in group):
            return None  # Its write id is in the record.
        winner = max(group, key=self._write_id)
        return None if winner in self.damaged else winner

    def _write_id(self, key: str) -> str:
        return write_id_of(key) if is_unique(key) else self.read[key].record.write_id.hex()


class RefFolders:
    """Reads refs by their folders, with the catalogue's help where there is one."""

    def __init__(self, backend: Backend, catalogue: Catalogue) -> None:
        self._backend = backend
        self._is_far = is_far(backend)
        self._catalogue = catalogue

    def heads(self, name: str) -> Heads:
        """Return the records of one ref that have its highest number."""
        keys = self._keys_of(name)
        if not keys:
            return Heads(0)
        newest = newest_of(keys)
        kept = {key: record for key in newest if is_unique(key) and (record := self._kept(key)) is not None}
        found = self._load(keys, lambda: self._keys_of(name), held=kept)
        self._catalogue.keep([item for key, item in found.read.items() if is_unique(key)])
        records = [
            kept[key] if key not in found.read else found.read[key].record
            for key in chain(*found.newest)
            if key not in found.damaged
        ]
        return Heads(
            number=max((number_of(key) for key in chain(*found.newest)), default=0),
            records=tuple(sorted(records, key=lambda record: record.order)),
            damaged=tuple(found.damaged.values()),
            hidden=any(found.winner(group) is None for group in found.newest),
        )

    def history(self, name: str) -> tuple[list[Record], list[Unread]]:
        """Return every record of one ref in their order, and those that are damaged.

        One that is trimmed meanwhile is left out (§9).
        """
        keys = self._keys_of(name)
        kept = {key: record for key in keys if is_unique(key) and (record := self._kept(key)) is not None}
        records = list(kept.values())
        damaged: list[Unread] = []
        for item in ask_each(self._backend, self._read, [key for key in keys if key not in kept]):
            if isinstance(item, Kept):
                records.append(item.record)
            elif item is not None:
                damaged.append(item)
        return sorted(records, key=lambda record: record.order), damaged

    def answer(
        self, bases: Sequence[str], ask: Callable[[Mapping[str, bytes]], Answer | None]
    ) -> Answered | None:
        """List names below `bases`, update the catalogue to match, and return its answer.

        None where there is no catalogue, or other processes keep changing it.
        """
        marks: dict[str, bytes] = {}
        damaged: dict[str, Iterable[Unread]] = {}
        ahead: dict[str, Kept | Unread] = {}

        def changed(base: str) -> Iterator[tuple[str, Sequence[str]]]:
            known = self._catalogue.marks(base)
            for folder, keys in self._read_ahead(self._list(base), known, ahead):
                mark, unread = known.get(folder, (b"", ()))
                now = self._mark_of(keys, unread, ahead)
                if now is not None and now[0] == mark:
                    marks[folder], damaged[folder] = now
                else:
                    yield folder, keys

        for base in bases:
            if not self._catalogue.keeps:
                return None
            self._bring(changed(base), marks, damaged, ahead)
        for _ in range(_ROUNDS):
            answer = ask(marks)
            if answer is None:
                return None
            if not answer.stale:
                return Answered(answer.found, tuple(chain(*damaged.values())))
            for folder in answer.stale:
                marks.pop(folder, None)
                damaged.pop(folder, None)
            self._bring(
                ((folder, list(self._backend.list_keys(folder))) for folder in answer.stale), marks, damaged
            )
        return None

    def read_values(self, query: RefQuery, damaged: list[Unread]) -> Iterator[Record]:
        """Yield the value of every ref whose name begins as a query says, in no order, from the store alone.

        Newest records that cannot be read go to `damaged`.
        """
        ahead: dict[str, Kept | Unread] = {}
        for folder, listed in self._read_ahead(self._list(query.folder), {}, ahead):

            def wanted(keys: Iterable[str]) -> list[str]:
                by_ref = records_by_ref(keys).values()
                return [
                    key
                    for group in by_ref
                    if names.parse_key(group[0]).name.startswith(query.prefix)
                    for key in group
                ]

            def relist(folder: str = folder) -> list[str]:
                return wanted(self._backend.list_keys(folder))

            found = self._load(wanted(listed), relist, held=(), ahead=ahead)
            damaged += found.damaged.values()
            for group in found.newest:
                winner = found.winner(group)
                if winner is not None and found.read[winner].record.target is not None:
                    yield found.read[winner].record

    def _keys_of(self, name: str) -> list[str]:
        """Return the keys of one ref's records."""
        prefix = names.directory(name)
        folder = prefix[: prefix.rindex("/") + 1]
        keys = (key for key in self._backend.list_keys(folder) if key.startswith(prefix))
        return records_by_ref(keys).get(prefix[:-1], [])

    def _list(self, base: str) -> Iterator[tuple[str, list[str]]]:
        """Yield each folder of records below `base` with its keys, and with any foreign file that lies deeper."""
        folder = ""
        keys: list[str] = []
        for key in self._backend.list_keys(base):
            if not folder or not key.startswith(folder):
                found = folder_of(key)
                if found is None:
                    continue
                if keys:
                    yield folder, keys
                if found < folder:
                    # Invariant 8: a folder in two parts would lose the refs of one of them.
                    raise BackendError(f"{self._backend.url} lists {key} out of order.")
                folder, keys = found, []
            keys.append(key)
        if keys:
            yield folder, keys

    def _read_ahead(
        self,
        listed: Iterator[tuple[str, list[str]]],
        known: Mapping[str, tuple[bytes, tuple[str, ...]]],
        ahead: dict[str, Kept | Unread],
    ) -> Iterator[tuple[str, list[str]]]:
        """Yield the folders; if the store is far, read the records that their marks and rows will need into `ahead`, many at once."""
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
                mark, unread = known.get(folder, (b"", ()))
                joined = "\n".join(keys)
                exclusive = has_exclusive(joined)
                if exclusive or unread or mark != _mark(joined, {}):
                    held = self._catalogue.held(folder)
                    heads = chain(*newest_keys(keys))
                    wanted += [key for key in heads if not is_unique(key) or key not in held]
                if keys:
                    batch.append((folder, keys))
            ahead.clear()
            ahead.update((item.key, item) for item in ask_all(self._read, wanted) if item is not None)
            yield from batch

    def _bring(
        self,
        folders: Iterable[tuple[str, Sequence[str]]],
        marks: dict[str, bytes],
        damaged: dict[str, Iterable[Unread]],
        ahead: Mapping[str, Kept | Unread] | None = None,
    ) -> None:
        """Make the catalogue's rows of folders match their listings; add their marks to `marks` and their damage to `damaged`.

        `ahead` are records that were read since their folder was listed.
        Where another process drops rows meanwhile, the catalogue says so when it is asked.
        """
        batch: list[FolderRows] = []
        for folder, listed in folders:

            def relist(folder: str = folder) -> list[str]:
                return list(self._backend.list_keys(folder))

            found = self._load(listed, relist, held=self._catalogue.held(folder), ahead=ahead)
            rows = found.rows(folder)
            if not rows.empty:
                marks[folder] = rows.mark
            damaged[folder] = found.damaged.values()
            batch.append(rows)
            if sum(len(item.fresh) for item in batch) >= _BATCH:
                self._catalogue.bring(batch)
                batch.clear()
        self._catalogue.bring(batch)

    def _load(
        self,
        keys: Sequence[str],
        relist: Callable[[], Sequence[str]],
        *,
        held: Collection[str],
        ahead: Mapping[str, Kept | Unread] | None = None,
    ) -> _Folder:
        """Read the newest records of a listing, except those held; none of those returned is gone."""
        read: dict[str, Kept | Unread] = {}
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
                wanted = [key for key in chain(*newest) if key in read]
                return _Folder(
                    keys,
                    newest,
                    {key: item for key in wanted if isinstance(item := read[key], Kept)},
                    {key: item for key in wanted if isinstance(item := read[key], Unread)},
                )
            # Trimmed since the listing: what replaced it is in the store now (§9). A record that a second listing
            # names but that cannot be found is gone all the same: listings may lag behind.
            keys = [key for key in keys if key not in gone] if relisted else relist()
            relisted = True

    def _read(self, key: str) -> Kept | Unread | None:
        """Read a listed record; return None if it is gone."""
        data = b""
        try:
            data = self._backend.read(key)
            return Kept(key, data, record_format.decode(data, key=key))
        except ObjectNotFound:
            return None  # Trimmed since the listing.
        except (FormatError, BackendError) as error:
            # Invariant 8: reported to the caller, not skipped; an outage is an error of the listing.
            if isinstance(error, BackendError) and not self._is_of_one_file(error):
                raise
            return Unread(key, data, error)

    def _is_of_one_file(self, error: BackendError) -> bool:
        return is_bad_file(self._backend, error) or (not self._is_far and is_refused(error))

    def _kept(self, key: str) -> Record | None:
        data = self._catalogue.data(key)
        try:
            return None if data is None else record_format.decode(data, key=key)
        except FormatError:
            return None  # Invariant 4: the store's own record decides.

    def _mark_of(
        self, keys: Sequence[str], damaged: Sequence[str], ahead: Mapping[str, Kept | Unread]
    ) -> tuple[bytes, list[Unread]] | None:
        """Return the mark of a listing as it is now, and its unreadable records; None if it must be listed again.

        `damaged` are the keys of records that could not be read the last time.
        """
        told: dict[str, bytes] = {}
        unread: list[Unread] = []
        joined = "\n".join(keys)
        again = set(damaged)
        if has_exclusive(joined):
            again.update(key for key in chain(*newest_keys(keys)) if not is_unique(key))
        for key in sorted(again):
            item = ahead.get(key) or self._read(key)
            if item is None:
                return None
            told[key] = item.data
            if isinstance(item, Unread):
                unread.append(item)
        return _mark(joined, told), unread


def _mark(listed: str, told: Mapping[str, bytes]) -> bytes:
    """Return a digest of a listing and of the bytes of those records that may change under their names."""
    parts = [listed, *(f"{key} {digest(data).hex()}" for key, data in sorted(told.items()))]
    return digest("\n\n".join(parts).encode())
