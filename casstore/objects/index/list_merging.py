"""Joining the base lists of index segments, batch by batch, equal lists once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from casstore.format.rows import BaseLists

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.objects.index.segment import Segment

BATCH = 1 << 17
"""About how many lists are joined at once; fewer if they have more than four ids each."""


class MergedLists:
    """The base lists of several segments, sorted, equal ones once.

    Memory: 4 bytes for each list, 8 for each that is left, and one batch. `renumbered[k]` says what each value of the `bases`
    field in rows of segment k becomes.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._edges = _batch_edges(segments)
        self.renumbered = [np.zeros(len(segment.lists) + 1, np.uint32) for segment in segments]
        counts: list[NDArray[np.uint32]] = [np.zeros(1, np.uint32)]
        self._chosen: list[NDArray[np.uint32]] = []
        done = 0
        for at in range(self._batches):
            lists = self._read(at)
            chosen, renumbered = lists.order()
            self._chosen.append(chosen.astype(np.uint32))
            counts.append(np.diff(lists.offsets)[chosen])
            begin = 1
            for target, edges in zip(self.renumbered, self._edges, strict=True):
                end = begin + int(edges[at + 1] - edges[at])
                target[edges[at] + 1 : edges[at + 1] + 1] = renumbered[begin:end] + np.uint32(done)
                begin = end
            done += len(chosen)
        self._offsets = np.cumsum(np.concatenate(counts), dtype="<u4")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def total(self) -> int:
        """How many ids all lists have together."""
        return int(self._offsets[-1])

    def parts(self) -> Iterator[bytes]:
        """Yield all ids, then all offsets."""
        for at, chosen in enumerate(self._chosen):
            yield self._read(at).take(chosen).ids
        yield self._offsets.tobytes()

    @property
    def _batches(self) -> int:
        return len(self._edges[0]) - 1 if self._edges else 0

    def _read(self, at: int) -> BaseLists:
        """Return the lists of one batch, those of one segment after those of the other."""
        parts = [
            segment.lists.range(int(edges[at]), int(edges[at + 1]))
            for segment, edges in zip(self._segments, self._edges, strict=True)
            if edges[at] < edges[at + 1]
        ]
        counts = [np.zeros(1, np.uint32), *(np.diff(part.offsets) for part in parts)]
        offsets = np.cumsum(np.concatenate(counts), dtype="<u4")
        return BaseLists(offsets, b"".join(part.ids for part in parts))


def _batch_edges(segments: Sequence[Segment]) -> list[NDArray[np.int64]]:
    """Return for each segment where its batches start and end, so that equal lists are in the same batch of each."""
    total = sum(max(len(segment.lists), segment.lists.total // 4) for segment in segments)
    bits = max(0, (total // BATCH).bit_length())
    leads = [lead << (64 - bits) if bits else 0 for lead in range(1, 1 << bits)]
    edges = []
    for segment in segments:
        lists = len(segment.lists)
        inner = [_first_from(segment, lead) for lead in leads]
        # Where a segment is not sorted, equal lists may both be kept, but none is lost.
        edges.append(np.array(list(itertools.accumulate([0, *inner, lists], max)), np.int64))
    return edges


def _first_from(segment: Segment, lead: int) -> int:
    """Return the first list of a segment whose first id begins with `lead` or more."""
    low, high = 0, len(segment.lists)
    while low < high:
        middle = (low + high) // 2
        if int.from_bytes(segment.lists.range(middle, middle + 1).ids[:8], "big") < lead:
            low = middle + 1
        else:
            high = middle
    return low
