"""Repairs a store: finds what is lost, takes good copies from wherever there are some, and says what stays missing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from casstore.concurrency.bandwidth import TokenBucket
from casstore.concurrency.workers import TaskGroup
from casstore.errors import BackendError, IntegrityError, RefConflict, RefNotFound
from casstore.format import names
from casstore.objects import PACK_PREFIX, pack_id_of
from casstore.ops.check.places import Place, place_of
from casstore.ops.quarantine import Search, set_apart
from casstore.ops.repair.healing import Healer
from casstore.ops.repair.records import look_up, read_heads
from casstore.ops.repair.report import Health, RecordRepair, RefHealth, RepairReport
from casstore.ops.repair.segments import IndexDamage, find_index_damage, mend_index
from casstore.store.dependencies import needs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fsspec import Callback

    from casstore.backend.base import Entry
    from casstore.format.record import Record
    from casstore.objects import Publication
    from casstore.ops.repair.records import Head
    from casstore.store.model_store import ModelStore
    from casstore.store.reading.other_stores import OtherStores

_ROUNDS = 4
"""Times that a description is read: a manifest that was found again names layouts, and those name chunks."""


@dataclass(slots=True)
class _Ref:
    """One ref: the records that it is judged by, and what is known of one that is damaged."""

    head: Head
    records: list[Record]
    lost: RecordRepair | None = None
    certain: Record | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether nobody knows the value of this ref."""
        return self.lost is not None and self.certain is None


@dataclass(frozen=True, slots=True)
class _Summary:
    """What was found of what one manifest describes; `files` stay incomplete."""

    objects: int
    healed: int
    missing: int
    files: tuple[str, ...]
    complete: bool


@dataclass(slots=True)
class _Repair:
    store: ModelStore
    others: OtherStores
    search: Search
    pace: Callable[[int], None]
    callback: Callback | None
    problems: list[str] = field(default_factory=list)

    def read_packs(self, packs: Sequence[Entry]) -> None:
        """Read all packs whole."""
        if self.callback is not None:
            self.callback.set_size(sum(entry.size for entry in packs))
        with TaskGroup() as tasks:
            waiting = [
                (
                    entry,
                    tasks.submit(
                        self.search.read_pack, pack_id_of(entry.key), size=entry.size, pace=self.pace
                    ),
                )
                for entry in packs
            ]
            for entry, task in waiting:
                task.result()
                if self.callback is not None:
                    self.callback.relative_update(entry.size)

    def examine(self, refs: Sequence[_Ref], chosen: set[str], healer: Healer) -> list[RefHealth]:
        """Look for copies of all that is lost of the chosen refs; return how each is then."""
        known: dict[bytes, _Summary] = {}
        for ref in refs:
            for record in ref.records:
                if record.manifest is None or record.manifest in known:
                    continue
                if ref.head.name in chosen:
                    known[record.manifest] = self._heal(record, healer)
                elif self.search.found:
                    # Quarantined packs may hold what other refs need, and nothing relies on those packs.
                    healer.heal(needs_of(record, healer.read), fetch=False)
        if any(ref.is_unknown for ref in refs) or not all(item.complete for item in known.values()):
            healer.salvage_all()
        return [_health(ref, known) for ref in refs if ref.head.name in chosen]

    def _heal(self, record: Record, healer: Healer) -> _Summary:
        assert record.target is not None
        hinted = False
        for _ in range(_ROUNDS):
            needs = needs_of(record, healer.read)
            self.search.read(needs.ids)
            if healer.heal(needs) and not needs.complete:
                continue
            if needs.complete or hinted:
                break
            # Only the hints of the record may tell which damaged packs hold its description.
            hinted = True
            for pack in record.packs:
                self.search.read_pack(pack)
            healer.missing.difference_update(needs.ids)
        files = [path for path, layout in needs.files if not healer.missing.isdisjoint(layout.chunk_ids())]
        ids = needs.ids
        return _Summary(
            len(ids),
            sum(object_id in healer.lost and object_id not in healer.missing for object_id in ids),
            sum(object_id in healer.missing for object_id in ids),
            tuple(files),
            needs.complete,
        )

    def find_index_damage(self, packs: Sequence[Entry]) -> IndexDamage:
        """Look at the index; `packs` are those of the store."""
        ids = [pack_id_of(entry.key) for entry in packs]
        return find_index_damage(self.store, [pack for pack in ids if self.search.is_usable(pack)])

    def mend_index(self, packs: Sequence[Entry]) -> None:
        """Write the index anew, as far as that was not done with the packs."""
        try:
            mend_index(self.store, self.find_index_damage(packs))
        except (IntegrityError, BackendError) as error:
            # Invariant 13: the packs answer without it, more slowly.
            self.problems.append(f"The index could not be written anew: {error}")

    def apply(
        self, refs: Sequence[_Ref], chosen: set[str], planned: Sequence[RefHealth], healer: Healer
    ) -> tuple[list[RefHealth], Healer, int]:
        """Set damaged packs apart, write what `healer` has found into fresh packs, and records that are certain."""
        store = self.store
        set_apart(store, self.search.found)
        certain = [ref for ref in refs if ref.certain is not None and ref.head.name in chosen]
        if not healer.healed and not certain:
            return list(planned), healer, 0
        with store.publication() as publication:
            writer = Healer(store, self.search, self.others, write=publication.write)
            done = self.examine(refs, chosen, writer)
            # Packs in which damage shows only now must not be relied on either (invariant 9).
            set_apart(store, self.search.found)
            whole = {ref.name for ref in done if ref.health in (Health.WHOLE, Health.HEALED)}
            mended = [ref for ref in certain if ref.head.name in whole]
            publication.commit_all([], lambda _: iter(()))
            self._write_records(publication, mended, writer)
            return done, writer, publication.bytes_written

    def _write_records(self, publication: Publication, refs: Sequence[_Ref], healer: Healer) -> None:
        """Write anew what damaged records said, once all that they need is there (invariant 7)."""
        for ref in refs:
            record = ref.certain
            assert record is not None
            ids = needs_of(record, healer.read).ids
            if ids:
                publication.require(ids)
            drafts = [partial(self.store.draft_copy, record, again=True)]
            for result in publication.commit_all(drafts, lambda _: iter(())):
                if isinstance(result, RefConflict):
                    self.problems.append(f"{ref.head.name} was not written anew: {result}")


def repair(
    store: ModelStore,
    refs: Sequence[str] | None = None,
    *,
    others: OtherStores,
    dry_run: bool = True,
    bandwidth_limit: float | None = None,
    callback: Callback | None = None,
) -> RepairReport:
    """Find what is damaged or missing in a store, and make it whole from its own packs and from `others`.

    All packs are read, or with `refs` all that these depend on. With `dry_run` nothing is written. Damaged packs are
    quarantined, never deleted. `bandwidth_limit` in bytes per second and `callback`, which counts bytes, are for reading
    all packs. Raises RefNotFound for a ref that is none, BackendError for a store that fails.
    """
    search = Search(store, store.objects.quarantined())
    work = _Repair(store, others, search, TokenBucket(bandwidth_limit).take, callback)
    # In the reverse order of writing (invariant 3), so that whatever a record needs is listed after the record.
    heads = read_heads(store.backend)
    packs = [entry for entry in store.backend.list(PACK_PREFIX) if place_of(entry.key) is Place.PACK]
    # Invariant 9: a damaged pack is found below, and all that it held is looked for elsewhere.
    with contextlib.suppress(IntegrityError):
        store.objects.look_for_packs()
    found = [_ref(store, head, others) for head in heads if head.records or head.damaged]
    chosen = {ref.head.name for ref in found} if refs is None else _chosen(store, refs, found)
    if refs is None:
        work.read_packs(packs)
    healer = Healer(store, search, others)
    health = work.examine(found, chosen, healer)
    index = work.find_index_damage(packs) if refs is None else IndexDamage({}, [])
    written = 0
    if not dry_run:
        health, healer, written = work.apply(found, chosen, health, healer)
        if index.segments or index.uncovered:
            work.mend_index(packs)
    return RepairReport(
        dry_run=dry_run,
        refs=tuple(health),
        packs={pack.hex(): reason for pack, reason in sorted(search.found.items())},
        sources=healer.sources(),
        bytes_written=written,
        segments={key: str(error) for key, error in index.segments.items()},
        uncovered=len(index.uncovered),
        records=tuple(ref.lost for ref in found if ref.lost is not None and ref.head.name in chosen),
        unreachable=others.failures,
        problems=tuple(work.problems),
    )


def _ref(store: ModelStore, head: Head, others: OtherStores) -> _Ref:
    if head.hidden is None:
        return _Ref(head, [record for record in head.records if record.target is not None])
    lost, certain = look_up(store, head, others)
    records = [] if certain is None or certain.target is None else [certain]
    return _Ref(head, records, lost, certain)


def _chosen(store: ModelStore, refs: Sequence[str], found: Sequence[_Ref]) -> set[str]:
    """Return the names that refs, prefixes that end with "/", and ids mean; also of refs that cannot be read."""
    known = {ref.head.name for ref in found}
    chosen: set[str] = set()
    for ref in refs:
        if ref.endswith("/"):
            below = {name for name in known if name.startswith(ref)}
            if not below:
                raise RefNotFound(f"No ref begins with {ref!r}. `casstore ls` lists them.")
            chosen |= below
            continue
        name = next((name for name in (ref, f"models/{ref}", f"tags/{ref}") if name in known), None)
        chosen.add(store.resolve(ref).ref if name is None else name)
    return chosen


def _health(ref: _Ref, known: dict[bytes, _Summary]) -> RefHealth:
    """Judge a ref by all of its newest records."""
    name = ref.head.name
    if ref.is_unknown:
        assert ref.lost is not None
        return RefHealth(name, None, Health.UNREADABLE, reason=ref.lost.reason)
    manifests = dict.fromkeys(record.manifest for record in ref.records if record.manifest is not None)
    parts = [known[manifest] for manifest in manifests]
    models = [
        record.target for record in ref.records if names.names_model(name) and record.target is not None
    ]
    complete = all(part.complete for part in parts)
    missing, healed = sum(part.missing for part in parts), sum(part.healed for part in parts)
    health = Health.HEALED if healed or ref.certain is not None else Health.WHOLE
    return RefHealth(
        name,
        models[-1].hex() if models else None,
        Health.MISSING if missing or not complete else health,
        sum(part.objects for part in parts),
        healed,
        missing,
        tuple(path for part in parts for path in part.files),
        "" if complete else "What describes it cannot be read, so more may be missing.",
    )
