"""Read-only verification of a store: reports problems, changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.ops.check.models import check_what_refs_need
from casstore.ops.check.others import check_foreign, check_marks
from casstore.ops.check.packs import check_packs
from casstore.ops.check.places import Place, place_of
from casstore.ops.check.records import check_records
from casstore.ops.check.report import CheckReport, Problem, Progress
from casstore.ops.leftovers import Leftovers, find_leftovers

if TYPE_CHECKING:
    from fsspec import Callback

    from casstore.store.model_store import ModelStore

__all__ = ["CheckReport", "Problem", "check"]


def check(store: ModelStore, *, read_data: bool = False, callback: Callback | None = None) -> CheckReport:
    """Verify a store: every record, segment and footer, and that each model's objects are there.

    With `read_data`, every byte of every pack is read, hashed and decoded as well. Nothing is changed.
    Raises BackendError only if the store cannot be listed.
    """
    backend = store.backend
    progress = Progress()
    # In the reverse order of writing (invariant 3), so that whatever a record needs is listed after the record.
    records = check_records(backend, progress)
    entries = [(place_of(entry.key), entry) for entry in backend.list("")]
    packs = [entry for place, entry in entries if place is Place.PACK]
    if callback is not None:
        callback.set_size(sum(entry.size for entry in packs))
    footers = check_packs(store, packs, progress, read_data=read_data, callback=callback)
    for place, entry in entries:
        if place is Place.SEGMENT:
            progress.segments += 1
            progress.attempt(entry.key, lambda key=entry.key: store.objects.check_segment(key, footers))  # type: ignore[misc]
    check_what_refs_need(store, records, packs, footers, progress)
    check_marks(backend, [(place, entry.key) for place, entry in entries], progress)
    check_foreign(backend, [(place, entry.key) for place, entry in entries], progress)
    leftovers: list[Leftovers] = []
    progress.attempt(backend.url, lambda: leftovers.append(find_leftovers(store)))
    return CheckReport(
        packs=progress.packs,
        frames=progress.frames,
        segments=progress.segments,
        records=progress.records,
        models=progress.models,
        bytes_read=progress.bytes_read,
        read_data=read_data,
        problems=tuple(progress.problems),
        foreign=tuple(progress.foreign),
        foreign_files=progress.foreign_files,
        leftovers=leftovers[0] if leftovers else Leftovers(0, 0, 0, 0, complete=False),
    )
