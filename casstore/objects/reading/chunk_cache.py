"""Chunks of a store that is a network away: fetched in few ranges, several at once, and kept for a while.

One request fetches one block. Blocks are found by the ids of their chunks, so two readers that want the
same chunk, now or later, fetch it once; the least recently used ones are dropped.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from casstore.concurrency.buffers import new_buffer
from casstore.concurrency.forks import ForkAware, watch_forks
from casstore.errors import BackendError, ConfigError, IntegrityError
from casstore.objects.reading.ranges import plan_ranges

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casstore.objects.index.located import Located
    from casstore.objects.object_store import ObjectStore

CHUNK_CACHE = 64 << 20
"""Default limit on the plain bytes that stay in memory for each open store."""

FETCH = 2 << 20
"""Stored bytes that one request takes, at most, unless one frame is larger. Eight such requests fill a long line."""

_PLAIN = 4 << 20
"""Limit on the plain bytes of one block, so that data that compresses well does not fill the memory."""

_FETCHERS = 8
_PAGES = 256 << 10
_MIN_LIMIT = 8 << 20


@dataclass(slots=True, eq=False)
class Block:
    """The verified plain bytes of chunks that came together, `size` of them, or will come."""

    ids: tuple[bytes, ...]
    size: int
    ahead: bool
    arrival: Future[memoryview] = field(default_factory=Future)


class Piece(NamedTuple):
    """Where a chunk is: bytes [`begin`, `end`) of a block."""

    block: Block
    begin: int
    end: int


class ChunkCache(ForkAware):
    """Reads chunks of one store; safe in threads, and empty in a child process after a fork.

    `limit` is in plain bytes. Requests under way hold about 50 MiB besides, whatever is read.
    """

    def __init__(self, objects: ObjectStore, *, limit: int = CHUNK_CACHE) -> None:
        if limit < _MIN_LIMIT:
            raise ConfigError(
                f"A chunk cache of {limit} bytes is too small to read with: use {_MIN_LIMIT} or more."
            )
        self._objects = objects
        self._limit = limit
        self.after_fork_in_child()
        watch_forks(self)

    def after_fork_in_child(self) -> None:
        """Start afresh in a forked child, which has none of its parent's threads but its locks as they were."""
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._places: dict[bytes, Piece] = {}
        self._blocks: OrderedDict[Block, None] = OrderedDict()
        self._size = 0
        self._readers: weakref.WeakSet[object] = weakref.WeakSet()

    @property
    def size(self) -> int:
        """Plain bytes that are kept or on their way."""
        return self._size

    @property
    def window(self) -> int:
        """Plain bytes that one reader should ask for at once."""
        return self._limit // 8

    def share_of(self, reader: object) -> int:
        """Return the bytes that `reader`, one of those that read in order now, may have fetched ahead."""
        with self._lock:
            self._readers.add(reader)
            return max(FETCH, self._limit // 4 // len(self._readers))

    def leave(self, reader: object) -> None:
        """Give this reader's share to the others."""
        with self._lock:
            self._readers.discard(reader)

    def request(self, ids: Sequence[bytes], *, ahead: bool = False) -> list[Piece]:
        """Begin to fetch the chunks that are not here, and return the place of each one, in order; never waits.

        `ahead` says that nobody waits for them. Whoever holds a piece keeps its block.
        """
        with self._lock:
            found = {object_id: self._places.get(object_id) for object_id in ids}
            for piece in found.values():
                if piece is not None and piece.block in self._blocks:
                    self._blocks.move_to_end(piece.block)
        lacking = [object_id for object_id, piece in found.items() if piece is None]
        if lacking:
            located = self._objects.locate(b"".join(lacking))
            with self._lock:
                # Another thread may have asked meanwhile.
                wanted = [at for at, object_id in enumerate(lacking) if object_id not in self._places]
                for part in plan_ranges(located, wanted, max_stored=FETCH, max_plain=_PLAIN):
                    self._begin(located, lacking, list(part.frames), ahead=ahead)
                found.update((object_id, self._places[object_id]) for object_id in lacking)
                self._evict()
        return [piece for object_id in ids if (piece := found[object_id]) is not None]

    def wait(self, object_id: bytes, piece: Piece) -> memoryview:
        """Return the verified bytes of a chunk that was requested; raises what fetching it raised.

        A chunk whose shared request failed is fetched again alone, so that damage is reported only to those who read
        the damaged chunk.
        """
        while True:
            try:
                return piece.block.arrival.result()[piece.begin : piece.end]
            except IntegrityError:  # noqa: PERF203  # the loop goes round at most three times
                # Invariant 4: another chunk of the block may be the damaged one.
                if len(piece.block.ids) == 1:
                    raise
                piece = self._alone(object_id)
            except BackendError:
                # Invariant 11: nobody waits for a read-ahead; the read that needs the chunk raises the error.
                if not piece.block.ahead:
                    raise
                piece = self._alone(object_id)

    def close(self) -> None:
        """Drop everything, and wait for requests that are under way."""
        with self._lock:
            executor, self._executor = self._executor, None
            self._places.clear()
            self._blocks.clear()
            self._size = 0
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)

    def _alone(self, object_id: bytes) -> Piece:
        located = self._objects.locate(object_id)
        with self._lock:
            self._begin(located, [object_id], [0], ahead=False)
            return self._places[object_id]

    def _begin(self, located: Located, ids: Sequence[bytes], group: Sequence[int], *, ahead: bool) -> None:
        """Have a thread fetch a group of located chunks; the lock is held."""
        edges = [0, *accumulate(located.rows["raw"][group].tolist())]
        block = Block(tuple(ids[at] for at in group), edges[-1], ahead)
        if self._executor is None:
            self._executor = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="casstore-fetch")
        self._places.update(
            (object_id, Piece(block, *span))
            for object_id, span in zip(block.ids, pairwise(edges), strict=True)
        )
        self._blocks[block] = None
        self._size += block.size
        block.arrival = self._executor.submit(self._fetch, block, located, group, edges)

    def _fetch(
        self, block: Block, located: Located, group: Sequence[int], edges: Sequence[int]
    ) -> memoryview:
        buffer = _new_block(block.size)
        try:
            self._objects.fill(located, group, buffer, edges)
        except BaseException:
            # Invariant 4: whatever ended the fetch, an error of the backend, damage or a lack of memory, the block holds
            # bytes that nobody checked. It is dropped, so that the next reader asks the store again.
            with self._lock:
                self._drop(block)
            raise
        return buffer.toreadonly()

    def _evict(self) -> None:
        if self._size > self._limit:
            for block in self._idle():
                self._drop(block)
                if self._size <= self._limit:
                    break

    def _idle(self) -> Iterator[Block]:
        """Yield blocks that have arrived, the least recently used first."""
        return iter([block for block in self._blocks if block.arrival.done()])

    def _drop(self, block: Block) -> None:
        if block not in self._blocks:
            return
        del self._blocks[block]
        self._size -= block.size
        for object_id in block.ids:
            piece = self._places.get(object_id)
            if piece is not None and piece.block is block:
                del self._places[object_id]


def _new_block(size: int) -> memoryview:
    """Return memory that goes back to the system with its block.

    Memory that one thread allocates and another frees stays with the allocator; that took twice the limit.
    """
    return new_buffer(size) if size < _PAGES else memoryview(mmap.mmap(-1, size))
