"""Checks records, and that what they name can be read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from casstore.concurrency.fan_out import ask_all
from casstore.digest import digest
from casstore.errors import BackendError, FormatError, IntegrityError, ObjectNotFound
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.record import Record
from casstore.format.rows import row_ids
from casstore.objects import decodable
from casstore.refs.keys import is_record

if TYPE_CHECKING:
    from collections.abc import Collection

    from casstore.backend.base import Backend
    from casstore.errors import CasstoreError
    from casstore.objects import Footer
    from casstore.ops.check.report import Progress
    from casstore.store.model_store import ModelStore

_BATCH = 1024

_WAY_BACK = "Add the model again, restore the packs, or run `casstore repair`, which looks for other copies."


@dataclass(slots=True)
class _Heads:
    """The newest records of one ref, without what is checked already."""

    seq: int
    records: list[Record]


def check_records(backend: Backend, progress: Progress) -> dict[str, list[Record]]:
    """Read every record from the store itself; return the newest ones of each ref that name objects in packs."""
    heads: dict[str, _Heads] = {}
    keys = [key for key in backend.list_keys(names.PREFIX) if is_record(key)]
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        for key, found in zip(
            batch, ask_all(partial(_read, backend), batch, at_once=backend.is_remote), strict=True
        ):
            if isinstance(found, ObjectNotFound):
                continue  # Trimmed since the listing (design §9).
            progress.records += 1

            def take(found: Record | CasstoreError = found) -> None:
                if not isinstance(found, Record):
                    raise found
                _take(heads, found)

            progress.attempt(key, take)
    return {name: item.records for name, item in heads.items()}


def _read(backend: Backend, key: str) -> Record | CasstoreError:
    try:
        return record_format.decode(backend.read(key), key=key)
    except (IntegrityError, BackendError) as error:
        return error  # Invariant 8: a problem in the report.


def _take(heads: dict[str, _Heads], record: Record) -> None:
    """Check what lies inside a record, and keep it if it is one of the newest of its ref."""
    held = heads.setdefault(record.name, _Heads(record.seq, []))
    if held.seq < record.seq:
        held.seq, held.records = record.seq, []
    if held.seq == record.seq and record.target is not None and record.inline is None:
        held.records.append(replace(record, metadata={}))
    if record.inline is not None and digest(record.inline) != record.target:
        raise FormatError(f"The manifest inside {record.name} is not the one that it names.")


def check_models(
    store: ModelStore, records: dict[str, list[Record]], footers: dict[bytes, Footer], progress: Progress
) -> None:
    """Check that every object that a model needs has a frame in a pack that can be read."""
    present, without_bases = _present(footers.values(), progress)
    done: set[bytes] = set()
    models: set[bytes | None] = set()
    for name, heads in sorted(records.items()):
        key = place_of_ref(name)
        for record in heads:
            if not names.names_model(name):
                progress.attempt(key, lambda record=record: _check_manifest(store, record, present))  # type: ignore[misc]
            elif record.manifest is not None and record.manifest not in done:
                done.add(record.manifest)
                # One model has several manifests where it was added with other files executable.
                progress.models += record.target not in models
                models.add(record.target)
                progress.attempt(key, partial(_check_model, store, record, present, without_bases))


def place_of_ref(name: str) -> str:
    """Return what stands in a report for the records of a ref."""
    return names.directory(name).rstrip("@")


def _present(footers: Collection[Footer], progress: Progress) -> tuple[dict[bytes, int], dict[bytes, bytes]]:
    """Return the plain length of each object of which a frame decodes with frames of lower rank (invariant 7).

    Also the deltas that lack a base, with the first such base of each.
    """
    present = {
        object_id: raw
        for footer in footers
        for object_id, raw in zip(row_ids(footer.rows), footer.rows["raw"].tolist(), strict=True)
    }
    without_bases: dict[bytes, bytes] = {}
    deltas = [
        (footer.rows["id"][at].tobytes(), int(footer.rows["rank"][at]), footer.bases.get(int(number)))
        for footer in footers
        for at, number in enumerate(footer.rows["bases"].tolist())
        if number
    ]
    progress.deltas, progress.deltas_without_bases = len(deltas), 0
    if deltas:
        concerned = {item[0] for item in deltas}.union(*(item[2] for item in deltas))
        alone = [
            (object_id, 0, ())
            for footer in footers
            for object_id, number in zip(row_ids(footer.rows), footer.rows["bases"].tolist(), strict=True)
            if not number and object_id in concerned
        ]
        ranks = decodable([*alone, *deltas])
        for object_id, rank, bases in deltas:
            lacking = next((base for base in bases if ranks.get(base, rank) >= rank), None)
            if lacking is not None:
                progress.deltas_without_bases += 1
                if object_id not in ranks:
                    without_bases[object_id] = lacking
                    present.pop(object_id, None)
    return present, without_bases


def _check_manifest(store: ModelStore, record: Record, present: dict[bytes, int]) -> None:
    """Check what the record of a run or an evaluation names; the models that it names may be gone (§8)."""
    if record.manifest is not None and record.manifest not in present:
        raise IntegrityError(
            f"{record.name}: its manifest is missing, {record.manifest.hex()}. Restore the packs, or delete the ref."
        )
    store.manifest_of(record)


def _check_model(
    store: ModelStore, record: Record, present: dict[bytes, int], without_bases: dict[bytes, bytes]
) -> None:
    name, model = record.name, store.model_of(record)
    assert record.manifest is not None
    # A store caches models in memory, so check that their objects are still there, too.
    for object_id in (record.manifest, bytes.fromhex(model.model_id), *model.layout_ids):
        if object_id not in present:
            raise IntegrityError(f"{name}: its tree or a layout is missing, {object_id.hex()}. {_WAY_BACK}")
    for entry, layout in zip(model.tree.files, model.layouts, strict=True):
        chunks = layout.chunk_ids()
        lengths = [present.get(chunk) for chunk in chunks]
        missing = [chunk for chunk, length in zip(chunks, lengths, strict=True) if length is None]
        if missing:
            base = without_bases.get(missing[0])
            why = f" (a delta, whose base {base.hex()} is missing)" if base is not None else ""
            raise IntegrityError(
                f"{name}: {len(missing)} of {layout.chunks} chunks of {entry.path} are missing, "
                f"{missing[0].hex()} first{why}. {_WAY_BACK}"
            )
        if lengths != layout.lengths.tolist():
            raise FormatError(
                f"{name}: the layout of {entry.path} does not fit its chunks. Add the model again."
            )
