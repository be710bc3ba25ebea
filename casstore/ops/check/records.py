"""Checking records, and that what they name can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.errors import FormatError, IntegrityError
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.rows import row_ids

if TYPE_CHECKING:
    from casstore.backend.base import Backend
    from casstore.format.pack import Footer
    from casstore.format.record import Record
    from casstore.ops.check.report import Progress
    from casstore.store.store import Store


def check_records(backend: Backend, progress: Progress) -> dict[str, Record]:
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


def check_models(
    store: Store, records: dict[str, Record], footers: dict[bytes, Footer], progress: Progress
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
