"""Reads the newest records of refs, folder by folder, with the help of this machine's catalogue (design §9).

Every listing of refs lists their names; records are read only where the names in a folder are not those that the
catalogue's rows were made from. Files under names that no record can have are ignored. A record that cannot be read
keeps the place that its key gives it: no older one is used instead (invariant 8), and the caller learns of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from casstore.concurrency.fan_out import ask_all
from casstore.digest import digest
from casstore.errors import BackendError, FormatError, ObjectNotFound, UnsupportedVersion
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.record import Record
from casstore.objects import is_bad_file, is_refused
from casstore.refs.catalogue import FolderRows
from casstore.refs.keys import folder_of, is_unique, newest_keys, number_of, records_by_ref, write_id_of
from casstore.refs.rows import row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from casstore.backend.base import Backend
    from casstore.errors import CasstoreError
    from casstore.refs.catalogue import Catalogue
    from casstore.refs.rows import RefQuery, RefRow

_BATCH = 4096
"""Names that are listed before their records are read, many at once, and written to the catalogue together."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that cannot be read, and the error, which says what to do about it."""

    key: str
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
    damaged: tuple[Unreadable, ...] = ()
    hidden: bool = False

    @property
    def value(self) -> Record | None:
        """The newest record; None if there is none, it is a deletion, or it is hidden."""
        newest = self.records[-1] if self.records and not self.hidden else None
        return newest if newest is not None and newest.target is not None else None


@dataclass(frozen=True, slots=True)
class RefFolder:
    """The refs of one folder that have a value: those with a stored row, and those that are read for each listing.

    `read` are the records that were read for this listing, and `damaged` those that could not be.
    """

    stored: FolderRows
    reread: Mapping[str, Record]
    read: Mapping[str, Record]
    damaged: tuple[Unreadable, ...]

    def rows(
        self, containing: Iterable[bytes] = (), *, since: int | None = None, until: int | None = None
    ) -> Iterable[tuple[str, RefRow]]:
        """Return the row of each ref with its record's key; FolderRows.rows says which ones may be left out."""
        reread = ((key, row_of(record)) for key, record in self.reread.items())
        return chain(self.stored.rows(containing, since=since, until=until), reread)


@dataclass(slots=True)
class _Listing:
    """A listing of one folder, or of one ref's records, and what was read for it.

    `stored` are the folder's rows in the catalogue, `is_stored` says that they were made from the same names. Otherwise
    `rows` are those that are still true. `groups` has the newest records of each ref that has no such row; refs
    whose names do not begin with `prefix` are left out.
    """

    list_keys: Callable[[], Sequence[str]]
    keys: Sequence[str]
    stored: FolderRows | None = None
    prefix: str = ""
    digest: bytes = b""
    is_stored: bool = False
    rows: dict[str, RefRow] = field(default_factory=dict)
    groups: Sequence[Sequence[str]] = ()
    read: dict[str, Record | Unreadable] = field(default_factory=dict)
    is_repeated: bool = False

    def __post_init__(self) -> None:
        self._compare()

    @property
    def wanted(self) -> list[str]:
        """The records to read; those that may change under their names are read again."""
        return [key for key in chain(*self.groups) if not (is_unique(key) and key in self.read)]

    def repeat(self, gone: set[str]) -> None:
        """List again, because records that were listed are gone."""
        # Trimmed since the listing: what replaced them is in the store now (§9). A record that a second listing
        # names but that cannot be found is gone all the same: listings may lag behind.
        self.keys = [key for key in self.keys if key not in gone] if self.is_repeated else self.list_keys()
        self.is_repeated = True
        self._compare()

    def heads(self) -> Iterator[Heads]:
        """Yield the newest records of each ref that were read."""
        for group in self.groups:
            found = [self.read[key] for key in group]
            records = [item for item in found if isinstance(item, Record)]
            records.sort(key=lambda record: record.order)
            damaged = [item for item in found if isinstance(item, Unreadable)]
            # Any damaged one may have a target, and would then win over a deletion.
            last = records[-1].write_id.hex() if records and records[-1].target is not None else ""
            # The write id of a record without one in its key is in the record.
            hidden = any(not is_unique(item.key) or write_id_of(item.key) > last for item in damaged)
            yield Heads(number_of(group[0]), tuple(records), tuple(damaged), hidden)

    def _compare(self) -> None:
        self.digest = digest("\n".join(self.keys).encode())
        self.is_stored = self.stored is not None and self.stored.listing == self.digest
        if self.stored is not None and self.is_stored:
            self.groups = newest_keys(self.stored.reread)
            return
        known = dict(self.stored.rows()) if self.stored is not None else {}
        newest = newest_keys(self.keys)
        self.rows = {group[0]: known[group[0]] for group in newest if len(group) == 1 and group[0] in known}
        self.groups = [
            group
            for group in newest
            if group[0] not in self.rows
            and (not self.prefix or names.parse_key(group[0]).name.startswith(self.prefix))
        ]


class RefFolders:
    """Reads the refs of one store, with the catalogue's help where there is one."""

    def __init__(self, backend: Backend, catalogue: Catalogue) -> None:
        self._backend = backend
        self._catalogue = catalogue

    def heads(self, name: str) -> Heads:
        """Return the records of one ref that have its highest number."""
        listing = _Listing(lambda: self._keys_of(name), self._keys_of(name))
        self._catalogue.keep(self._load([listing]))
        return next(listing.heads(), Heads(0))

    def value(self, name: str) -> Record | None:
        """Return the value of one ref, None if it has none; raise what says why it cannot be read."""
        heads = self.heads(name)
        if heads.hidden:
            raise heads.damaged[0].error
        return heads.value

    def history(self, name: str) -> tuple[list[Record], list[Unreadable]]:
        """Return every record of one ref in their order, and those that are damaged.

        One that is trimmed meanwhile is left out (§9).
        """
        found, _ = self._read_all(self._keys_of(name))
        records = [item for item in found.values() if isinstance(item, Record)]
        damaged = [item for item in found.values() if isinstance(item, Unreadable)]
        return sorted(records, key=lambda record: record.order), damaged

    def read(self, base: str, *, prefix: str = "") -> Iterator[RefFolder]:
        """List the names below `base`, bring the catalogue up to date, and yield the folders.

        Without a catalogue, refs may be left out whose names do not begin with `prefix`.
        """
        after = base
        for last, batch in self._batches(base):
            known = self._catalogue.folders(after, last)
            after = last
            changes: dict[str, FolderRows | None] = dict.fromkeys(known.keys() - batch.keys())
            listings = {
                folder: _Listing(
                    partial(self._keys_in, folder),
                    keys,
                    known.get(folder),
                    "" if self._catalogue.keeps else prefix,
                )
                for folder, keys in batch.items()
            }
            fresh = self._load(list(listings.values()))
            found = [_folder(folder, listing) for folder, listing in listings.items()]
            changed = [folder for folder, listing in listings.items() if not listing.is_stored]
            changes.update(
                (item.stored.prefix, item.stored) for item in found if item.stored.prefix in changed
            )
            newest = {
                key for folder in changed for key in chain(listings[folder].rows, *listings[folder].groups)
            }
            self._catalogue.update(changes, fresh, newest)
            yield from found

    def records(self, folder: RefFolder, query: RefQuery) -> Iterator[Record]:
        """Yield the values of those refs in a folder whose names begin as a query says."""
        found = folder.rows(query.contained)
        keys = {row.name: key for key, row in found if row.name.startswith(query.prefix)}
        held = self._catalogue.records_in(folder.stored.prefix) if keys else {}
        for name, key in keys.items():
            record = folder.read.get(key) or self._verified(key, held.get(key), name)
            if record is not None:
                yield record

    def record(self, key: str, name: str) -> Record | None:
        """Return the record of a row."""
        return self._verified(key, self._catalogue.records([key]).get(key), name)

    def _verified(self, key: str, data: bytes | None, name: str) -> Record | None:
        """Return a record from the catalogue's bytes, or from the store if they are damaged or lost."""
        return _decoded(key, data) or self.value(name)

    def _keys_in(self, folder: str) -> list[str]:
        return list(self._backend.list_keys(folder))

    def _keys_of(self, name: str) -> list[str]:
        """Return the keys of one ref's records."""
        prefix = names.directory(name)
        folder = prefix[: prefix.rindex("/") + 1]
        keys = (key for key in self._backend.list_keys(folder) if key.startswith(prefix))
        return records_by_ref(keys).get(prefix[:-1], [])

    def _batches(self, base: str) -> Iterator[tuple[str, dict[str, list[str]]]]:
        """Yield the names below `base` by folder, and what no folder of the batch lies beyond."""
        batch: dict[str, list[str]] = {}
        size = 0
        for folder, keys in self._list(base):
            batch[folder] = keys
            size += len(keys)
            if size >= _BATCH:
                yield folder, batch
                batch, size = {}, 0
        yield f"{base[:-1]}0", batch

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

    def _load(self, listings: Sequence[_Listing]) -> dict[str, bytes]:
        """Read what listings want; return the bytes of the records that the catalogue lacks."""
        fresh: dict[str, bytes] = {}
        while listings:
            wanted = [listing.wanted for listing in listings]
            found, read = self._read_all(list(chain(*wanted)))
            fresh.update(read)
            repeated = []
            for listing, keys in zip(listings, wanted, strict=True):
                listing.read.update((key, item) for key in keys if (item := found[key]) is not None)
                if gone := {key for key in keys if found[key] is None}:
                    listing.repeat(gone)
                    repeated.append(listing)
            listings = repeated
        return fresh

    def _read_all(
        self, keys: Sequence[str]
    ) -> tuple[dict[str, Record | Unreadable | None], dict[str, bytes]]:
        """Return records by their keys, None for one that is gone, and the bytes of those that the catalogue lacks."""
        found: dict[str, Record | Unreadable | None] = {}
        if not keys:
            return found, {}
        for key, data in self._catalogue.records(key for key in keys if is_unique(key)).items():
            if (record := _decoded(key, data)) is not None:
                found[key] = record
        missing = [key for key in keys if key not in found]
        fresh = {}
        for key, (item, data) in zip(
            missing, ask_all(self._read, missing, at_once=self._backend.is_remote), strict=True
        ):
            found[key] = item
            if isinstance(item, Record) and is_unique(key):
                fresh[key] = data
        return found, fresh

    def _read(self, key: str) -> tuple[Record | Unreadable | None, bytes]:
        """Read a listed record and its bytes; None if it is gone."""
        try:
            data = self._backend.read(key)
            return record_format.decode(data, key=key), data
        except ObjectNotFound:
            return None, b""  # Trimmed since the listing.
        except (FormatError, BackendError) as error:
            # Invariant 8: reported to the caller, not skipped; an outage is an error of the listing.
            if isinstance(error, BackendError) and not self._is_of_one_file(error):
                raise
            return Unreadable(key, _advised(key, error)), b""

    def _is_of_one_file(self, error: BackendError) -> bool:
        return is_bad_file(self._backend, error) or (not self._backend.is_remote and is_refused(error))


def _folder(prefix: str, listing: _Listing) -> RefFolder:
    """Return the folder that a listing shows."""
    reread: dict[str, Record] = {}
    unsure: list[str] = []
    rows = listing.rows.copy()
    damaged: list[Unreadable] = []
    for group, heads in zip(listing.groups, listing.heads(), strict=True):
        # A damaged record may be put right, and the number of a tag recurs, with another value.
        is_sure = not heads.damaged and all(map(is_unique, group))
        damaged += heads.damaged
        if not is_sure:
            unsure += group
        value = heads.value
        if value is not None:
            key = next(key for key in group if listing.read[key] is value)
            if is_sure and not listing.is_stored:
                rows[key] = row_of(value)
            else:
                reread[key] = value
    stored = listing.stored
    if stored is None or not listing.is_stored:
        stored = FolderRows.of(prefix, listing.digest, unsure, rows)
    read = {key: item for key, item in listing.read.items() if isinstance(item, Record)}
    return RefFolder(stored, reread, read, tuple(damaged))


def _decoded(key: str, data: bytes | None) -> Record | None:
    """Return the record in the catalogue's bytes, None if they are damaged or lost."""
    try:
        return record_format.decode(data or b"", key=key)
    except FormatError:
        return None  # Invariant 4: the store's own record decides.


def _advised(key: str, error: CasstoreError) -> CasstoreError:
    """Return the error for a newest record that cannot be read, which says what to do about it."""
    if not isinstance(error, FormatError) or isinstance(error, UnsupportedVersion):
        return error
    name = names.parse_key(key).name
    return FormatError(
        f"The newest record of {name} cannot be read: {error} Alternatively, write the ref again, or delete it: "
        f"`casstore rm {name}`."
    )
