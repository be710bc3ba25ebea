"""Deltas and their bases: which frames decode, and what they need for that (invariant 7).

A frame counts as a copy of its object only if each of its bases has a copy of lower rank. Ranks end at MAX_RANK,
so the search ends after as many steps even for hostile lists that form circles or name themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.format.rows import MAX_RANK, ROW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.format.rows import Rows
    from casstore.objects.index.located import Located

    Locate = Callable[[Sequence[bytes] | bytes], Located]


class Copy(NamedTuple):
    """What a frame needs: `rank` is its own, each of `bases` must have a lower one."""

    rank: int
    bases: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Frames of the objects that were asked for, in order, and what those that are deltas need.

    `found` says which of `located` decode. `needed` are the rows of the bases of those, bases of bases
    included, except deltas that were asked for themselves; `stranded` are the bases that the others lack: in no
    frame, or in none of lower rank.
    """

    located: Located
    found: NDArray[np.bool_]
    needed: Rows
    stranded: frozenset[bytes]

    @property
    def deltas(self) -> list[bytes]:
        """The objects that decode with others only."""
        return self.located.ids(np.flatnonzero(self.found & (self.located.rows["rank"] > 0)))


def resolve(
    locate: Locate, ids: Sequence[bytes] | bytes, *, written: Callable[[bytes], Copy | None] = lambda _: None
) -> Resolved:
    """Find the frames of objects, and judge deltas by what `locate` finds of their bases.

    `written` knows of frames that no index names yet, and may serve as bases.
    """
    located = locate(ids)
    found = located.found
    deltas = np.flatnonzero(located.rows["rank"]).tolist()
    if not deltas:
        return Resolved(located, found, np.zeros(0, ROW), frozenset())
    copies = dict(_copies(located, deltas))
    asked = list(copies)
    places: dict[bytes, int] = {}
    parts = [np.zeros(0, ROW)]
    level = copies
    for _ in range(MAX_RANK):
        wanted = {base for copy in level.values() for base in copy.bases} - copies.keys()
        if not wanted:
            break
        level = {base: copy for base in wanted if (copy := written(base)) is not None}
        below = locate(sorted(wanted - level.keys()))
        there = np.flatnonzero(below.found).tolist()
        level.update(_copies(below, there))
        places.update(zip(below.ids(there), range(len(places), len(places) + len(there)), strict=True))
        parts.append(below.rows[there])
        copies.update(level)
    ranks = decodable((object_id, *copy) for object_id, copy in copies.items())
    found[deltas] = [object_id in ranks for object_id in located.ids(deltas)]
    needed = _closure((object_id for object_id in asked if object_id in ranks), copies)
    return Resolved(
        located,
        found,
        np.concatenate(parts, dtype=ROW)[[places[base] for base in sorted(needed & places.keys())]],
        frozenset(_stranded(copies, ranks)),
    )


def decodable(frames: Iterable[tuple[bytes, int, tuple[bytes, ...]]]) -> dict[bytes, int]:
    """Return the objects of which one of these frames decodes, with the lowest rank of such a frame.

    A frame is its object's id, its rank, and the ids of its bases; an object may have several.
    """
    ranks: dict[bytes, int] = {}
    for object_id, rank, bases in sorted(frames, key=lambda item: item[1]):
        if object_id not in ranks and all(ranks.get(base, MAX_RANK + 1) < rank for base in bases):
            ranks[object_id] = rank
    return ranks


def _copies(located: Located, positions: Iterable[int]) -> Iterator[tuple[bytes, Copy]]:
    chosen = list(positions)
    # Columns as lists: each look-up in an array gives a numpy scalar, which takes ten times as long.
    rows = located.rows[chosen]
    ranks, numbers, sources = rows["rank"].tolist(), rows["bases"].tolist(), located.sources[chosen].tolist()
    lists = {source: list(located.lists[source].all()) for source in set(sources)}
    for object_id, rank, number, source in zip(located.ids(chosen), ranks, numbers, sources, strict=True):
        yield object_id, Copy(rank, lists[source][number - 1] if number else ())


def _closure(ids: Iterable[bytes], copies: dict[bytes, Copy]) -> set[bytes]:
    """Return all bases, transitively."""
    seen: set[bytes] = set()
    left = list(ids)
    while left:
        fresh = [base for base in copies[left.pop()].bases if base not in seen]
        seen.update(fresh)
        left += fresh
    return seen


def _stranded(copies: dict[bytes, Copy], ranks: dict[bytes, int]) -> Iterator[bytes]:
    for object_id, copy in copies.items():
        if object_id not in ranks:
            for base in copy.bases:
                if base not in copies or copies[base].rank >= copy.rank:
                    yield base
