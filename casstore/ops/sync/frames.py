"""Takes frames out of a store as they are stored: fetched in ranges, verified, yielded in order.

Three steps run at the same time: threads wait for the network, the shared workers decode and hash, the caller
writes. The number of blocks between them is bounded.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from casstore.concurrency.buffers import BLOCK, BLOCK_BUFFER, new_buffer, take_block
from casstore.concurrency.workers import TaskGroup, worker_count
from casstore.errors import (
    IntegrityError,
    ObjectNotFound,
    UnsupportedVersion,
)
from casstore.format.rows import Kind
from casstore.objects import EncodedFrames, batches, encode_objects, frame_sizes, plan_ranges
from casstore.ops.sync.needs import split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from fsspec import Callback
    from numpy.typing import NDArray

    from casstore.concurrency.bandwidth import TokenBucket
    from casstore.errors import CasstoreError
    from casstore.objects import Located, Range
    from casstore.store.model_store import ModelStore

T = TypeVar("T")

_AHEAD = 4
"""Ranges that may wait beside those under way: each takes a block of memory."""

_WASTE = 0.01
"""Share of the wanted bytes that may be read along in gaps, all together, to save requests."""

_ALONE_BYTES = 8 << 20
"""Plain bytes of deltas that are read and encoded again at once."""


@dataclass(slots=True)
class Transfer:
    """Counters: `requests` reads of `bytes_read` bytes, of which `bytes_wanted` are frames."""

    requests: int = 0
    bytes_read: int = 0
    bytes_wanted: int = 0
    objects: int = 0
    reencoded: int = 0


class _Fetched(NamedTuple):
    """Bytes of a range, and the lent block that they are in, if any."""

    data: memoryview
    block: memoryview | None


@dataclass(slots=True)
class _Pass:
    """One look-up, and the positions in it of frames that could not be copied.

    `lost` are to be looked up again, `doubtful` to be read one by one; `damaged` are packs, by number.
    """

    located: Located
    lost: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)


class FrameSource:
    """Copies frames out of one store. Use from one thread."""

    def __init__(
        self,
        store: ModelStore,
        *,
        max_concurrency: int,
        bucket: TokenBucket,
        callback: Callback | None,
        near: ModelStore | None = None,
        keep_going: bool = False,
    ) -> None:
        """With `keep_going`, objects that cannot be read go to `damaged` with the reason, and the rest is yielded.

        `near` is a store that is asked first for the bases against which deltas are verified.
        """
        self._store = store
        self._concurrency = max_concurrency
        self._bucket = bucket
        self._callback = callback
        self._near = None if near is None else near.objects.read_there
        self._keep_going = keep_going
        self.damaged: dict[bytes, CasstoreError] = {}
        self._reasons: dict[bytes, IntegrityError] = {}
        self.done = Transfer()

    def frames(
        self, ids: bytes, *, may_keep: Callable[[Located, NDArray[np.int64]], NDArray[np.bool_]]
    ) -> Iterator[EncodedFrames]:
        """Yield verified frames of these objects, joined ids, each once.

        `may_keep` is given deltas, as positions of located rows, and says which of them may be copied as they
        are; the others are encoded alone. Raises MissingObject for an object that the store lost, another
        IntegrityError, which names the pack, for a frame that is not what it must be.
        """
        while ids := self._without_absent(ids):
            located = self._store.objects.locate(ids)
            deltas = np.flatnonzero(located.rows["rank"])
            alone = deltas[~may_keep(located, deltas)] if deltas.size else deltas
            whole = np.setdiff1d(np.arange(len(located.rows)), alone, assume_unique=True)
            run = _Pass(located)
            yield from self._copied(run, ranges_of(located, whole))
            yield from self._encoded_alone(located, alone)
            # One by one: only an object that no pack has whole is damaged.
            for at in run.doubtful:
                yield from self._encoded_alone(located, np.array([at]))
            # Invariant 5: for packs that went since the look-up, or are damaged, the objects are looked up once more.
            ids = b"".join(located.ids(run.lost))

    def _without_absent(self, ids: bytes) -> bytes:
        if not self._keep_going or not ids:
            return ids
        listed = split(ids)
        self.damaged.update(self._store.objects.absent(listed))
        return b"".join(object_id for object_id in listed if object_id not in self.damaged)

    def _copied(self, run: _Pass, ranges: Sequence[Range]) -> Iterator[EncodedFrames]:
        """Yield the frames of ranges, and note in `run` those that cannot be copied."""
        # Ranges arrive in any order and are yielded in order: while the first is late, the threads read on.
        most = self._concurrency + _AHEAD
        fetching: deque[tuple[Range, Future[_Fetched]]] = deque()
        verifying: deque[tuple[Range, Future[EncodedFrames]]] = deque()
        left = iter(ranges)
        # Leave the threads first, then the workers, so that nobody uses the buffers any more.
        with (
            TaskGroup() as tasks,
            ThreadPoolExecutor(self._concurrency, thread_name_prefix="casstore-fetch") as threads,
        ):
            try:
                while True:
                    while len(fetching) < most and (wanted := next(left, None)) is not None:
                        fetching.append((wanted, threads.submit(self._fetch, wanted)))
                    if fetching and len(verifying) <= worker_count():
                        wanted, fetched = fetching.popleft()
                        data = self._arrived(run, wanted, fetched)
                        if data is not None:
                            verifying.append((wanted, tasks.submit(self._verify, run.located, wanted, data)))
                    elif verifying:
                        wanted, verified = verifying.popleft()
                        frames = self._arrived(run, wanted, verified)
                        if frames is not None:
                            self._count(wanted, frames)
                            yield frames
                    else:
                        return
            finally:
                for _, pending in fetching:
                    pending.cancel()

    def _arrived(self, run: _Pass, wanted: Range, work: Future[T]) -> T | None:
        """Return what was made of a range; None if its frames were noted in `run` instead."""
        try:
            return work.result()
        except ObjectNotFound:
            # Invariant 5: an entry whose pack is gone does not exist.
            self._store.objects.note_gone(wanted)
            run.lost += wanted.frames
        except IntegrityError as error:
            self._set_aside(run, wanted, error)
        return None

    def _set_aside(self, run: _Pass, wanted: Range, error: IntegrityError) -> None:
        """Decide what to do about frames that could not be read or verified; raise if nothing helps."""
        # Invariant 4: none of its bytes were passed on; another pack may hold the same object whole.
        elsewhere = not isinstance(error, UnsupportedVersion)
        if elsewhere and self._store.objects.avoid(self._store.objects.pack_of(wanted)):
            run.damaged.add(wanted.pack)
            run.lost += wanted.frames
        elif elsewhere and wanted.pack in run.damaged:
            run.lost += wanted.frames
        elif self._keep_going:
            run.doubtful += wanted.frames
            self._reasons.update((object_id, error) for object_id in run.located.ids(wanted.frames))
        else:
            raise error

    def _fetch(self, wanted: Range) -> _Fetched:
        """Read a range; runs on a thread that may wait."""
        size = wanted.end - wanted.begin
        block = take_block() if size <= BLOCK_BUFFER else None
        data = new_buffer(size) if block is None else block[:size]
        self._bucket.take(size)
        self._store.objects.fetch(wanted, data)
        return _Fetched(data, block)

    def _verify(self, located: Located, wanted: Range, fetched: _Fetched) -> EncodedFrames:
        """Verify the frames of a range (invariant 9), and close the gaps between them; for a worker."""
        data = fetched.data
        try:
            headers = self._store.objects.verify_frames(located, wanted, data, near=self._near)
        except UnsupportedVersion:
            raise
        except IntegrityError as error:
            # Invariant 9: nothing of it is written. The error keeps its class, and gets advice for the store's owner.
            url = self._store.backend.url
            advice = (
                f"{url} serves damaged bytes; nothing that needs them was committed.  `casstore quarantine "
                f"REF --store {url}` quarantines the pack; then push REF there with --overwrite from a store that has it."
            )
            error.args = (f"{error} {advice}",)
            raise
        if wanted.dense:
            return EncodedFrames(headers, data, fetched.block)
        at = 0
        positions = np.array(wanted.frames)
        begins = (located.rows["offset"][positions] - wanted.begin).tolist()
        for begin, size in zip(begins, frame_sizes(located, positions).tolist(), strict=True):
            if begin != at:
                data[at : at + size] = data[begin : begin + size]
            at += size
        return EncodedFrames(headers, data[:at], fetched.block)

    def _encoded_alone(self, located: Located, alone: NDArray[np.int64]) -> Iterator[EncodedFrames]:
        """Yield objects that are deltas here as frames that need no base (design §10)."""
        for kind in Kind:
            chosen = alone[located.rows["kind"][alone] == kind]
            for batch in batches(located.rows["raw"][chosen].tolist(), _ALONE_BYTES):
                yield from self._encoded(located, kind, chosen[batch.start : batch.stop])

    def _encoded(self, located: Located, kind: Kind, positions: NDArray[np.int64]) -> Iterator[EncodedFrames]:
        """Read some objects of one kind, and yield their frames."""
        ids = located.ids(positions.tolist())
        self._bucket.take(int(located.rows["stored"][positions].sum()))
        if self._keep_going:
            plain, failed = self._store.objects.read_present(ids)
            # The error from verifying the bytes says more than another look-up.
            self.damaged.update((item, self._reasons.get(item, failed[item])) for item in failed)
        else:
            plain = dict(zip(ids, self._store.objects.read_many(ids), strict=True))
        frames = encode_objects(kind, plain) if plain else None
        self.done.reencoded += len(plain)
        self.done.objects += len(plain)
        size = int(frame_sizes(located, positions).sum())
        self.done.requests += 1
        self.done.bytes_read += size
        self.done.bytes_wanted += size
        if self._callback is not None:
            self._callback.relative_update(size)
        if frames is not None:
            yield frames

    def _count(self, wanted: Range, frames: EncodedFrames) -> None:
        self.done.requests += 1
        self.done.bytes_read += wanted.end - wanted.begin
        self.done.bytes_wanted += len(frames.data)
        self.done.objects += len(frames.headers)
        if self._callback is not None:
            self._callback.relative_update(len(frames.data))


def ranges_of(located: Located, wanted: NDArray[np.int64]) -> list[Range]:
    """Return the reads that copying these frames takes: of a block at most, since each is verified by one worker."""
    return plan_ranges(located, wanted, max_stored=BLOCK, waste=_WASTE)
