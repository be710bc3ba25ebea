"""Joins index segments: chooses which, and merges them with memory for one batch of rows at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import Hasher
from casstore.errors import ObjectExists
from casstore.format import index as index_format
from casstore.format.rows import ROW, sort_order
from casstore.objects.index.list_merging import MergedLists
from casstore.objects.index.segment import BATCH_BITS
from casstore.objects.keys import index_key_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.backend.base import Backend
    from casstore.format.rows import Rows
    from casstore.objects.index.segment import Segment

MAX_SEGMENTS = 12
"""Segments up to this number are not merged: fewer merges mean that each add writes less."""

RATIO = 4
"""After a merge, each segment has this many times the rows of all smaller ones together.

So there are few, and a row is written again a few times for each fivefold growth of the store: 64 bytes each,
of some 300,000 bytes that the row stands for. (As `git repack --geometric` does with packs.)
"""


def choose_parts(segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments to join, smallest first; none while there are few."""
    if len(segments) <= MAX_SEGMENTS:
        return []
    ordered = sorted(segments, key=lambda segment: (len(segment), segment.key))
    below = count = 0
    for at, segment in enumerate(ordered):
        if at and len(segment) < RATIO * below:
            count = at + 1
        below += len(segment)
    return ordered[:count]


def superfluous(segments: Sequence[Segment]) -> set[str]:
    """Return the keys of segments whose packs all are in one larger segment.

    Two processes that merged nearly the same parts leave such segments, and so do parts that could not be deleted. Of several
    that cover the same packs, every process keeps the same one.
    """
    ordered = sorted(segments, key=lambda segment: (-len(segment.numbers), segment.key))
    most = max((int(segment.numbers.max(initial=0)) for segment in segments), default=0)
    holder = np.full(most + 1, -1)
    spare = set()
    for at, segment in enumerate(ordered):
        holders = holder[segment.numbers]
        if len(holders) == 0 or (holders[0] >= 0 and (holders == holders[0]).all()):
            spare.add(segment.key)
        holder[segment.numbers[holders < 0]] = at
    return spare


def write_merged(
    backend: Backend, parts: Sequence[Segment], *, without: frozenset[bytes] = frozenset()
) -> tuple[str, bool]:
    """Write one durable segment with the rows of all parts; return its key and whether it is new.

    The packs in `without` are left out. Raises FormatError if a part is damaged.
    """
    sources, packs = _sources(parts, without)
    lists = MergedLists(parts)
    for source, renumbered in zip(sources, lists.renumbered, strict=True):
        source.renumbered = renumbered
    count = sum(source.count() for source in sources)
    bits = max(0, count.bit_length() - BATCH_BITS)
    bits = min(bits, index_format.bucket_bits(count))

    def batches() -> Iterator[Rows]:
        for together in zip(*(source.batches(bits) for source in sources), strict=True):
            rows = np.concatenate(together, dtype=ROW)
            yield rows[sort_order(rows)]

    hasher = Hasher()
    with backend.open_writer() as writer:
        for data in index_format.encode_parts(batches, count, lists, packs):
            hasher.update(data)
            writer.write([data])
        key = index_key_of(hasher.digest())
        try:
            writer.commit(key)
        except ObjectExists:
            return (
                key,
                False,
            )  # Invariant 5: its name is its hash, so another writer's file has the same bytes.
    return key, True


class _Source:
    """A part for the merged segment: without packs that an earlier part covers, and renumbered."""

    def __init__(self, segment: Segment, positions: NDArray[np.uint32], taken: NDArray[np.bool_]) -> None:
        self.segment = segment
        self._positions = positions
        self._taken = taken
        self.renumbered = np.zeros(1, np.uint32)

    def batches(self, bits: int | None = None) -> Iterator[Rows]:
        for rows in self.segment.batches(bits):
            kept = rows[self._taken[rows["pack"]]] if not self._taken.all() else rows.copy()
            kept["pack"] = self._positions[kept["pack"]]
            kept["bases"] = self.renumbered[kept["bases"]]
            yield kept

    def count(self) -> int:
        if self._taken.all():
            return len(self.segment)
        return sum(int(np.count_nonzero(self._taken[rows["pack"]])) for rows in self.segment.batches())


def _sources(parts: Sequence[Segment], without: frozenset[bytes]) -> tuple[list[_Source], dict[bytes, int]]:
    """Return the parts, and the sizes of all their packs by id, in the merged segment's order."""
    order: dict[bytes, int] = {}
    sizes: dict[bytes, int] = {}
    sources = []
    for segment in parts:
        packs = segment.head.packs
        # Two processes may have merged the same parts; the first part that covers a pack has all of its rows.
        taken = np.array([pack not in order and pack not in without for pack in packs], np.bool_)
        positions = np.array(
            [0 if pack in without else order.setdefault(pack, len(order)) for pack in packs], np.uint32
        )
        for pack, size in zip(packs, segment.head.sizes, strict=True):
            if pack not in without:
                sizes.setdefault(pack, size)
        sources.append(_Source(segment, positions, taken))
    return sources, sizes
