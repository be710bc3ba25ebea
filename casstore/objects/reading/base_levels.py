"""Which bases some deltas need: looked up level by level, each in a frame of a lower rank than what needs it (invariant 7).

So chains, and lists that form circles, end after as many steps as there are ranks.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.concurrency.buffers import BLOCK_BUFFER, give_block, new_buffer, take_block
from casstore.errors import FormatError, IntegrityError, MissingObject
from casstore.format.rows import MAX_BASE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from casstore.objects.index.index import Index
    from casstore.objects.index.located import Located


class LacksBaseError(Exception):
    """A base of a delta cannot be read, for `reason`. ObjectReader raises that instead."""

    def __init__(self, reason: IntegrityError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class TooMuchError(FormatError):
    """The bases of some deltas have more bytes than are decoded at once."""


@dataclass(slots=True)
class Bases:
    """Plain bytes of bases by id, while deltas are read. `lost` could not be read from a frame below a rank, with the reason.

    `looked` says that packs without a segment were read in vain. With `lending`, memory is lent until `release`.
    """

    lending: bool = False
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


class Level(NamedTuple):
    """Bases that frames need at once, and the rank that each must be below."""

    located: Located
    limits: list[int]


def find_levels(index: Index, located: Located, positions: Sequence[int], bases: Bases) -> list[Level]:
    """Find the bases that these frames need and that are not at hand, then those that these need, and so on.

    Each is named once. Raises LacksBaseError for one that is in no frame of low enough rank, TooMuchError.
    """
    ranks: dict[bytes, int] = {}
    levels: list[Level] = []
    total = 0
    lacking = _lacking(located, positions, bases, ranks)
    while lacking:
        level = Level(find_bases(index, lacking, bases), list(lacking.values()))
        total += int(level.located.rows["raw"].sum(dtype=np.int64))
        bases.check_room(total, located.ids(positions)[0])
        ranks.update(zip(lacking, level.located.rows["rank"].tolist(), strict=True))
        levels.append(level)
        lacking = _lacking(level.located, range(len(level.limits)), bases, ranks)
    return levels


def sizes_below(index: Index, located: Located, positions: Sequence[int]) -> dict[int, int]:
    """Return the plain bytes of all bases of each of these frames, with the bases of those, by position.

    Raises LacksBaseError, and TooMuchError if those of one frame are too many.
    """
    try:
        levels = find_levels(index, located, positions, Bases())
    except TooMuchError:
        if len(positions) == 1:
            raise
        middle = len(positions) // 2
        halves = (sizes_below(index, located, half) for half in (positions[:middle], positions[middle:]))
        return {at: size for half in halves for at, size in half.items()}
    found: dict[bytes, tuple[int, tuple[bytes, ...]]] = {}
    for level in levels:
        every = range(len(level.limits))
        sizes = level.located.rows["raw"].tolist()
        entries = zip(sizes, map(level.located.bases, every), strict=True)
        found.update(zip(level.located.ids(every), entries, strict=True))
    return {at: _size_of_all(located.bases(at), found) for at in positions}


def _size_of_all(ids: Iterable[bytes], found: Mapping[bytes, tuple[int, tuple[bytes, ...]]]) -> int:
    """Return the plain bytes of objects and all their bases, each counted once; `found` has sizes and bases by id."""
    sizes: dict[bytes, int] = {}
    left = list(ids)
    while left:
        base = left.pop()
        if base not in sizes:
            sizes[base], further = found[base]
            left += further
    return sum(sizes.values())


def find_bases(index: Index, limits: dict[bytes, int], bases: Bases) -> Located:
    """Find each of these objects in a frame of a rank below its limit; raise LacksBaseError if one is in none."""
    ids = list(limits)
    most = np.array(list(limits.values()))
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


def _lacking(
    located: Located, positions: Sequence[int], bases: Bases, ranks: dict[bytes, int]
) -> dict[bytes, int]:
    """Return the bases of these frames that are neither at hand nor found, each with the rank that it must be below.

    `ranks` are those of frames that are found; raises LacksBaseError if one is not low enough.
    """
    limits: dict[bytes, int] = {}
    for at in positions:
        if not located.rows["bases"][at]:
            continue
        rank = int(located.rows["rank"][at])
        for base in located.bases(at):
            if ranks.get(base, -1) >= rank:
                raise LacksBaseError(no_base(base))
            if base not in bases.plain and base not in ranks:
                limits[base] = min(rank, limits.get(base, rank))
    return limits
