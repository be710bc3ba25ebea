"""Reads parts of the tensors of one model, from worker threads as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.buffers import new_buffer
from casstore.digest import DIGEST_SIZE
from casstore.objects import BaseCache
from casstore.store.adding.bases.base_chunks import BaseChunks
from casstore.store.reading.files import read_part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casstore.objects import ObjectStore
    from casstore.ops.diff.sides import Side, SideFile

    U8 = NDArray[np.uint8]

__all__ = ["SMALL", "TensorReader"]

SMALL = 64 << 10
"""Bytes below which tensors share chunks with their neighbours (design §4): these chunks are kept for a while."""


class TensorReader:
    """Reads tensors of one model, every byte verified (invariant 4). Safe in threads, and never waits for workers."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._chunks = BaseChunks(objects)
        self._bases = BaseCache()

    def read(self, side: Side, begin: int, end: int) -> U8:
        """Return bytes [`begin`, `end`) of a tensor, aligned to elements of up to 16 bytes."""
        data = self.read_file(side.file, side.span.begin + begin, side.span.begin + end)
        found: U8 = np.frombuffer(data, np.uint8)
        return found if found.ctypes.data % 16 == 0 else found.copy()

    def expect(self, side: Side, offsets: NDArray[np.int64]) -> None:
        """Have the chunks with these bytes of a tensor fetched at once, if the store is far."""
        cache = self._objects.chunks
        if cache is not None and side.size >= SMALL:
            numbers = np.searchsorted(side.file.edges, side.span.begin + offsets, side="right") - 1
            ids = side.file.layout.ids
            cache.request(
                [ids[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE] for at in np.unique(numbers).tolist()]
            )

    def read_file(self, file: SideFile, begin: int, end: int) -> memoryview:
        """Return bytes [`begin`, `end`) of a file, at any address."""
        if begin == end:
            return memoryview(b"")
        if end - begin < SMALL and self._objects.chunks is None:
            parts = list(file.base.parts(begin, end))
            kept = self._chunks.read(chunk_id for chunk_id, _, _ in parts)
            if all(chunk_id in kept for chunk_id, _, _ in parts):
                buffer = new_buffer(end - begin)
                at = 0
                for chunk_id, first, last in parts:
                    buffer[at : at + last - first] = kept[chunk_id].plain[first:last]
                    at += last - first
                return buffer
            # What is missing or damaged is read once more, by what raises errors.
        return read_part(file.layout, self._objects, begin, end, bases=self._bases, alone=True)
