"""Which bases some deltas need: looked up level by level, each in a frame of a lower rank than what needs it (invariant 7).

So chains, and lists that form circles, end after as many steps as there are ranks.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.concurrency.buffers import BLOCK_BUFFER, give_block, new_buffer, take_block
from casstore.errors import FormatError, IntegrityError, MissingObject
from casstore.format.rows import MAX_BASE_BYTES, MAX_RANK, ROW, ROW_FIELDS
from casstore.objects.index.located import Located

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from casstore.objects.index.index import Index


class LacksBaseError(Exception):
    """A base of a delta cannot be read, for `reason`. ObjectReader raises that instead."""

    def __init__(self, reason: IntegrityError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class TooMuchError(FormatError):
    """The bases of some deltas have more bytes than are decoded at once."""


class KnownBases:
    """Where bases of many frames are, and bases of those, looked up at once: hints, for what is not here is looked up."""

    def __init__(self, index: Index, located: Located, positions: Sequence[int]) -> None:
        """Look for all bases of the frames at these positions as far as the index knows them; reads no pack."""
        levels: list[Located] = []
        self._places: dict[bytes, int] = {}
        wanted = np.asarray(positions, np.int64)
        frames = needs_of(located, wanted[located.rows["bases"][wanted] > 0].tolist())
        for _ in range(MAX_RANK):
            lacking = dict.fromkeys(base for frame in frames for base in frame.bases)
            ids = [base for base in lacking if base not in self._places]
            if not ids:
                break
            found = index.locate_hinted(ids)
            frames = needs_of(found, np.flatnonzero(found.found).tolist())
            first = sum(len(level.rows) for level in levels)
            self._places.update((ids[frame.position], first + frame.position) for frame in frames)
            levels.append(found)
        self._rows = np.concatenate([np.zeros(0, ROW), *(level.rows for level in levels)], dtype=ROW)
        firsts = accumulate((len(level.lists) for level in levels), initial=0)
        sources = [level.sources + first for level, first in zip(levels, firsts, strict=False)]
        self._sources = np.concatenate([np.zeros(0, np.int32), *sources], dtype=np.int32)
        self._lists = tuple(item for level in levels for item in level.lists)

    def take(self, ids: Sequence[bytes]) -> Located | None:
        """Return where these objects are, None unless all of them were found."""
        places = [self._places.get(base, -1) for base in ids]
        if -1 in places:
            return None
        return Located(self._rows[places], self._sources[places], self._lists)


@dataclass(slots=True)
class Bases:
    """Plain bytes of bases by id, while deltas are read. `lost` could not be read from a frame below a rank, with the reason.

    `looked` says that packs without a segment were read in vain. With `lending`, memory is lent until `release`. `known` says
    where some bases are.
    """

    lending: bool = False
    known: KnownBases | None = None
    plain: dict[bytes, memoryview] = field(default_factory=dict)
    lost: dict[bytes, tuple[int, IntegrityError]] = field(default_factory=dict)
    looked: bool = False
    _lent: list[memoryview] = field(default_factory=list)

    def take(self, size: int) -> memoryview:
        """Return memory for so many bytes of bases."""
        if not self.lending or size > BLOCK_BUFFER:
            return new_buffer(size)
        self._lent.append(take_block())
        return self._lent[-1][:size]

    def release(self) -> None:
        """Give back memory that was lent; nobody may use any of the bases any more."""
        self.plain.clear()
        while self._lent:
            give_block(self._lent.pop())

    def check_room(self, size: int, object_id: bytes) -> None:
        """Raise TooMuchError if bases of so many bytes more are too many for an object."""
        total = size + sum(map(len, self.plain.values()))
        if total > MAX_BASE_BYTES:
            raise TooMuchError(
                f"The bases of the object {object_id.hex()} have {total >> 20} MiB; "
                f"{MAX_BASE_BYTES >> 20} MiB is the limit."
            )


class Needs(NamedTuple):
    """What one frame needs: its position, its rank, the plain bytes of its object, and its bases."""

    position: int
    rank: int
    raw: int
    bases: tuple[bytes, ...]


def needs_of(located: Located, positions: Sequence[int]) -> list[Needs]:
    """Return what the frames at these positions need."""
    rows = located.rows[list(positions)].tobytes()
    found = []
    # One row after the other: asking numpy for a field takes ten times as long.
    for at, row in zip(positions, ROW_FIELDS.iter_unpack(rows), strict=True):
        _, _, _, raw, _, some, _, _, rank = row
        found.append(Needs(at, rank, raw, located.bases(at) if some else ()))
    return found


class Level(NamedTuple):
    """Bases that frames need at once, by id; where they are, what they need, and the rank that each must be below."""

    ids: list[bytes]
    located: Located
    needs: list[Needs]
    limits: list[int]

    @property
    def size(self) -> int:
        """Plain bytes of all of them."""
        return sum(item.raw for item in self.needs)


def find_levels(index: Index, located: Located, frames: Sequence[Needs], bases: Bases) -> list[Level]:
    """Find the bases that these frames of `located` need and that are not at hand, then those that these need, and so on.

    Each is named once. Raises LacksBaseError for one that is in no frame of low enough rank, TooMuchError.
    """
    ranks: dict[bytes, int] = {}
    levels: list[Level] = []
    total = 0
    lacking = _lacking(frames, bases, ranks)
    while lacking:
        ids = list(lacking)
        found = find_bases(index, lacking, bases)
        level = Level(ids, found, needs_of(found, range(len(ids))), list(lacking.values()))
        total += level.size
        bases.check_room(total, located.ids([frames[0].position])[0])
        ranks.update(zip(ids, (item.rank for item in level.needs), strict=True))
        levels.append(level)
        lacking = _lacking(level.needs, bases, ranks)
    return levels


def sizes_below(index: Index, located: Located, positions: Sequence[int]) -> dict[int, int]:
    """Return the plain bytes of all bases of each of these frames, with the bases of those, by position.

    Raises LacksBaseError, and TooMuchError if those of one frame are too many.
    """
    frames = needs_of(located, positions)
    try:
        return sizes_in(find_levels(index, located, frames, Bases()), frames)
    except TooMuchError:
        if len(positions) == 1:
            raise
        middle = len(positions) // 2
        halves = (sizes_below(index, located, half) for half in (positions[:middle], positions[middle:]))
        return {at: size for half in halves for at, size in half.items()}


def sizes_in(levels: Sequence[Level], frames: Sequence[Needs]) -> dict[int, int]:
    """Return what `sizes_below` does for frames of which these are the levels of all bases."""
    found = {base: need for level in levels for base, need in zip(level.ids, level.needs, strict=True)}
    return {frame.position: _size_of_all(frame.bases, found) for frame in frames}


def _size_of_all(ids: Iterable[bytes], found: Mapping[bytes, Needs]) -> int:
    """Return the plain bytes of objects and all their bases, each counted once; `found` has what they need by id."""
    sizes: dict[bytes, int] = {}
    left = list(ids)
    while left:
        base = left.pop()
        if base not in sizes:
            sizes[base] = found[base].raw
            left += found[base].bases
    return sum(sizes.values())


def find_bases(index: Index, limits: dict[bytes, int], bases: Bases) -> Located:
    """Find each of these objects in a frame of a rank below its limit; raise LacksBaseError if one is in none."""
    ids = list(limits)
    most = np.array(list(limits.values()))
    found = bases.known.take(ids) if bases.known is not None else None
    if found is None or not np.all(found.rows["rank"] < most):
        found = index.locate_hinted(ids)
    if not bases.looked and not np.all(found.found & (found.rows["rank"] < most)):
        look_harder(index)
        bases.looked = True
        found = index.locate(ids)
    wrong = np.flatnonzero(~(found.found & (found.rows["rank"] < most)))
    if wrong.size:
        raise LacksBaseError(no_base(ids[int(wrong[0])]))
    return found


def look_harder(index: Index) -> None:
    """Read new segments, and the footers of packs that none covers."""
    index.refresh()
    # Invariant 5: what only a damaged pack has is absent, and whoever needs it says so.
    with contextlib.suppress(FormatError):
        while index.read_uncovered():
            pass  # A damaged pack is raised only once nothing else is left to read.


def no_base(object_id: bytes) -> MissingObject:
    """Return the error of an object that is needed as a base."""
    return MissingObject(
        f"No pack holds the object {object_id.hex()}, of which another one is made, in a frame of lower rank. "
        "Add the model again, or copy it from a store that has it."
    )


def _lacking(frames: Sequence[Needs], bases: Bases, ranks: dict[bytes, int]) -> dict[bytes, int]:
    """Return the bases of these frames that are neither at hand nor found, each with the rank that it must be below.

    `ranks` are those of frames that are found; raises LacksBaseError if one is not low enough.
    """
    limits: dict[bytes, int] = {}
    for frame in frames:
        for base in frame.bases:
            if ranks.get(base, -1) >= frame.rank:
                raise LacksBaseError(no_base(base))
            if base not in bases.plain and base not in ranks:
                limits[base] = min(frame.rank, limits.get(base, frame.rank))
    return limits
