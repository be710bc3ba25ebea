"""Read-only verification of a store: reports problems, changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.concurrency.bandwidth import TokenBucket
from casstore.ops.check.models import check_what_refs_need
from casstore.ops.check.others import check_foreign, check_marks
from casstore.ops.check.packs import check_packs
from casstore.ops.check.places import Place, place_of
from casstore.ops.check.reading import DataRead, Reading, share_of
from casstore.ops.check.records import check_records
from casstore.ops.check.report import CheckReport, Problem, Progress
from casstore.ops.leftovers import Leftovers, find_leftovers

if TYPE_CHECKING:
    from fsspec import Callback

    from casstore.store.model_store import ModelStore

__all__ = ["CheckReport", "DataRead", "Problem", "check"]


def check(
    store: ModelStore,
    *,
    read_data: bool | float = False,
    bandwidth_limit: float | None = None,
    callback: Callback | None = None,
) -> CheckReport:
    """Verify a store: every record, segment and footer, and that each model's objects are there.

    With `read_data`, every byte of every pack is read, hashed and decoded as well; with a share, 0.05 for a twentieth
    of the stored bytes, the packs that this machine has not read for the longest time. Nothing in the store is changed.
    `bandwidth_limit` is in bytes per second. Raises ConfigError for what is no share, BackendError only if the store
    cannot be listed.
    """
    backend = store.backend
    progress = Progress()
    share, bucket = share_of(read_data), TokenBucket(bandwidth_limit)
    # In the reverse order of writing (invariant 3), so that whatever a record needs is listed after the record.
    records = check_records(backend, progress)
    wrong = len(progress.problems)
    entries = [(place_of(entry.key), entry) for entry in backend.list("")]
    packs = [entry for place, entry in entries if place is Place.PACK]
    reading = Reading(store.machine, packs, share)
    if callback is not None:
        callback.set_size(reading.bytes_chosen or sum(entry.size for entry in packs))
    try:
        footers = check_packs(store, packs, progress, reading=reading, pace=bucket.take, callback=callback)
    finally:
        reading.keep()
    for place, entry in entries:
        if place is Place.SEGMENT:
            progress.segments += 1
            progress.attempt(entry.key, lambda key=entry.key: store.objects.check_segment(key, footers))  # type: ignore[misc]
    before = len(progress.problems)
    check_what_refs_need(store, records, packs, footers, progress)
    if wrong or len(progress.problems) > before:
        # Invariant 8: what is lost, or what a record that cannot be read needs, may be in a quarantined pack.
        progress.problems += progress.apart
        progress.apart.clear()
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
        deltas=progress.deltas,
        deltas_without_bases=progress.deltas_without_bases,
        read_data=bool(share),
        data=reading.result() if share else None,
        problems=tuple(progress.problems),
        apart=tuple(progress.apart),
        notes=tuple(progress.notes),
        foreign=tuple(progress.foreign),
        foreign_files=progress.foreign_files,
        leftovers=leftovers[0] if leftovers else Leftovers(0, 0, 0, 0, complete=False),
    )
