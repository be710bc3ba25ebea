"""Reads objects: fetches and decodes their frames, with what deltas need, and hashes what comes out.

Deltas are decoded in groups. All bases of a group, and bases of those, are looked up first, level by level, each of a lower
rank than what needs it; then each is decoded once, those of the lowest rank first. So chains, and lists that form circles,
end after as many steps as there are ranks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.concurrency.buffers import BLOCK, new_buffer, scratch
from casstore.errors import FormatError, IntegrityError, MissingObject, ObjectNotFound, UnsupportedVersion
from casstore.format.rows import MAX_BASE_BYTES, MAX_RANK
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.frames import ADVICE, decode_frames
from casstore.objects.keys import pack_key
from casstore.objects.ranges import batches, plan_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from casstore.backend.base import Backend
    from casstore.objects.index.index import Index
    from casstore.objects.index.located import Located
    from casstore.objects.ranges import Range

    Bases = dict[bytes, memoryview]
    ReadThere = Callable[[Collection[bytes]], Bases]

_MAX_MISSES = 3
"""Times that a pack may be listed and yet be absent when it is read: it may be on its way back from a backup."""

_BATCH = 8 << 20
"""Plain bytes that are verified at once when a whole pack is."""

_ANY_RANK = MAX_RANK + 1


def at_once(_: int) -> None:
    """Wait for nothing."""


class _LacksBaseError(Exception):
    """A base of a delta cannot be read, for `reason`."""

    def __init__(self, reason: IntegrityError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _TooMuchError(FormatError):
    """The bases of some deltas have more bytes than are decoded at once."""


@dataclass(slots=True)
class _Job:
    """Objects that are still to be read, by position in `located`: where their bytes belong, and what may be done for them.

    With `elsewhere`, other copies may be read, of a rank below the object's limit. `barred` are the packs in which an
    object cannot be read, by position, for objects that are deltas without a base somewhere; `reasons` says why something
    could not be read. `gone` are packs that the current round of reads found to be absent.
    """

    located: Located
    pending: dict[int, tuple[int, int]]
    buffer: memoryview
    elsewhere: bool
    verify: bool
    limits: dict[int, int] = field(default_factory=dict)
    barred: dict[int, set[int]] = field(default_factory=dict)
    reasons: dict[int, IntegrityError] = field(default_factory=dict)
    misses: Counter[int] = field(default_factory=Counter)
    gone: frozenset[int] = frozenset()

    def bar(self, positions: Iterable[int], reason: IntegrityError, *, lacking: bool) -> None:
        """Note objects that cannot be read where they were located, because they are `lacking` a base, or are damaged."""
        for at in positions:
            self.reasons[at] = reason
            if lacking or at in self.barred:
                self.barred.setdefault(at, set()).add(int(self.located.rows["pack"][at]))


class _Level(NamedTuple):
    """Bases that frames need at once, and the rank that each must be below."""

    located: Located
    limits: list[int]


class ObjectReader:
    """Reads objects of one store; safe in threads. Nothing is kept from one call to the next."""

    def __init__(self, backend: Backend, index: Index) -> None:
        self._backend = backend
        self._index = index

    def fill(
        self,
        located: Located,
        pending: dict[int, tuple[int, int]],
        buffer: memoryview,
        *,
        elsewhere: bool = True,
        verify: bool = True,
    ) -> None:
        """Decode objects, verified, to where `pending` says in `buffer`, by their positions in `located`.

        Each that is done is removed from `pending`. The places must have exactly the raw lengths. The buffer is the
        caller's, and holds unspecified bytes where this raises. What is damaged, or lacks a base,
        is read from another pack that holds it, if there is one and `elsewhere` is set. With `verify` off, only
        what does not decode counts as damaged: the caller must prove the bytes by another hash that covers
        them before anyone sees them (invariant 4). Bases are always hashed. They take memory: MAX_BASE_BYTES at most,
        and as a rule not more than 4 MiB of the deltas that need them. Raises MissingObject for a base that is gone.
        """
        try:
            self._fill(_Job(located, pending, buffer, elsewhere, verify), None)
        except _LacksBaseError as lack:
            # Invariant 7: a delta without its bases is no copy, and there is no other one.
            raise lack.reason from lack.reason.__cause__

    def verify(
        self, located: Located, wanted: Sequence[int], *, pace: Callable[[int], None] = at_once
    ) -> None:
        """Read objects where `located` says, and nowhere else; raises ObjectNotFound or an IntegrityError.

        Deltas of which a base cannot be read are left out: they count as absent, not as damaged (invariant 7). `pace` is
        told how many bytes are read next, and may wait.
        """
        lengths = [int(located.rows["raw"][at]) for at in wanted]
        for batch in batches(lengths, _BATCH):
            pace(int(located.rows["stored"][wanted[batch.start : batch.stop]].sum()))
            self._verify(located, wanted[batch.start : batch.stop])

    def _verify(self, located: Located, wanted: Sequence[int]) -> None:
        edges = [0, *accumulate(located.rows["raw"][list(wanted)].tolist())]
        places = dict(zip(wanted, pairwise(edges), strict=True))
        try:
            self._fill(_Job(located, places, new_buffer(edges[-1]), elsewhere=False, verify=True), None)
        except _LacksBaseError:
            # Invariant 7: one by one, so that all the others are read.
            if len(wanted) > 1:
                for at in wanted:
                    self._verify(located, [at])

    def bases_of(self, located: Located, positions: Sequence[int], *, near: ReadThere | None = None) -> Bases:
        """Return the verified plain bytes, by id, of all bases that the frames at these positions name.

        `near` is another store's `read_there`, which is asked first. Raises MissingObject for one that is in no frame of lower rank.
        """
        deltas = [at for at in positions if located.rows["bases"][at]]
        bases: Bases = {}
        if deltas and near is not None:
            bases.update(near({base for at in deltas for base in located.bases(at)}))
        try:
            self._load(located, deltas, bases)
        except _LacksBaseError as lack:
            raise lack.reason from lack.reason.__cause__  # Invariant 7
        return bases

    def read_there(self, ids: Collection[bytes]) -> Bases:
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

    def _fill(self, job: _Job, bases: Bases | None) -> None:
        """Read what a job asks for. `bases` are at hand, and get more; None if each group has its own."""
        while True:
            job.gone = frozenset()
            ranks = job.located.rows["rank"]
            self._read(job, [at for at in job.pending if not ranks[at]], {})
            deltas = [at for at in job.pending if ranks[at]]
            for group in batches(job.located.rows["raw"][deltas].tolist(), BLOCK):
                self._read_deltas(job, deltas[group.start : group.stop], bases)
            if not job.pending:
                return
            self._look_again(job)

    def _read_deltas(self, job: _Job, group: list[int], bases: Bases | None) -> None:
        """Read deltas with their bases; note those that lack one, if they may be read elsewhere."""
        held: Bases = {} if bases is None else bases
        try:
            self._load(job.located, group, held)
        except (_LacksBaseError, _TooMuchError) as error:
            # Invariant 7: only those that need what is lost are concerned.
            if len(group) > 1:
                middle = len(group) // 2
                self._read_deltas(job, group[:middle], bases)
                self._read_deltas(job, group[middle:], bases)
                return
            if not job.elsewhere or isinstance(error, _TooMuchError):
                raise
            job.bar(group, error.reason, lacking=True)
            return
        self._read(job, group, held)

    def _read(self, job: _Job, positions: Sequence[int], bases: Bases) -> None:
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
            except IntegrityError as error:
                # Invariant 4: damage is raised, unless another pack has the same object whole.
                if not job.elsewhere or not self._is_elsewhere(job.located, part, error):
                    raise
                job.bar(part.frames, error, lacking=False)
            else:
                for at in part.frames:
                    del job.pending[at]

    def _read_range(self, job: _Job, part: Range, bases: Bases) -> None:
        """Fetch the frames of a range, and put their objects where they belong."""
        key = pack_key(self._index.pack_id(part.pack))
        fetched = scratch(part.end - part.begin)
        with bad_file_is_damage(self._backend, ADVICE):
            count = self._backend.read_into(key, fetched, start=part.begin)
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

    def _is_elsewhere(self, located: Located, part: Range, error: IntegrityError) -> bool:
        """Avoid a damaged pack from now on; say whether other packs hold everything that is read from it."""
        if isinstance(error, UnsupportedVersion):
            return False
        self._index.avoid_pack(part.pack)
        again = self._index.locate(located.ids(part.frames))
        return bool((again.found & (again.rows["pack"] != part.pack)).all())

    def _look_again(self, job: _Job) -> None:
        """Find other copies of what is pending; raise MissingObject, or why a delta cannot be read, where there is none."""
        left = [at for at in job.pending if at not in job.barred]
        if left:
            job.located = job.located.replaced(left, self._index.locate_all(job.located.ids(left)))
        for at in job.barred.keys() & job.pending.keys():
            other = self._beside(job.located.ids([at]), job.barred[at])
            if other is None:
                raise _LacksBaseError(job.reasons[at])
            job.located = job.located.replaced([at], other)
        for at in job.pending:
            if job.located.rows["rank"][at] >= job.limits.get(at, _ANY_RANK):
                raise _LacksBaseError(job.reasons.get(at) or _no_base(job.located.ids([at])[0]))

    def _beside(self, ids: list[bytes], barred: set[int]) -> Located | None:
        """Find an object in packs other than those that are barred."""

        def usable(number: int) -> bool:
            return number not in barred and number not in self._index.packs.gone

        found = self._index.locate(ids, usable=lambda n: usable(n) and not self._index.is_avoided(n))
        if not found.found.all():
            self._look_harder()
            found = self._index.locate(ids, usable=usable)
        return found if found.found.all() else None

    def _look_harder(self) -> None:
        self._index.refresh()
        try:
            while self._index.read_uncovered():
                pass  # A damaged pack is raised only once nothing else is left to read.
        except FormatError:
            pass  # Invariant 5: what only a damaged pack has is absent, and the caller says so.

    # ---- bases

    def size_of_bases(self, located: Located, at: int) -> int:
        """Return the plain bytes of all bases of a frame, with the bases of those."""
        try:
            levels = self._find_levels(located, [at], {})
        except _LacksBaseError as lack:
            raise lack.reason from lack.reason.__cause__  # Invariant 7
        return sum(int(level.located.rows["raw"].sum(dtype=np.int64)) for level in levels)

    def _load(self, located: Located, positions: Sequence[int], bases: Bases) -> None:
        """Add the plain bytes of all bases that the frames at these positions lack; raise _LacksBaseError if one cannot be had."""
        levels = self._find_levels(located, positions, bases)
        for rank in sorted({rank for level in levels for rank in level.located.rows["rank"].tolist()}):
            for level in levels:
                self._decode_bases(level, rank, bases)

    def _find_levels(self, located: Located, positions: Sequence[int], bases: Bases) -> list[_Level]:
        """Find the bases that these frames lack, then those that these need, and so on."""
        ranks: dict[bytes, int] = {}
        levels: list[_Level] = []
        total = sum(map(len, bases.values()))
        lacking = _lacking(located, positions, bases, ranks)
        while lacking:
            level = _Level(self._find_bases(lacking), list(lacking.values()))
            total += int(level.located.rows["raw"].sum(dtype=np.int64))
            if total > MAX_BASE_BYTES:
                raise _TooMuchError(
                    f"The bases of the object {located.ids(positions)[0].hex()} have {total >> 20} MiB; "
                    f"{MAX_BASE_BYTES >> 20} MiB is the limit."
                )
            ranks.update(zip(lacking, level.located.rows["rank"].tolist(), strict=True))
            levels.append(level)
            lacking = _lacking(level.located, range(len(level.limits)), bases, ranks)
        return levels

    def _find_bases(self, limits: dict[bytes, int]) -> Located:
        """Find each of these objects in a frame of a rank below its limit."""
        ids = list(limits)
        most = np.array(list(limits.values()))
        found = self._index.locate_hinted(ids)
        if not np.all(found.found & (found.rows["rank"] < most)):
            self._look_harder()
            found = self._index.locate(ids)
        wrong = np.flatnonzero(~(found.found & (found.rows["rank"] < most)))
        if wrong.size:
            raise _LacksBaseError(_no_base(ids[int(wrong[0])]))
        return found

    def _decode_bases(self, level: _Level, rank: int, bases: Bases) -> None:
        """Decode those bases of a level that have a rank; the bases that they need are at hand."""
        rows = level.located.rows
        wanted = np.flatnonzero(rows["rank"] == rank).tolist()
        edges = [0, *accumulate(rows["raw"][wanted].tolist())]
        ids = level.located.ids(wanted)
        spans = list(pairwise(edges))
        buffer = new_buffer(edges[-1])
        # A copy that is read instead of a damaged one must still rank below what needs it.
        limits = {at: level.limits[at] for at in wanted}
        job = _Job(
            level.located,
            dict(zip(wanted, spans, strict=True)),
            buffer,
            elsewhere=True,
            verify=True,
            limits=limits,
        )
        try:
            self._fill(job, bases)
        except IntegrityError as error:
            # Invariant 4: the delta above may be elsewhere without this base.
            raise _LacksBaseError(error) from error
        bases.update((item, buffer[begin:end]) for item, (begin, end) in zip(ids, spans, strict=True))


def _lacking(
    located: Located, positions: Sequence[int], bases: Bases, ranks: dict[bytes, int]
) -> dict[bytes, int]:
    """Return the bases of these frames that are neither at hand nor found, each with the rank that it must be below.

    `ranks` are those of frames that are found; raises _LacksBaseError if one is not low enough.
    """
    limits: dict[bytes, int] = {}
    for at in positions:
        if not located.rows["bases"][at]:
            continue
        rank = int(located.rows["rank"][at])
        for base in located.bases(at):
            if ranks.get(base, -1) >= rank:
                raise _LacksBaseError(_no_base(base))
            if base not in bases and base not in ranks:
                limits[base] = min(rank, limits.get(base, rank))
    return limits


def _no_base(object_id: bytes) -> MissingObject:
    return MissingObject(
        f"No pack holds the object {object_id.hex()}, of which another one is made, in a frame of lower rank. "
        "Add the model again, or copy it from a store that has it."
    )
