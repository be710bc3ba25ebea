"""Checks packs and index segments: their bytes, their form, and that they agree."""

from __future__ import annotations

import contextlib
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.buffers import new_buffer
from casstore.concurrency.workers import TaskGroup
from casstore.digest import Hasher, digest
from casstore.errors import FormatError, ObjectNotFound, UnsupportedVersion
from casstore.format import index as index_format
from casstore.format import marks
from casstore.format import pack as pack_format
from casstore.format.rows import ROW, check_rows
from casstore.objects.footers import read_footer
from casstore.objects.index.index import Located
from casstore.objects.keys import index_id_of, pack_id_of, pack_key
from casstore.objects.publication import read_quarantine

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsspec import Callback

    from casstore.backend.base import Backend, Entry
    from casstore.format.pack import Footer
    from casstore.ops.check.report import Progress
    from casstore.store.model_store import ModelStore

_READ = 8 << 20

_DAMAGED = (
    "Restore it from another copy; or run `casstore quarantine REF` for each model that is in it, then add the model "
    "again, or push it here with --overwrite from a store that has it."
)
_APART = "It is set apart, and nothing new relies on it. Once this check names no model, move it and {note} out of the store."


def check_packs(
    store: ModelStore, packs: list[Entry], progress: Progress, *, read_data: bool, callback: Callback | None
) -> dict[bytes, Footer]:
    """Check every pack; return the footers of those that are whole."""
    footers: dict[bytes, Footer] = {}
    apart = read_quarantine(store.backend)

    def one(entry: Entry) -> Footer:
        pack_id = pack_id_of(entry.key)
        try:
            footer = _check_form(store.backend, entry, pack_id, read_data=read_data)
        except UnsupportedVersion:
            raise
        except FormatError as error:
            advice = _APART.format(note=marks.quarantine_key(pack_id)) if pack_id in apart else _DAMAGED
            raise FormatError(f"{error} {advice}") from error
        if read_data:
            _check_frames(store, pack_id, footer)
        return footer

    with TaskGroup() as tasks:
        for entry, task in [(entry, tasks.submit(one, entry)) for entry in packs]:
            progress.packs += 1

            def take(entry: Entry = entry, footer: Callable[[], Footer] = task.result) -> None:
                # Invariant 5: a pack that went since the listing does not exist; a model that lacks it is named.
                with contextlib.suppress(ObjectNotFound):
                    footers[pack_id_of(entry.key)] = footer()
                    progress.frames += len(footers[pack_id_of(entry.key)].rows)

            progress.attempt(entry.key, take)
            progress.bytes_read += entry.size if read_data else 0
            if callback is not None:
                callback.relative_update(entry.size)
    return footers


def _check_form(backend: Backend, entry: Entry, pack_id: bytes, *, read_data: bool) -> Footer:
    # A damaged version number must not pass for a newer one: the hash decides first, where it is known.
    if read_data:
        _check_whole(backend, entry, pack_id)
    head = backend.read(entry.key, start=0, length=pack_format.HEADER_SIZE)
    pack_format.check_header(head, key=entry.key)
    return read_footer(backend, pack_id)


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
        raise FormatError(f"{entry.key} does not have the hash that names it: some byte in it changed.")


def _check_frames(store: ModelStore, pack_id: bytes, footer: Footer) -> None:
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


def check_segment(backend: Backend, key: str, footers: dict[bytes, Footer]) -> None:
    """Check a segment's bytes, and that each row agrees with the pack's own footer."""
    segment_id = index_id_of(key)
    try:
        data = memoryview(backend.read(key))
    except ObjectNotFound:
        return  # Invariant 5: it was merged into another one since the listing; a missing hint is not a problem.
    if digest(data) != segment_id:
        raise FormatError(
            f"{key} does not have the hash that names it. Remove that file; it is rebuilt from the packs."
        )
    shape = index_format.decode_shape(data, key=key)
    if shape.size != len(data):
        raise FormatError(f"{key} has the wrong length. Remove that file; it is rebuilt from the packs.")
    head = index_format.decode_head(data, shape, key=key)
    bases = index_format.decode_bases(data[shape.bases_begin :], head, key=key)
    rows = np.frombuffer(data[shape.rows_begin : shape.bases_begin], ROW)
    check_rows(rows, lists=len(bases), packs=len(head.packs), key=key)
    if index_format.encode(rows, bases, dict(zip(head.packs, head.sizes, strict=True))) != data:
        raise FormatError(f"{key} is not in order. Remove that file; it is rebuilt from the packs.")
    fields = ["id", "offset", "stored", "raw", "kind", "encoding", "rank"]
    for position, pack_id in enumerate(head.packs):
        footer = footers.get(pack_id)
        if footer is None:
            continue  # Invariant 5: rows whose pack is gone mean nothing; a damaged pack is reported itself.
        mine = np.sort(rows[rows["pack"] == position][fields], order="offset")
        theirs = np.sort(footer.rows[fields], order="offset")
        if footer.pack_size != head.sizes[position] or not np.array_equal(mine, theirs):
            raise FormatError(
                f"{key} disagrees with {pack_key(pack_id)}. Remove that file; it is rebuilt from the packs."
            )
