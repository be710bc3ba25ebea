"""Read-only verification of a store: says what is wrong, mends and deletes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import Hasher, digest, to_hex
from casstore.errors import BackendError, FormatError, IntegrityError, ObjectNotFound
from casstore.format import index as index_format
from casstore.format import marks, names
from casstore.format import pack as pack_format
from casstore.format import record as record_format
from casstore.format.rows import ROW, check_rows, row_ids
from casstore.ops.leftovers import find_leftovers
from casstore.store.buffers import new_buffer
from casstore.store.index import Located, read_footer
from casstore.store.keys import INDEX_PREFIX, PACK_PREFIX, pack_id_of, pack_key
from casstore.store.workers import TaskGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsspec import Callback

    from casstore.backend.base import Backend, Entry
    from casstore.format.pack import Footer
    from casstore.format.record import Record
    from casstore.ops.leftovers import Leftovers
    from casstore.store.store import Store

_READ = 8 << 20
_GC_PREFIX = "gc/"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, and what."""

    key: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was looked at, and every problem found; `ok` if there is none. Leftovers are no problem."""

    packs: int
    frames: int
    segments: int
    records: int
    models: int
    bytes_read: int
    read_data: bool
    problems: tuple[Problem, ...]
    leftovers: Leftovers

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(slots=True)
class _Progress:
    """The report in the making."""

    packs: int = 0
    frames: int = 0
    segments: int = 0
    records: int = 0
    models: int = 0
    bytes_read: int = 0
    problems: list[Problem] = field(default_factory=list)

    def attempt(self, key: str, action: Callable[[], None]) -> bool:
        """Run `action`; note damage and go on, so that one report names all of it."""
        try:
            action()
        except (IntegrityError, BackendError) as error:
            # Invariant 8: what cannot be read is a problem in the report, never skipped.
            self.problems.append(Problem(key, str(error)))
            return False
        return True


def check(store: Store, *, read_data: bool = False, callback: Callback | None = None) -> CheckReport:
    """Verify a store: every record, segment and footer, and that each model's objects are there.

    With `read_data`, every byte of every pack is read, hashed and decoded as well. Nothing is changed.
    Raises BackendError only if the store cannot be listed.
    """
    backend = store.backend
    progress = _Progress()
    # Against the order of writing (invariant 3): what a record found here needs is listed after it.
    records = _check_records(backend, progress)
    entries = list(backend.list(""))
    packs = [entry for entry in entries if entry.key.startswith(PACK_PREFIX)]
    if callback is not None:
        callback.set_size(sum(entry.size for entry in packs))
    footers = _check_packs(store, packs, progress, read_data=read_data, callback=callback)
    for entry in entries:
        if entry.key.startswith(INDEX_PREFIX):
            progress.segments += 1
            progress.attempt(entry.key, lambda key=entry.key: _check_segment(backend, key, footers))  # type: ignore[misc]
    _check_models(store, records, footers, progress)
    _check_others(backend, entries, progress)
    return CheckReport(
        packs=progress.packs,
        frames=progress.frames,
        segments=progress.segments,
        records=progress.records,
        models=progress.models,
        bytes_read=progress.bytes_read,
        read_data=read_data,
        problems=tuple(progress.problems),
        leftovers=find_leftovers(store),
    )


def _check_packs(
    store: Store, packs: list[Entry], progress: _Progress, *, read_data: bool, callback: Callback | None
) -> dict[bytes, Footer]:
    footers: dict[bytes, Footer] = {}

    def one(entry: Entry) -> Footer:
        pack_id = pack_id_of(entry.key)
        pack_format.check_header(
            store.backend.read(entry.key, start=0, length=pack_format.HEADER_SIZE), key=entry.key
        )
        if read_data:
            _check_whole(store.backend, entry, pack_id)
        footer = read_footer(store.backend, pack_id)
        if read_data:
            _check_frames(store, pack_id, footer)
        return footer

    with TaskGroup() as tasks:
        for entry, task in [(entry, tasks.submit(one, entry)) for entry in packs]:
            progress.packs += 1

            def take(entry: Entry = entry, footer: Callable[[], Footer] = task.result) -> None:
                footers[pack_id_of(entry.key)] = footer()

            if progress.attempt(entry.key, take):
                progress.frames += len(footers[pack_id_of(entry.key)].rows)
            progress.bytes_read += entry.size if read_data else 0
            if callback is not None:
                callback.relative_update(entry.size)
    return footers


def _check_whole(backend: Backend, entry: Entry, pack_id: bytes) -> None:
    hasher = Hasher()
    buffer = new_buffer(_READ)
    at = 0
    while at < entry.size:
        count = backend.read_into(entry.key, buffer[: min(_READ, entry.size - at)], start=at)
        if count == 0:
            raise FormatError(f"{entry.key} became shorter while it was read.")
        hasher.update(buffer[:count])
        at += count
    if hasher.digest() != pack_id:
        raise FormatError(
            f"{entry.key} does not have the hash that names it: some byte in it changed. "
            "Restore it from another copy, or move it out of the store and add its models again."
        )


def _check_frames(store: Store, pack_id: bytes, footer: Footer) -> None:
    """Decode every frame where the footer says that it is, and verify it."""
    rows = footer.rows.copy()
    rows["pack"] = store.index.number_of(pack_id)
    located = Located(rows, np.zeros(len(rows), np.int32), (footer.bases,))
    start = 0
    while start < len(rows):
        stop, size = start, 0
        while stop < len(rows) and (size == 0 or size + int(rows["raw"][stop]) <= _READ):
            size += int(rows["raw"][stop])
            stop += 1
        edges = [0, *accumulate(rows["raw"][start:stop].tolist())]
        store.objects.fill(located, range(start, stop), new_buffer(edges[-1]), edges, elsewhere=False)
        start = stop


def _check_segment(backend: Backend, key: str, footers: dict[bytes, Footer]) -> None:
    """Check a segment's bytes, and that each row says what the pack's own footer says."""
    try:
        data = memoryview(backend.read(key))
    except ObjectNotFound:
        return  # Invariant 5: merged into another one since the listing; no hint is ever missed.
    if f"{INDEX_PREFIX}{to_hex(digest(data))}" != key:
        raise FormatError(
            f"{key} does not have the hash that names it; remove that file, the packs rebuild it."
        )
    shape = index_format.decode_shape(data, key=key)
    if shape.size != len(data):
        raise FormatError(f"{key} has the wrong length; remove that file, the packs rebuild it.")
    head = index_format.decode_head(data, shape, key=key)
    bases = index_format.decode_bases(data[shape.bases_begin :], shape, key=key)
    rows = np.frombuffer(data[shape.rows_begin : shape.bases_begin], ROW)
    check_rows(rows, lists=len(bases), packs=len(head.packs), key=key)
    if index_format.encode(rows, bases, head.packs) != data:
        raise FormatError(f"{key} is not in order; remove that file, the packs rebuild it.")
    fields = ["id", "offset", "stored", "raw", "kind", "encoding", "rank"]
    for position, pack_id in enumerate(head.packs):
        footer = footers.get(pack_id)
        if footer is None:
            continue  # Invariant 5: rows whose pack is gone mean nothing; a damaged pack is reported itself.
        mine = np.sort(rows[rows["pack"] == position][fields], order="offset")
        if not np.array_equal(mine, np.sort(footer.rows[fields], order="offset")):
            raise FormatError(
                f"{key} disagrees with {pack_key(pack_id)}; remove that file, the packs rebuild it."
            )


def _check_records(backend: Backend, progress: _Progress) -> dict[str, Record]:
    """Read every record from the store itself; return the newest one of each ref."""
    newest: dict[str, Record] = {}
    for entry in backend.list(names.PREFIX):
        progress.records += 1

        def take(key: str = entry.key) -> None:
            record = record_format.decode(backend.read(key), key=key)
            held = newest.get(record.name)
            if held is None or held.order < record.order:
                newest[record.name] = record

        progress.attempt(entry.key, take)
    return newest


def _check_models(
    store: Store, records: dict[str, Record], footers: dict[bytes, Footer], progress: _Progress
) -> None:
    """Check that every object that a model needs has a frame in a pack that can be read."""
    present = {
        object_id: raw
        for footer in footers.values()
        for object_id, raw in zip(row_ids(footer.rows), footer.rows["raw"].tolist(), strict=True)
    }
    done: set[bytes] = set()
    for name, record in sorted(records.items()):
        if record.target is None:
            continue
        key = names.directory(name).rstrip("@")
        if not names.names_model(name):
            progress.attempt(key, lambda record=record: _check_manifest(store, record, present))  # type: ignore[misc]
        elif record.manifest is not None and record.manifest not in done:
            done.add(record.manifest)
            progress.models += 1
            progress.attempt(key, lambda record=record: _check_model(store, record, present))  # type: ignore[misc]


def _check_manifest(store: Store, record: Record, present: dict[bytes, int]) -> None:
    """Check what the record of a run or an evaluation names; the models that it tells of may be gone (§8)."""
    if record.manifest is not None and record.manifest not in present:
        raise IntegrityError(
            f"{record.name}: its manifest is missing, {record.manifest.hex()}. Restore the packs, or delete the ref."
        )
    store.manifest_of(record)


def _check_model(store: Store, record: Record, present: dict[bytes, int]) -> None:
    name, model = record.name, store.model_of(record)
    assert record.manifest is not None
    # A store keeps models that it has read: what makes them up must still be there, too.
    for object_id in (record.manifest, bytes.fromhex(model.model_id), *model.layout_ids):
        if object_id not in present:
            raise IntegrityError(
                f"{name}: its tree or a layout is missing, {object_id.hex()}. "
                "Add the model again, or restore the packs."
            )
    for entry, layout in zip(model.tree.files, model.layouts, strict=True):
        chunks = layout.chunk_ids()
        lengths = [present.get(chunk) for chunk in chunks]
        missing = [chunk for chunk, length in zip(chunks, lengths, strict=True) if length is None]
        if missing:
            raise IntegrityError(
                f"{name}: {len(missing)} of {layout.chunks} chunks of {entry.path} are missing, "
                f"{missing[0].hex()} first. Add the model again, or restore the packs."
            )
        if lengths != layout.lengths.tolist():
            raise FormatError(
                f"{name}: the layout of {entry.path} does not fit its chunks. Add the model again."
            )


def _check_others(backend: Backend, entries: list[Entry], progress: _Progress) -> None:
    known = (PACK_PREFIX, INDEX_PREFIX, names.PREFIX, _GC_PREFIX, marks.QUARANTINE_PREFIX)

    def identity() -> None:
        marks.decode_format(backend.read(marks.FORMAT_KEY))

    progress.attempt(marks.FORMAT_KEY, identity)
    for entry in entries:
        if entry.key.startswith(marks.TOMBSTONE_PREFIX):

            def tombstone(key: str = entry.key) -> None:
                marks.decode_tombstone(backend.read(key), key=key)

            progress.attempt(entry.key, tombstone)
        elif entry.key.startswith(marks.QUARANTINE_PREFIX):

            def quarantine(key: str = entry.key) -> None:
                marks.decode_quarantine(backend.read(key), key=key)

            progress.attempt(entry.key, quarantine)
        elif entry.key != marks.FORMAT_KEY and not entry.key.startswith(known):
            progress.problems.append(
                Problem(entry.key, f"{entry.key} does not belong to a store; move it out.")
            )
