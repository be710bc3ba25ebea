"""Executes a plan: frames first, in packs that stay whatever happens next, records last."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.bandwidth import TokenBucket
from casstore.digest import DIGEST_SIZE
from casstore.errors import ConfigError, IntegrityError, RefConflict
from casstore.format import names
from casstore.objects import MAX_HINTS, pack_target
from casstore.ops.sync.culprits import Culprits
from casstore.ops.sync.frames import FrameSource
from casstore.ops.sync.needs import lacking, split
from casstore.ops.sync.planning import (
    MAX_CONCURRENCY,
    RefConflictFound,
    RefToWrite,
    SyncPlan,
    conflict_of,
)
from casstore.ops.sync.ref_state import RefState, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fsspec import Callback
    from numpy.typing import NDArray

    from casstore.format.record import Record
    from casstore.objects import Damage, EncodedFrames, Located, Publication
    from casstore.store.model_store import ModelStore

GROUP_BYTES = 4 << 30
GROUP_REFS = 256
"""Limits of a group in new bytes and in refs: a group is copied, then its records are put.

After a restart, refs with records need no second look; the two checks of a publish cost once per group.
"""

_BURST_SECONDS = 8
_SMALLEST_PACK = 4 << 20


@dataclass(frozen=True, slots=True)
class SyncReport:
    """The result of a sync.

    `refs` were written. `bytes_missing` are the frames that the destination lacked, `bytes_moved` what was
    read for them, gaps included, `bytes_written` the packs they went to. `requests` moved data. `damaged` were
    left out because something of them cannot be read: they get no record.
    """

    refs: tuple[str, ...]
    objects: int
    bytes_missing: int
    bytes_moved: int
    bytes_written: int
    requests: int
    packs: int
    reencoded: int
    seconds: float
    equal: tuple[str, ...] = ()
    ahead: tuple[str, ...] = ()
    conflicts: tuple[RefConflictFound, ...] = ()
    damaged: tuple[Damage, ...] = ()


def execute(
    plan: SyncPlan,
    *,
    callback: Callback | None = None,
    max_concurrency: int = MAX_CONCURRENCY,
    bandwidth_limit: float | None = None,
) -> SyncReport:
    """Copy what the plan names, verified, and write its refs; return when all of it is safe.

    `callback` counts stored bytes, `bandwidth_limit` is in bytes per second. Packs that were finished stay
    when this fails: a second run needs only the rest. Refs that someone moved meanwhile are in the report's
    conflicts. Raises IntegrityError, naming the pack, for a frame of the source that is not what it must be,
    MissingObject for one that is gone, unless the plan is to keep going; BackendError when a store fails.
    """
    if max_concurrency < 1:
        raise ConfigError(f"max_concurrency is {max_concurrency}: at least one request must be under way.")
    started = time.perf_counter()
    bucket = TokenBucket(bandwidth_limit)
    if callback is not None:
        callback.set_size(plan.bytes_stored)
    source = FrameSource(
        plan.src,
        max_concurrency=max_concurrency,
        bucket=bucket,
        callback=callback,
        near=plan.dst if plan.src.backend.is_remote and not plan.dst.backend.is_remote else None,
        keep_going=plan.keep_going,
    )
    # Invariant 2: whoever wrote these may have been killed before their names were durable, and this says that they are there.
    there = (*plan.equal, *plan.ahead)
    plan.dst.backend.make_durable(names.record_key(name, seq=1, write_id=None) for name in there)
    job = _Job(plan, source, bandwidth_limit, Culprits(keep_going=plan.keep_going))
    for group in _groups(plan.refs):
        job.run(group)
    done = source.done
    return SyncReport(
        refs=tuple(job.written),
        objects=done.objects,
        bytes_missing=done.bytes_wanted,
        bytes_moved=done.bytes_read,
        bytes_written=job.bytes_written,
        requests=done.requests + job.puts,
        packs=job.packs,
        reencoded=done.reencoded,
        seconds=time.perf_counter() - started,
        equal=plan.equal,
        ahead=plan.ahead,
        conflicts=(*plan.conflicts, *job.conflicts),
        damaged=(*plan.damaged, *job.culprits.found),
    )


def _groups(refs: Sequence[RefToWrite]) -> Iterator[list[RefToWrite]]:
    """Divide the refs, models first: no run is in the destination before the models that it names."""
    group: list[RefToWrite] = []
    size = 0
    for ref in refs:
        full = size >= GROUP_BYTES or len(group) >= GROUP_REFS
        if group and (full or names.names_model(ref.name) != names.names_model(group[-1].name)):
            yield group
            group, size = [], 0
        group.append(ref)
        size += ref.bytes_stored
    if group:
        yield group


@dataclass(slots=True)
class _Job:
    plan: SyncPlan
    source: FrameSource
    bandwidth_limit: float | None
    culprits: Culprits
    written: list[str] = field(default_factory=list)
    conflicts: list[RefConflictFound] = field(default_factory=list)
    packs: int = 0
    puts: int = 0
    bytes_written: int = 0

    def run(self, group: Sequence[RefToWrite]) -> None:
        """Copy a group of refs, and all that they need, to the destination."""
        try:
            self._copy(group)
        except IntegrityError as error:
            # Invariant 11: the damage shows only now; copying one by one finds and reports the ref.
            if not self.culprits.keep_going:
                raise
            if len(group) == 1:
                self.culprits.blame(group[0].name, error)
                return
            for ref in group:
                self.run([ref])

    def _copy(self, group: Sequence[RefToWrite]) -> None:
        ids = list(dict.fromkeys(object_id for ref in group for object_id in split(ref.ids)))
        with self._publication() as publication:
            missing = _missing(publication, ids)
            if missing and publication.recall(sum(ref.bytes_stored for ref in group)):
                # A sync that was stopped before it published their segment left whole packs (invariant 5).
                missing = _missing(publication, ids)

            def supply(wanted: set[bytes]) -> Iterator[EncodedFrames]:
                keep = _Keep(wanted, publication)
                yield from self.source.frames(b"".join(sorted(wanted)), may_keep=keep)

            for frames in supply(set(missing)) if missing else ():
                publication.write(frames)
                publication.keep_finished()
            group = self._whole(group)
            results = publication.commit_all([self._draft(ref) for ref in group], supply)
            self.packs += publication.packs_written
            self.bytes_written += publication.bytes_written
            self.puts += publication.packs_written + publication.segments_written + len(group)
        for ref, result in zip(group, results, strict=True):
            if isinstance(result, RefConflict):
                self.conflicts.append(self._describe(ref, result))
            else:
                self.written.append(ref.name)

    def _whole(self, group: Sequence[RefToWrite]) -> Sequence[RefToWrite]:
        """Return the refs that could be copied completely, and report the others."""
        if not self.source.damaged:
            return group
        failed = lacking({ref.name.encode(): ref.ids for ref in group}, self.source.damaged)
        for name, error in failed.items():
            self.culprits.blame(name.decode(), error)
        return [ref for ref in group if ref.name.encode() not in failed]

    def _publication(self) -> Publication:
        dst = self.plan.dst
        target = pack_target(dst.backend)
        if self.bandwidth_limit is not None:
            # A pack is sent as fast as the link allows; with smaller packs the average rate holds within a few seconds.
            target = min(target, max(_SMALLEST_PACK, int(self.bandwidth_limit * _BURST_SECONDS)))
        return dst.publication(pack_target=target)

    def _draft(self, ref: RefToWrite) -> Callable[[], Record]:
        dst = self.plan.dst

        def draft() -> Record:
            drafted = dst.draft_copy(ref.record, _hints(dst, ref.ids))
            if drafted.seq > ref.seen + 1 and not self.plan.overwrite:
                # Someone has written this ref since the plan was made, or it was deleted before: compare again.
                theirs = dst.history(ref.name)
                state = compare(self.plan.src.history(ref.name), theirs)
                if state is RefState.EQUAL:
                    return theirs[-1]  # The other writer set the same value (invariant 10).
                if state in (RefState.CONFLICT, RefState.AHEAD):
                    raise RefConflict(f"{ref.name} was written by someone else while it was copied.")
            return drafted

        return draft

    def _describe(self, ref: RefToWrite, error: RefConflict) -> RefConflictFound:
        found = conflict_of(ref.record, self.plan.dst.record(ref.name) or ref.record)
        return RefConflictFound(found.name, found.src_target, found.dst_target, str(error))


def _missing(publication: Publication, ids: list[bytes]) -> list[bytes]:
    return [ids[at] for at in np.flatnonzero(~publication.known(ids)).tolist()]


def _hints(dst: ModelStore, ids: bytes) -> tuple[bytes, ...]:
    """Return packs of the destination that hold a ref's objects."""
    if not ids:
        return ()
    return tuple(sorted(dst.objects.packs_of(dst.objects.find(ids)))[:MAX_HINTS])


class _Keep:
    """Decides which deltas may be copied as they are: those whose bases have lower rank in the destination too.

    A base is in a pack there that the publish may depend on (invariant 7), or it is copied as well.
    """

    def __init__(self, copied: set[bytes], publication: Publication) -> None:
        self._copied = copied
        self._publication = publication

    def __call__(self, located: Located, deltas: NDArray[np.int64]) -> NDArray[np.bool_]:
        bases = [located.bases(at) for at in deltas.tolist()]
        elsewhere = sorted({base for item in bases for base in item} - self._copied)
        there = zip(elsewhere, self._publication.ranks(elsewhere), strict=True)
        ranks = {base: rank for base, rank in there if rank is not None} | self._ranks_of_copied(located)
        limits = located.rows["rank"][deltas].tolist()
        return np.array(
            [
                all(ranks.get(base, limit) < limit for base in item)
                for item, limit in zip(bases, limits, strict=True)
            ],
            np.bool_,
        )

    def _ranks_of_copied(self, located: Located) -> dict[bytes, int]:
        ids = located.rows["id"].tobytes()
        split_ids = [ids[at : at + DIGEST_SIZE] for at in range(0, len(ids), DIGEST_SIZE)]
        return dict(zip(split_ids, located.rows["rank"].tolist(), strict=True))
