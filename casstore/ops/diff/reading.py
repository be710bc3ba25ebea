"""Reads parts of the tensors of one model, from worker threads as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.buffers import new_buffer
from casstore.digest import DIGEST_SIZE
from casstore.objects import BaseCache
from casstore.store.reading.files import read_chunks, read_part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casstore.objects import ObjectStore
    from casstore.ops.diff.sides import Side, SideFile

    U8 = NDArray[np.uint8]

__all__ = ["SMALL", "TensorReader"]

SMALL = 64 << 10
"""Bytes below which tensors share chunks with their neighbours (design §4): these chunks are kept for a while."""

_KEPT = 32 << 20
"""Plain bytes of chunks of which small parts are read."""


class TensorReader:
    """Reads tensors of one model, every byte verified (invariant 4). Safe in threads, and never waits for workers."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._chunks = BaseCache(limit=_KEPT)
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
        if end - begin >= SMALL or self._objects.chunks is not None:
            return read_part(file.layout, self._objects, begin, end, bases=self._bases, alone=True)
        first = int(np.searchsorted(file.edges, begin, side="right")) - 1
        stop = int(np.searchsorted(file.edges, end, side="left"))
        out = new_buffer(end - begin)
        for number in range(first, stop):
            origin, limit = int(file.edges[number]), int(file.edges[number + 1])
            low, high = max(begin, origin), min(end, limit)
            out[low - begin : high - begin] = self._chunk(file, number)[low - origin : high - origin]
        return out

    def _chunk(self, file: SideFile, number: int) -> memoryview:
        chunk_id = file.layout.ids[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]
        plain = self._chunks.get([chunk_id]).get(chunk_id)
        if plain is None:
            plain = read_chunks(file.layout, self._objects, number, number + 1, bases=self._bases, alone=True)
            self._chunks.put({chunk_id: plain})
        return plain
