"""Reads objects: fetches and decodes their frames, with what deltas need, and hashes what comes out.

Deltas are decoded in groups. All bases of a group, and bases of those, are looked up first (`base_levels.py`); then each is
decoded once, those of the lowest rank first. Where that fails, other copies are tried, of one object at a time.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Concatenate

import numpy as np

from casstore.concurrency.buffers import BLOCK, new_buffer, scratch
from casstore.errors import FormatError, IntegrityError, ObjectNotFound, UnsupportedVersion
from casstore.format.rows import MAX_RANK
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.keys import pack_key
from casstore.objects.reading.base_levels import (
    Bases,
    LacksBaseError,
    TooMuchError,
    find_bases,
    find_levels,
    look_harder,
    needs_of,
    no_base,
    sizes_below,
    sizes_in,
)
from casstore.objects.reading.frames import ADVICE, decode_frames
from casstore.objects.reading.job import Job
from casstore.objects.reading.ranges import batches, plan_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from casstore.backend.base import Backend
    from casstore.objects.index.index import Index
    from casstore.objects.index.located import Located
    from casstore.objects.reading.base_cache import BaseCache
    from casstore.objects.reading.base_levels import Level, Needs
    from casstore.objects.reading.ranges import Range

    ReadInto = Callable[Concatenate[str, memoryview, ...], int]
    ReadThere = Callable[[Collection[bytes]], dict[bytes, memoryview]]

_MAX_MISSES = 3
"""Times that a pack may be listed and yet be absent when it is read: it may be on its way back from a backup."""

_BATCH = 8 << 20
"""Plain bytes that are verified at once when a whole pack is."""

_ANY_RANK = MAX_RANK + 1

_SHARED = 2.5
"""Bytes of bases for each byte of some deltas from which they are most likely the bases of others as well."""


class ObjectReader:
    """Reads objects of one store; safe in threads. Only a BaseCache of the caller keeps anything from one call to the next."""

    def __init__(self, backend: Backend, index: Index, *, read_into: ReadInto | None = None) -> None:
        """`read_into` reads instead of the backend's."""
        self._backend = backend
        self._index = index
        self._read_into = read_into

    def fill(
        self,
        located: Located,
        pending: dict[int, tuple[int, int]],
        buffer: memoryview,
        *,
        elsewhere: bool = True,
        verify: bool = True,
        cache: BaseCache | None = None,
        below: dict[int, int] | None = None,
    ) -> None:
        """Decode objects, verified, to where `pending` says in `buffer`, by their positions in `located`.

        Each that is done is removed from `pending`. The places must have exactly the raw lengths. The buffer is the
        caller's, and holds unspecified bytes where this raises. What is damaged, or lacks a base,
        is read from another pack that holds it, if there is one and `elsewhere` is set. With `verify` off, only
        what does not decode counts as damaged: the caller must prove the bytes by another hash that covers
        them before anyone sees them (invariant 4). Bases take memory: MAX_BASE_BYTES at most,
        and as a rule not more than 4 MiB of the deltas that need them. `cache` keeps those that other reads with the same
        `verify` need again. `below`, if given, gets the plain bytes of all bases of deltas, with the bases of those, by position,
        as far as they are read. Raises MissingObject for a base that is gone.
        """
        with _reasons():
            self._fill(Job(located, pending, buffer, elsewhere, verify, cache=cache, below=below), None)

    def verify(self, located: Located, wanted: Sequence[int]) -> None:
        """Read objects where `located` says, and nowhere else; raises ObjectNotFound or an IntegrityError.

        Deltas of which a base cannot be read are left out: they count as absent, not as damaged (invariant 7).
        """
        lengths = [int(located.rows["raw"][at]) for at in wanted]
        for batch in batches(lengths, _BATCH):
            self._verify(located, wanted[batch.start : batch.stop])

    def _verify(self, located: Located, wanted: Sequence[int]) -> None:
        edges = [0, *accumulate(located.rows["raw"][list(wanted)].tolist())]
        places = dict(zip(wanted, pairwise(edges), strict=True))
        try:
            self._fill(Job(located, places, new_buffer(edges[-1]), elsewhere=False, verify=True), None)
        except LacksBaseError:
            # Invariant 7: one by one, so that all the others are read.
            if len(wanted) > 1:
                for at in wanted:
                    self._verify(located, [at])

    def bases_of(
        self, located: Located, positions: Sequence[int], *, near: ReadThere | None = None
    ) -> dict[bytes, memoryview]:
        """Return the verified plain bytes, by id, of all bases that the frames at these positions name.

        `near` is another store's `read_there`, which is asked first. Raises MissingObject for one that is in no frame of lower rank.
        """
        deltas = [at for at in positions if located.rows["bases"][at]]
        bases = Bases()
        if deltas and near is not None:
            bases.plain.update(near({base for at in deltas for base in located.bases(at)}))
        with _reasons():
            self._load(located, deltas, bases)
        return bases.plain

    def sizes_of_bases(self, located: Located, positions: Sequence[int]) -> dict[int, int]:
        """Return the plain bytes of all bases of each of these frames, with the bases of those, by position."""
        with _reasons():
            return sizes_below(self._index, located, positions)

    def read_there(self, ids: Collection[bytes]) -> dict[bytes, memoryview]:
        """Return the verified plain bytes, by id, of those of these objects that the index knows and that can be read."""
        asked = sorted(ids)
        located = self._index.locate(asked)
        wanted = np.flatnonzero(located.found).tolist()
        edges = [0, *accumulate(located.rows["raw"][wanted].tolist())]
        buffer = new_buffer(edges[-1])
        try:
            self.fill(located, dict(zip(wanted, pairwise(edges), strict=True)), buffer)
        except (IntegrityError, ObjectNotFound):
            # Invariant 4: one by one; what cannot be read here is read from the store that is copied from.
            if len(wanted) < 2:
                return {}
            return dict(chain.from_iterable(self.read_there([one]).items() for one in asked))
        return {
            asked[at]: buffer[begin:end] for at, (begin, end) in zip(wanted, pairwise(edges), strict=True)
        }

    # ---- rounds of reads: what fails in one is looked up again for the next

    def _fill(self, job: Job, bases: Bases | None) -> None:
        """Read what a job asks for. `bases` are at hand, and get more; None if each group has its own."""
        while True:
            job.gone = frozenset()
            ranks = job.located.rows["rank"][list(job.pending)].tolist()
            deltas = [at for at, rank in zip(job.pending, ranks, strict=True) if rank]
            self._read(job, [at for at, rank in zip(job.pending, ranks, strict=True) if not rank], {})
            for group in batches(job.located.rows["raw"][deltas].tolist(), BLOCK):
                self._read_deltas(job, deltas[group.start : group.stop], bases)
            if not job.pending:
                return
            self._look_again(job)

    def _read_deltas(self, job: Job, group: list[int], bases: Bases | None) -> None:
        """Read deltas with their bases; note those that lack one, if they may be read elsewhere."""
        held = Bases(lending=True) if bases is None else bases
        if bases is None and job.cache is None and job.verify:
            group = self._read_quickly(job, group)
            if not group:
                return
        if bases is None and job.cache is not None:
            held.known = job.cache.known
            held.plain.update(job.cache.get(base for at in group for base in job.located.bases(at)))
        try:
            self._load(job.located, group, held, verify=job.verify, cache=job.cache)
            self._read(job, group, held.plain)
        except (LacksBaseError, TooMuchError) as error:
            # Invariant 7: only those that need what is lost are concerned.
            if len(group) > 1:
                middle = len(group) // 2
                self._read_deltas(job, group[:middle], bases)
                self._read_deltas(job, group[middle:], bases)
            elif not job.elsewhere or isinstance(error, TooMuchError):
                raise
            else:
                job.bar(group, error.reason)
        finally:
            if bases is None:
                held.release()

    def _read_quickly(self, job: Job, group: list[int]) -> list[int]:
        """Read deltas over bases that are not hashed, and return those that are still to be read, if one is wrong.

        Invariant 4: each delta is hashed, and from a wrong base it has a wrong hash. To see what is damaged then, bases are
        hashed as well.
        """
        bases = Bases(lending=True)
        places = {at: job.pending[at] for at in group}
        alone = Job(job.located, places, job.buffer, elsewhere=False, verify=True)
        try:
            self._load(job.located, group, bases, verify=False, below=job.below)
            self._read(alone, group, bases.plain)
        except (IntegrityError, ObjectNotFound, LacksBaseError):
            # Invariant 11: nothing is hidden: what is wrong is met again by whoever reads the rest.
            pass
        finally:
            bases.release()
        if job.below is not None:
            for at in places:
                job.below.pop(at, None)
        for at in set(group) - places.keys():
            del job.pending[at]
        return list(places)

    def _read(self, job: Job, positions: Sequence[int], bases: Mapping[bytes, memoryview]) -> None:
        """Read frames whose bases are at hand; those that could not be read stay pending."""
        for part in plan_ranges(job.located, positions):
            if part.pack in job.gone:
                continue
            try:
                self._read_range(job, part, bases)
            except ObjectNotFound:
                # Invariant 5: an entry whose pack is gone does not exist.
                job.misses[part.pack] += 1
                if job.misses[part.pack] > _MAX_MISSES:
                    raise
                job.gone = self._index.forget_pack(part.pack)
            except UnsupportedVersion as error:
                # Design §3: no damage, so the pack is not avoided; but another one may have what can be read.
                if not job.elsewhere:
                    raise
                job.bar(part.frames, error)
            except IntegrityError as error:
                # Invariant 4: damage is raised, unless another pack has the same object whole.
                if not job.elsewhere:
                    raise
                if self._is_elsewhere(job.located, part):
                    job.note(part.frames, error)
                elif len(part.frames) > 1:
                    # One by one, so that what is whole here is read here.
                    for at in part.frames:
                        self._read(job, [at], bases)
                else:
                    # All packs that have it may be damaged, and this object be whole in one of them.
                    job.bar(part.frames, error)
                    at = part.frames[0]
                    if not self._among(job.located.ids([at]), job.barred[at]).found.all():
                        raise
            else:
                for at in part.frames:
                    del job.pending[at]

    def _read_range(self, job: Job, part: Range, bases: Mapping[bytes, memoryview]) -> None:
        """Fetch the frames of a range, and put their objects where they belong."""
        key = pack_key(self._index.pack_id(part.pack))
        fetched = scratch(part.end - part.begin)
        with bad_file_is_damage(self._backend, ADVICE):
            read_into = self._read_into or self._backend.read_into
            count = read_into(key, fetched, start=part.begin)
        if count != len(fetched):
            raise FormatError(f"{key} is truncated. {ADVICE}")
        decode_frames(
            job.located,
            part,
            fetched,
            out=job.buffer,
            places=job.pending,
            bases=bases,
            key=key,
            verify=job.verify,
        )

    def _is_elsewhere(self, located: Located, part: Range) -> bool:
        """Avoid a damaged pack from now on; say whether others are preferred for everything that is read from it."""
        self._index.avoid_pack(part.pack)
        again = self._index.locate(located.ids(part.frames))
        return bool((again.found & (again.rows["pack"] != part.pack)).all())

    def _look_again(self, job: Job) -> None:
        """Find other copies of what is pending; raise MissingObject, or why a delta cannot be read, where there is none."""
        left = [at for at in job.pending if at not in job.barred]
        if left:
            job.located = job.located.replaced(left, self._index.locate_all(job.located.ids(left)))
        for at in job.barred.keys() & job.pending.keys():
            other = self._beside(job.located.ids([at]), job.barred[at])
            if other is None:
                raise LacksBaseError(job.reasons[at])
            job.located = job.located.replaced([at], other)
        for at in job.pending:
            if job.located.rows["rank"][at] >= job.limits.get(at, _ANY_RANK):
                raise LacksBaseError(job.reasons.get(at) or no_base(job.located.ids([at])[0]))

    def _beside(self, ids: list[bytes], barred: set[int]) -> Located | None:
        """Find an object in packs other than those that are barred."""
        found = self._among(ids, barred | self._index.packs.avoided)
        if not found.found.all():
            look_harder(self._index)
            found = self._among(ids, barred)
        return found if found.found.all() else None

    def _among(self, ids: list[bytes], barred: Collection[int]) -> Located:
        """Find objects as far as the index knows them, in packs that are not barred."""
        gone = self._index.packs.gone
        return self._index.locate(ids, usable=lambda number: number not in barred and number not in gone)

    # ---- bases

    def _load(
        self,
        located: Located,
        positions: Sequence[int],
        bases: Bases,
        *,
        verify: bool = True,
        cache: BaseCache | None = None,
        below: dict[int, int] | None = None,
    ) -> None:
        """Bring all bases that the frames at these positions name; raise LacksBaseError if one cannot be read.

        `below`, if given, gets the plain bytes of all bases of each frame, unless some are at hand already.
        """
        try:
            needs = needs_of(located, positions)
            levels = find_levels(self._index, located, needs, bases)
            if below is not None and not bases.plain:
                below.update(sizes_in(levels, needs))
            total = sum(level.size for level in levels)
            kept = cache if total > _SHARED * sum(need.raw for need in needs) else None
            # What is kept must not be memory that is lent.
            bases.lending = bases.lending and kept is None
            for rank in sorted({need.rank for level in levels for need in level.needs}):
                for level in levels:
                    self._decode_level(level, rank, bases, verify=verify)
            if kept is not None:
                kept.put({name: bases.plain[name] for level in levels for name in level.ids})
        except LacksBaseError:
            # Invariant 7: a base may have another copy, whose own bases are there.
            for at in positions:
                for base in located.bases(at):
                    self._bring(base, int(located.rows["rank"][at]), bases)

    def _decode_level(self, level: Level, rank: int, bases: Bases, *, verify: bool) -> None:
        """Decode those bases of a level that have a rank; the bases that they need are at hand."""
        wanted = [need for need in level.needs if need.rank == rank]
        # In parts that fit into memory that is lent.
        for part in batches((need.raw for need in wanted), BLOCK):
            self._decode_part(level, wanted[part.start : part.stop], bases, verify=verify)

    def _decode_part(self, level: Level, wanted: Sequence[Needs], bases: Bases, *, verify: bool) -> None:
        edges = list(accumulate((need.raw for need in wanted), initial=0))
        buffer = bases.take(edges[-1])
        positions = [need.position for need in wanted]
        # A copy that is read instead of a damaged one must still rank below what needs it.
        limits = {at: level.limits[at] for at in positions}
        places = dict(zip(positions, pairwise(edges), strict=True))
        job = Job(level.located, places, buffer, elsewhere=True, verify=verify, limits=limits)
        try:
            self._fill(job, bases)
        except IntegrityError as error:
            # Invariant 4: what is above may be elsewhere without this base.
            raise LacksBaseError(error) from error
        for at, (begin, end) in zip(positions, pairwise(edges), strict=True):
            bases.plain[level.ids[at]] = buffer[begin:end]

    def _bring(self, base: bytes, limit: int, bases: Bases) -> None:
        """Bring one base from any copy of a rank below the limit that decodes; none is tried twice in vain."""
        if base in bases.plain:
            return
        rank, reason = bases.lost.get(base, (0, None))
        if reason is not None and limit <= rank:
            raise LacksBaseError(reason)
        found = find_bases(self._index, {base: limit}, bases)
        size = int(found.rows["raw"][0])
        try:
            bases.check_room(size, base)
            buffer = bases.take(size)
            self._fill(Job(found, {0: (0, size)}, buffer, True, True, limits={0: limit}), bases)
        except (LacksBaseError, IntegrityError) as error:
            # Invariant 4: as above.
            lost = error.reason if isinstance(error, LacksBaseError) else error
            bases.lost[base] = limit, lost
            raise LacksBaseError(lost) from error
        bases.plain[base] = buffer


@contextmanager
def _reasons() -> Iterator[None]:
    """Raise why a base cannot be read: without its bases, a delta is no copy, and there is no other one (invariant 7)."""
    try:
        yield
    except LacksBaseError as lack:
        raise lack.reason from lack.reason.__cause__
