"""The base lists of an index segment, read and verified by blocks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.errors import FormatError
from casstore.format.index import BLOCK
from casstore.format.rows import MAX_BASES, BaseLists, expand
from casstore.objects.index.segment_file import DAMAGED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casstore.format.index import Head
    from casstore.objects.index.segment_file import SegmentFile

    Positions = NDArray[np.int64]

_AT_ONCE = 1 << 16

_HELD = 256 << 10
"""Bytes of base lists that are kept in memory: what a store of a few models has."""

_SHORT_QUESTIONS = 4
"""Questions after which they are: a process that asks only once or twice reads less without."""


class StoredLists:
    """The base lists of one segment. Safe in threads."""

    def __init__(self, file: SegmentFile, head: Head) -> None:
        self._file = file
        self._head = head
        self._checked_blocks = np.zeros(head.shape.blocks, np.bool_)
        self._held: BaseLists | None = None
        self._questions = 0

    def __len__(self) -> int:
        return self._head.shape.lists

    @property
    def total(self) -> int:
        """How many ids all lists have together."""
        return self._head.shape.list_ids

    def take(self, numbers: NDArray[np.int64]) -> BaseLists:
        """Return the base lists with these numbers, which start at 0, in this order; only what holds them is read."""
        self._questions += 1
        if self._held is None and self._questions > _SHORT_QUESTIONS and self._head.shape.bases_size <= _HELD:
            self._held = self.range(0, len(self))
        if self._held is not None and bool((numbers < len(self)).all()):
            return self._held.take(numbers)
        shape = self._head.shape
        origin = DIGEST_SIZE * shape.list_ids
        begins = self._items("<u4", origin, numbers)
        ends = self._items("<u4", origin, numbers + 1)
        if np.any(begins > ends) or np.any(ends > shape.list_ids) or np.any(ends - begins > MAX_BASES):
            raise FormatError(f"{self._file.key} has a base list that cannot exist. {DAMAGED}")
        positions, stops = expand(begins, ends)
        ids = self._items(f"V{DIGEST_SIZE}", 0, positions)
        return BaseLists(np.concatenate([[0], stops]).astype("<u4"), ids.tobytes())

    def range(self, begin: int, end: int) -> BaseLists:
        """Return the base lists from number `begin` to before `end`, as `take` does but many at once."""
        shape = self._head.shape
        origin = DIGEST_SIZE * shape.list_ids
        offsets = self._slice("<u4", origin + 4 * begin, origin + 4 * (end + 1))
        if (
            np.any(offsets[:-1] > offsets[1:])
            or offsets[-1] > shape.list_ids
            or np.any(np.diff(offsets) > MAX_BASES)
        ):
            raise FormatError(f"{self._file.key} has a base list that cannot exist. {DAMAGED}")
        ids = self._slice("u1", DIGEST_SIZE * int(offsets[0]), DIGEST_SIZE * int(offsets[-1]))
        return BaseLists(offsets - offsets[0], ids.tobytes())

    def _slice(self, dtype: str, begin: int, end: int) -> NDArray[Any]:
        first = begin // BLOCK
        fetched = self._read_blocks(np.arange(first, -(-end // BLOCK)))
        return fetched[begin - first * BLOCK : end - first * BLOCK].view(dtype)

    def _items(self, dtype: str, origin: int, positions: Positions) -> NDArray[Any]:
        """Return items of the base lists, read and verified by blocks; `origin` is the byte where item 0 starts."""
        width = np.dtype(dtype).itemsize
        places = origin + positions.astype(np.int64) * width
        blocks, which = distinct(places // BLOCK)
        fetched = self._read_blocks(blocks).view(dtype)
        items: NDArray[Any] = fetched[which * (BLOCK // width) + places % BLOCK // width]
        return items

    def _read_blocks(self, blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read and verify distinct, ascending blocks of the base lists; the last one of all is filled up with zeros."""
        fetched = np.zeros((len(blocks), BLOCK), np.uint8)
        if not len(blocks):
            return fetched.reshape(-1)
        shape = self._head.shape
        memory = memoryview(fetched.reshape(-1))
        runs = [0, *(np.flatnonzero(np.diff(blocks) != 1) + 1).tolist(), len(blocks)]
        places = []
        for first, last in itertools.pairwise(runs):
            begin = int(blocks[first]) * BLOCK
            size = min((last - first) * BLOCK, shape.bases_size - begin)
            places.append((shape.bases_begin + begin, first * BLOCK, first * BLOCK + size))
        self._file.read_places(memory, places)
        fresh = np.flatnonzero(~self._checked_blocks[blocks])
        sizes = np.minimum(BLOCK, shape.bases_size - blocks[fresh] * BLOCK).tolist()
        parts = [
            memory[at * BLOCK : at * BLOCK + size] for at, size in zip(fresh.tolist(), sizes, strict=True)
        ]
        self._head.check_blocks(blocks[fresh], parts, key=self._file.key)
        self._checked_blocks[blocks] = True
        return fetched.reshape(-1)

    def verify(self) -> None:
        """Read and verify all of them; raise FormatError if one is damaged."""
        for begin in range(0, len(self), _AT_ONCE):
            self.range(begin, min(begin + _AT_ONCE, len(self)))


def distinct(values: Positions) -> tuple[Positions, Positions]:
    """Return the distinct values, ascending, and which of them each value is.

    As np.unique does, whose first call spends 30 ms on importing masked arrays.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.diff(ordered, prepend=-1) != 0
    which = np.empty(len(values), np.int64)
    which[order] = np.cumsum(new) - 1
    return ordered[new], which
