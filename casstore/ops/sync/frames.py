"""Takes frames out of a store as they are stored: fetched in ranges, verified, yielded in order.

Three steps run at the same time: threads wait for the network, the shared workers decode and hash, the caller
writes. The number of blocks between them is bounded.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.concurrency.buffers import BLOCK_BUFFER, new_buffer, take_block
from casstore.concurrency.workers import TaskGroup, worker_count
from casstore.errors import (
    FormatError,
    IntegrityError,
    MissingObject,
    ObjectNotFound,
    UnsupportedVersion,
)
from casstore.format.rows import Kind
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.keys import pack_key
from casstore.objects.pack_writer import EncodedFrames, encode_objects
from casstore.objects.reader import frame_size, verify_frames
from casstore.objects.salvage import read_whole
from casstore.ops.sync.needs import split
from casstore.ops.sync.ranges import plan_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from fsspec import Callback
    from numpy.typing import NDArray

    from casstore.errors import CasstoreError
    from casstore.objects.index.index import Located
    from casstore.ops.sync.bandwidth import TokenBucket
    from casstore.ops.sync.ranges import Range
    from casstore.store.model_store import ModelStore

_AHEAD = 4
"""Ranges that may wait beside those under way: each takes a block of memory."""

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


class FrameSource:
    """Copies frames out of one store. Use from one thread."""

    def __init__(
        self,
        store: ModelStore,
        *,
        max_concurrency: int,
        bucket: TokenBucket,
        callback: Callback | None,
        keep_going: bool = False,
    ) -> None:
        """With `keep_going`, objects that cannot be read go to `damaged` with the reason, and the rest is yielded."""
        self._store = store
        self._concurrency = max_concurrency
        self._bucket = bucket
        self._callback = callback
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
            lost: list[int] = []
            doubtful: list[int] = []
            yield from self._copied(located, plan_ranges(located, whole), lost, doubtful)
            yield from self._encoded_alone(located, alone)
            # One by one: only an object that no pack has whole is damaged.
            for at in doubtful:
                yield from self._encoded_alone(located, np.array([at]))
            # Invariant 5: for packs that went since the look-up, or are damaged, the objects are looked up once more.
            ids = b"".join(located.rows["id"][at].tobytes() for at in lost)

    def _without_absent(self, ids: bytes) -> bytes:
        if not self._keep_going or not ids:
            return ids
        listed = split(ids)
        self.damaged.update(absent(self._store, listed))
        return b"".join(object_id for object_id in listed if object_id not in self.damaged)

    def _copied(
        self, located: Located, ranges: Sequence[Range], lost: list[int], doubtful: list[int]
    ) -> Iterator[EncodedFrames]:
        """Yield the frames of ranges; `lost` collects those to look up again, `doubtful` those to read one by one."""
        # Ranges arrive in any order and are yielded in order: while the first is late, the threads read on.
        most = self._concurrency + _AHEAD
        fetching: deque[tuple[Range, Future[_Fetched]]] = deque()
        verifying: deque[tuple[Range, Future[EncodedFrames]]] = deque()
        left = iter(ranges)
        damaged: set[int] = set()
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
                        try:
                            data = fetched.result()
                        except ObjectNotFound:
                            # Invariant 5: an entry whose pack is gone does not exist.
                            self._store.index.forget_pack(wanted.pack)
                            lost += wanted.frames
                            continue
                        except IntegrityError as error:
                            self._set_aside(
                                located, wanted, error, damaged=damaged, lost=lost, doubtful=doubtful
                            )
                            continue
                        verifying.append((wanted, tasks.submit(self._verify, located, wanted, data)))
                    elif verifying:
                        wanted, verified = verifying.popleft()
                        try:
                            frames = verified.result()
                        except IntegrityError as error:
                            self._set_aside(
                                located, wanted, error, damaged=damaged, lost=lost, doubtful=doubtful
                            )
                            continue
                        self._count(wanted, frames)
                        yield frames
                    else:
                        return
            finally:
                for _, pending in fetching:
                    pending.cancel()

    def _set_aside(
        self,
        located: Located,
        wanted: Range,
        error: IntegrityError,
        *,
        damaged: set[int],
        lost: list[int],
        doubtful: list[int],
    ) -> None:
        """Decide what to do about frames that could not be read or verified; raise if nothing helps."""
        # Invariant 4: none of its bytes were passed on; another pack may hold the same object whole.
        elsewhere = not isinstance(error, UnsupportedVersion)
        if elsewhere and self._store.index.avoid_pack(wanted.pack):
            damaged.add(wanted.pack)
            lost += wanted.frames
        elif elsewhere and wanted.pack in damaged:
            lost += wanted.frames
        elif self._keep_going:
            doubtful += wanted.frames
            self._reasons.update((located.rows["id"][at].tobytes(), error) for at in wanted.frames)
        else:
            raise error

    def _fetch(self, wanted: Range) -> _Fetched:
        """Read a range; runs on a thread that may wait."""
        size = wanted.end - wanted.begin
        block = take_block() if size <= BLOCK_BUFFER else None
        data = new_buffer(size) if block is None else block[:size]
        key = pack_key(self._store.index.pack_id(wanted.pack))
        self._bucket.take(size)
        done = 0
        while done < size:
            with bad_file_is_damage(self._store.backend):
                count = self._store.backend.read_into(key, data[done:], start=wanted.begin + done)
            if count == 0:
                raise FormatError(f"{key} in {self._store.backend.url} is truncated.")
            done += count  # A server may stop early without an error: ask for the rest again.
        return _Fetched(data, block)

    def _verify(self, located: Located, wanted: Range, fetched: _Fetched) -> EncodedFrames:
        """Verify the frames of a range (invariant 9), and close the gaps between them; for a worker."""
        key = pack_key(self._store.index.pack_id(wanted.pack))
        data = fetched.data
        try:
            headers = verify_frames(located, wanted.frames, data, begin=wanted.begin, key=key)
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
        for position in wanted.frames:
            begin = int(located.rows["offset"][position]) - wanted.begin
            size = frame_size(located, position)
            if begin != at:
                data[at : at + size] = data[begin : begin + size]
            at += size
        return EncodedFrames(headers, data[:at], fetched.block)

    def _encoded_alone(self, located: Located, alone: NDArray[np.int64]) -> Iterator[EncodedFrames]:
        """Yield objects that are deltas here as frames that need no base (design §10)."""
        start = 0
        while start < len(alone):
            stop = start + 1
            kind, size = located.rows["kind"][alone[start]], int(located.rows["raw"][alone[start]])
            while stop < len(alone) and located.rows["kind"][alone[stop]] == kind:
                size += int(located.rows["raw"][alone[stop]])
                if size > _ALONE_BYTES:
                    break
                stop += 1
            ids = [located.rows["id"][at].tobytes() for at in alone[start:stop]]
            self._bucket.take(int(located.rows["stored"][alone[start:stop]].sum()))
            if self._keep_going:
                plain, failed = read_whole(self._store.objects.read_many, ids)
                # The error from verifying the bytes says more than another look-up.
                self.damaged.update((item, self._reasons.get(item, failed[item])) for item in failed)
            else:
                plain = dict(zip(ids, self._store.objects.read_many(ids), strict=True))
            frames = encode_objects(Kind(int(kind)), plain) if plain else None
            self.done.reencoded += len(plain)
            self.done.objects += len(plain)
            size = sum(frame_size(located, at) for at in alone[start:stop].tolist())
            self.done.requests += 1
            self.done.bytes_read += size
            self.done.bytes_wanted += size
            if self._callback is not None:
                self._callback.relative_update(size)
            if frames is not None:
                yield frames
            start = stop

    def _count(self, wanted: Range, frames: EncodedFrames) -> None:
        self.done.requests += 1
        self.done.bytes_read += wanted.end - wanted.begin
        self.done.bytes_wanted += len(frames.data)
        self.done.objects += len(frames.headers)
        if self._callback is not None:
            self._callback.relative_update(len(frames.data))


def absent(store: ModelStore, ids: Sequence[bytes]) -> dict[bytes, CasstoreError]:
    """Return the objects that no pack of a store holds, each with the reason."""
    if not ids:
        return {}
    try:
        store.objects.locate(ids)
    except IntegrityError:
        # Invariant 11: keep the reason for each of these; a damaged pack may have held them.
        found = store.index.locate(ids).found.tolist()
    else:
        return {}
    return {
        object_id: MissingObject(
            f"No pack of {store.backend.url} holds the object {object_id.hex()}. Add the model again, or copy it "
            "from a store that has it."
        )
        for object_id, there in zip(ids, found, strict=True)
        if not there
    }
