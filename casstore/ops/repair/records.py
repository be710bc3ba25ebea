"""The newest record of each ref, read from the store itself, and what one that is damaged said."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from casstore.concurrency.fan_out import ask_all
from casstore.digest import is_hex
from casstore.errors import BackendError, CasstoreError, FormatError, ObjectNotFound, UnsupportedVersion
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.record import Record
from casstore.objects import is_bad_file
from casstore.ops.repair.report import RecordRepair
from casstore.refs.catalogue import Catalogue
from casstore.refs.keys import is_unique, newest_keys, write_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.backend.base import Backend
    from casstore.store.model_store import ModelStore
    from casstore.store.reading.other_stores import OtherStores

_BATCH = 1024


@dataclass(slots=True)
class Head:
    """The newest records of one ref: those that can be read, and for those that cannot, the reason by key.

    `hidden` says that one of the latter may be the ref's value.
    """

    name: str
    records: list[Record] = field(default_factory=list)
    damaged: dict[str, FormatError] = field(default_factory=dict)

    @property
    def hidden(self) -> str | None:
        """The key of a damaged record that may be the value, None if none may."""
        last = max((record.write_id.hex() for record in self.records), default="")
        return next((key for key in self.damaged if not is_unique(key) or write_id_of(key) > last), None)


def read_heads(backend: Backend) -> list[Head]:
    """Read the newest record of every ref from the store, by name; never from this machine's catalogue."""
    groups = newest_keys(backend.list_keys(names.PREFIX))
    heads: list[Head] = []
    for start in range(0, len(groups), _BATCH):
        batch = groups[start : start + _BATCH]
        keys = [key for group in batch for key in group]
        found = dict(
            zip(keys, ask_all(partial(_read, backend), keys, at_once=backend.is_remote), strict=True)
        )
        for group in batch:
            head = Head(names.parse_key(group[0]).name)
            for key in group:
                item = found[key]
                if isinstance(item, Record):
                    head.records.append(item)
                elif item is not None:
                    head.damaged[key] = item
            heads.append(head)
    return sorted(heads, key=lambda head: head.name)


def _read(backend: Backend, key: str) -> Record | FormatError | None:
    try:
        return record_format.decode(backend.read(key), key=key)
    except ObjectNotFound:
        return None  # Trimmed since the listing: it was replaced (design §9).
    except FormatError as error:
        return error  # Invariant 8: reported, and no older one is used instead.
    except BackendError as error:
        if not is_bad_file(backend, error):
            raise
        return FormatError(str(error))  # Invariant 8: as above.


def look_up(store: ModelStore, head: Head, others: OtherStores) -> tuple[RecordRepair, Record | None]:
    """Say what the damaged newest record of a ref said; return the record that certainly has that value, if there is one.

    Certain is the copy of this very record in this machine's catalogue, or one of another store that was copied from it or
    to it, or a value that the ref's own name gives.
    """
    key = head.hidden
    assert key is not None
    reason = str(head.damaged[key])
    if isinstance(head.damaged[key], UnsupportedVersion):
        return RecordRepair(head.name, key, reason), None
    write_id = write_id_of(key) if is_unique(key) else None
    candidates: dict[str, None] = {}
    for place, record in _known(store, key, head.name, others):
        exact = write_id is not None and write_id in (
            record.write_id.hex(),
            record.origin.hex() if record.origin else "",
        )
        if exact or _is_in_name(record):
            model_id = record.target.hex() if record.target is not None else None
            return RecordRepair(head.name, key, reason, place, model_id), record
        said = record.target.hex() if record.target is not None else "deleted"
        candidates[f"{said} ({place})"] = None
    return RecordRepair(head.name, key, reason, candidates=tuple(candidates)), None


def _known(store: ModelStore, key: str, name: str, others: OtherStores) -> Iterator[tuple[str, Record]]:
    """Yield records that may have the value of a damaged one, and where each was found, the likeliest first."""
    for data in Catalogue(store.machine).records([key]).values():
        try:
            yield "this machine's catalogue", record_format.decode(data, key=key)
        except FormatError:  # noqa: PERF203  # there is one at most
            continue  # Invariant 4: the copy is damaged too.
    for place, other in others.stores():
        try:
            found = other.history(name)
        except CasstoreError as error:
            # Invariant 11: the report says so.
            others.fail(place, error)
            continue
        yield from ((place, record) for record in reversed(found))
    yield from (("an older record", record) for record in reversed(_elders(store, name)))


def _elders(store: ModelStore, name: str) -> list[Record]:
    backend = store.backend
    prefix = names.directory(name)
    folder = prefix[: prefix.rindex("/") + 1]
    keys = [key for key in backend.list_keys(folder) if key.startswith(prefix)]
    found = [_read(backend, key) for key in keys]
    return sorted((item for item in found if isinstance(item, Record)), key=lambda record: record.order)


def _is_in_name(record: Record) -> bool:
    """Say whether the ref of a record is named by the model's id, so that it can have no other value."""
    own = record.name.rpartition("/")[2]
    return is_hex(own) and record.target is not None and record.target.hex() == own
