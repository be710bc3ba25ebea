"""Reads files of models piece by piece for many clients at once, in bounded memory.

A client that reads slowly holds its piece until it has taken it, so pieces get smaller as clients get more.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from casstore.api.store import Store
    from casstore.format.layout import Layout

__all__ = ["PieceReader"]

_BUDGET = 64 << 20
"""Bytes of pieces that all clients together hold, unless they are so many that each has no more than a chunk."""

_LARGEST = 4 << 20
_SMALLEST = 512 << 10

_AHEAD = 32
"""While no more clients than this read, the next piece of each is read while the last one is sent."""

_THREADS = 4
_SENT_AT_ONCE = 256 << 10
"""Bytes that go to the event loop at once: it copies what the socket does not take."""


class PieceReader:
    """The files of one store, for all requests of one server; for its event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="casstore-serve-read")
        self.clients = 0

    def close(self) -> None:
        """Wait for reads under way, and end the threads."""
        self._threads.shutdown(cancel_futures=True)

    async def read(self, layout: Layout, begin: int, end: int, *, name: str) -> AsyncGenerator[memoryview]:
        """Yield bytes [`begin`, `end`) of a file in order, every byte verified (invariant 4); raises as reading does."""
        edges = layout.offsets()
        loop = asyncio.get_running_loop()

        def start(at: int, stop: int) -> asyncio.Future[memoryview]:
            task = loop.run_in_executor(
                self._threads, lambda: self._store.read_part(layout, at, stop, name=name)
            )
            task.add_done_callback(_look_at)
            return task

        self.clients += 1
        ahead: asyncio.Future[memoryview] | None = None
        try:
            while begin < end:
                stop = self._stop(edges, begin, end)
                piece = await (ahead or start(begin, stop))
                ahead = None
                begin += len(piece)
                if begin < end and self.clients <= _AHEAD:
                    ahead = start(begin, self._stop(edges, begin, end))
                for at in range(0, len(piece), _SENT_AT_ONCE):
                    yield piece[at : at + _SENT_AT_ONCE]
                del piece
        finally:
            self.clients -= 1
            if ahead is not None:
                ahead.cancel()

    def _stop(self, edges: np.ndarray[tuple[int], np.dtype[np.int64]], begin: int, end: int) -> int:
        """Return where a piece that begins at `begin` ends: with a chunk, which would be decoded again otherwise."""
        size = max(_SMALLEST, min(_LARGEST, _BUDGET // (2 * max(1, self.clients))))
        at = int(np.searchsorted(edges, begin + size, side="right")) - 1
        stop = int(edges[at])
        if stop <= begin:
            stop = int(edges[at + 1])
        return min(stop, end)


def _look_at(task: asyncio.Future[memoryview]) -> None:
    """Take the error of a read that nobody waits for any more: its client has left."""
    if not task.cancelled():
        task.exception()
