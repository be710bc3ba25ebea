"""Look-up of objects: index segments first, footers of packs that no segment covers when needed.

Segments are hints (invariant 5): a row whose pack is gone means nothing, and what no row names may still
be in a pack.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from casstore.backend.oserrors import from_os_error
from casstore.digest import DIGEST_SIZE
from casstore.errors import FormatError, ObjectExists, ObjectNotFound
from casstore.format import index as index_format
from casstore.format import pack as pack_format
from casstore.format.rows import ROW, BaseLists, check_rows, id_words, merge_base_lists, row_ids
from casstore.store.keys import INDEX_PREFIX, PACK_PREFIX, index_key, pack_id_of, pack_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.backend.base import Backend
    from casstore.format.index import Head
    from casstore.format.pack import Footer
    from casstore.format.rows import Rows

NOT_FOUND = np.uint32(0xFFFFFFFF)
"""In the `pack` field of a located row: no usable frame of this object is known."""

MERGE_FAN_IN = 8
_FOOTER_GUESS = 64 << 10
_FEW_IDS = 128
_SMALL_SEGMENT = 8192


@dataclass(frozen=True, slots=True)
class Located:
    """Where objects lie: one row for each id asked for, in order.

    `rows["pack"]` is a number for `Index.pack_id`, or NOT_FOUND; `lists[sources[i]]` are the base lists
    that the `bases` field of row i means.
    """

    rows: Rows
    sources: NDArray[np.int32]
    lists: tuple[BaseLists, ...]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which of the ids have a frame."""
        mask: NDArray[np.bool_] = self.rows["pack"] != NOT_FOUND
        return mask

    def bases(self, at: int) -> tuple[bytes, ...]:
        """Return the base ids of row `at`."""
        number = int(self.rows["bases"][at])
        return self.lists[self.sources[at]].get(number) if number else ()


@dataclass(slots=True)
class _Segment:
    """One loaded segment; `numbers` maps its own pack positions to the index-wide numbers."""

    key: str
    head: Head
    rows: Rows
    bases: BaseLists
    numbers: NDArray[np.uint32]
    checked: NDArray[np.bool_] = field(repr=False)
    table: dict[bytes, list[int]] | None = field(default=None, repr=False)

    def matches(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (which query, which row) for every row whose id is asked for."""
        if len(words) <= _FEW_IDS and len(self.rows) <= _SMALL_SEGMENT:
            return self._match_few(words)
        buckets = self.head.bucket_of(words)
        self._check_buckets(buckets)
        low = self.head.fanout[buckets].astype(np.int64)
        end = self.head.fanout[buckets + 1].astype(np.int64)
        lead = self.rows["id"][:, 0]
        high = end.copy()
        while (open_ := np.flatnonzero(low < high)).size:
            middle = (low[open_] + high[open_]) >> 1
            below = lead[middle].astype(np.uint64) < words[open_, 0]
            low[open_] = np.where(below, middle + 1, low[open_])
            high[open_] = np.where(below, high[open_], middle)
        queries: list[NDArray[np.int64]] = []
        rows: list[NDArray[np.int64]] = []
        active = np.flatnonzero(low < end)
        while active.size:
            here = self.rows["id"][low[active]].astype(np.uint64)
            same_lead = here[:, 0] == words[active, 0]
            equal = (here == words[active]).all(axis=1)
            queries.append(active[equal])
            rows.append(low[active][equal])
            low[active] += 1
            active = active[same_lead & (low[active] < end[active])]
        if not queries:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(queries), np.concatenate(rows)

    def _match_few(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Answer a short question to a short segment, where a dict beats numpy's overhead."""
        buckets = self.head.bucket_of(words)
        self._check_buckets(buckets)
        if self.table is None:
            table: dict[bytes, list[int]] = {}
            for row, object_id in enumerate(row_ids(self.rows)):
                table.setdefault(object_id, []).append(row)
            self.table = table
        asked = words.astype(">u8").tobytes()
        low, end = self.head.fanout[buckets].tolist(), self.head.fanout[buckets + 1].tolist()
        hits = [
            (query, row)
            for query in range(len(words))
            for row in self.table.get(asked[query * DIGEST_SIZE : (query + 1) * DIGEST_SIZE], ())
            if low[query] <= row < end[query]  # a row of another bucket was not checked
        ]
        pairs = np.array(hits, np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def check(self) -> None:
        """Check every bucket that was not checked yet."""
        self._check_buckets(np.arange(self.head.shape.buckets))

    def _check_buckets(self, buckets: NDArray[np.int64]) -> None:
        for bucket in np.unique(buckets[~self.checked[buckets]]).tolist():
            rows = self.rows[int(self.head.fanout[bucket]) : int(self.head.fanout[bucket + 1])]
            self.head.check_bucket(bucket, rows, key=self.key)
            check_rows(rows, lists=len(self.bases), packs=len(self.numbers), key=self.key)
            self.checked[bucket] = True


class Index:
    """All that is known of where objects lie in one store; safe in threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.RLock()
        self._segments: dict[str, _Segment] = {}
        self._pack_numbers: dict[bytes, int] = {}
        self._pack_ids: list[bytes] = []
        self._gone: set[int] = set()
        self._loaded = False
        _indexes.add(self)

    def pack_id(self, number: int) -> bytes:
        """Return the pack that a located row's number means."""
        return self._pack_ids[number]

    def number_of(self, pack_id: bytes) -> int:
        """Return the number that stands for a pack in located rows."""
        with self._lock:
            number = self._pack_numbers.setdefault(pack_id, len(self._pack_ids))
            if number == len(self._pack_ids):
                self._pack_ids.append(pack_id)
            return number

    def refresh(self) -> None:
        """Load segments that are new in the store, drop those that are gone."""
        with self._lock:
            for attempt in range(5):
                listed = [entry.key for entry in self._backend.list(INDEX_PREFIX)]
                try:
                    for key in listed:
                        if key not in self._segments:
                            self._segments[key] = self._load(key)
                except ObjectNotFound:
                    # A segment was merged away while we read; the next listing names its successor.
                    if attempt == 4:
                        raise
                    continue
                covered = {number for key in listed for number in self._segments[key].numbers.tolist()}
                for key in self._segments.keys() - set(listed):
                    if not key.startswith(INDEX_PREFIX) and not covered.issuperset(
                        self._segments[key].numbers.tolist()
                    ):
                        continue  # a footer read by hand stays until a segment covers its pack
                    del self._segments[key]
                self._loaded = True
                return

    def locate(self, ids: Sequence[bytes] | bytes, *, usable: Callable[[int], bool] | None = None) -> Located:
        """Find the frames of objects; no pack is opened. `usable` judges packs by their number."""
        words = id_words(ids)
        rows = np.zeros(len(words), ROW)
        rows["pack"] = NOT_FOUND
        sources = np.zeros(len(words), np.int32)
        with self._lock:
            if not self._loaded:
                self.refresh()
            segments = list(self._segments.values())
        missing = np.arange(len(words))
        for source, segment in enumerate(segments):
            if not missing.size:
                break
            if not len(segment.rows):
                continue
            queries, hits = segment.matches(words[missing])
            if not hits.size:
                continue
            found = segment.rows[hits]
            numbers = segment.numbers[found["pack"]]
            good = self._judge(numbers, usable)
            queries, found, numbers = missing[queries[good]], found[good], numbers[good]
            # Lowest rank last, so that it is the one that stays where an object has several frames.
            order = np.argsort(found["rank"], kind="stable")[::-1]
            rows[queries[order]] = found[order]
            rows["pack"][queries[order]] = numbers[order]
            sources[queries[order]] = source
            missing = missing[rows["pack"][missing] == NOT_FOUND]
        return Located(rows, sources, tuple(segment.bases for segment in segments))

    def add_footer(self, pack_id: bytes, footer: Footer) -> None:
        """Make a pack known that no segment covers yet."""
        with self._lock:
            key = pack_key(pack_id)
            data = index_format.encode(footer.rows, footer.bases, [pack_id])
            self._segments[key] = self._decode(key, memoryview(data))

    def publish(self, packs: Sequence[tuple[bytes, Footer]]) -> None:
        """Write one durable segment over new packs (invariant 3), and use it from now on."""
        parts: list[tuple[Rows, BaseLists]] = []
        for position, (_, footer) in enumerate(packs):
            rows = footer.rows.copy()
            rows["pack"] = position
            parts.append((rows, footer.bases))
        rows, bases = merge_base_lists(parts)
        data = index_format.encode(rows, bases, [pack_id for pack_id, _ in packs])
        key = index_key(data)
        self._backend.put(key, [data])
        with self._lock:
            self._segments[key] = self._load(key)
            self.merge()

    def all_rows(self) -> Iterator[Rows]:
        """Yield the rows of every segment and of every pack that none covers; objects may recur."""
        self.refresh()
        while self.read_uncovered():
            pass  # Until a damaged pack, if there is one, is all that is left, and is raised.
        with self._lock:
            segments = list(self._segments.values())
        for segment in segments:
            segment.check()
            yield segment.rows

    def forget_pack(self, number: int) -> None:
        """Treat a pack as gone for good: its rows mean nothing (invariant 5) and its id never recurs (invariant 6)."""
        with self._lock:
            self._gone.add(number)

    def read_uncovered(self) -> bool:
        """Read the footers of packs that no segment covers; say whether there were any.

        Raises FormatError for a damaged one only once nothing else is left to be read: who looks for an
        object that another pack holds need not care.
        """
        with self._lock:
            covered = {n for segment in self._segments.values() for n in segment.numbers.tolist()}
            found = False
            damage: FormatError | None = None
            for entry in self._backend.list(PACK_PREFIX):
                try:
                    pack_id = pack_id_of(entry.key)
                    if self.number_of(pack_id) not in covered:
                        self.add_footer(pack_id, read_footer(self._backend, pack_id))
                        found = True
                except ObjectNotFound:  # noqa: PERF203  # one footer each: the handler costs nothing beside it
                    continue  # Invariant 5: a pack that went since the listing does not exist.
                except FormatError as error:
                    damage = damage or error  # Invariant 8: raised below, unless there is more to look at.
            if damage is not None and not found:
                raise damage
            return found

    def merge(self) -> None:
        """Join segments of one size tier when there are many, so that look-ups stay cheap.

        The merged segment is durable before its parts go; a part that another process deleted first is
        no loss, for segments are hints (invariant 5).
        """
        with self._lock:
            tiers: dict[int, list[_Segment]] = {}
            for key, segment in self._segments.items():
                if key.startswith(INDEX_PREFIX):
                    tiers.setdefault(len(segment.rows).bit_length() // 3, []).append(segment)
            ready = [parts for _, parts in sorted(tiers.items()) if len(parts) >= MERGE_FAN_IN]
            for parts in ready:
                self._merge_segments(parts)

    def _merge_segments(self, parts: list[_Segment]) -> None:
        packs: dict[int, int] = {}
        moved: list[tuple[Rows, BaseLists]] = []
        for segment in parts:
            segment.check()
            numbers = segment.numbers.tolist()
            # Two processes may have merged the same parts: a pack that was taken already is taken whole.
            fresh = np.array([number not in packs for number in numbers], np.bool_)
            positions = [packs.setdefault(number, len(packs)) for number in numbers]
            rows = segment.rows[fresh[segment.rows["pack"]]]
            rows["pack"] = np.array(positions, np.uint32)[rows["pack"]]
            moved.append((rows, segment.bases))
        rows, bases = merge_base_lists(moved)
        data = index_format.encode(rows, bases, [self._pack_ids[number] for number in packs])
        key = index_key(data)
        if key not in self._segments:
            with contextlib.suppress(ObjectExists):  # Another writer merged the same parts (invariant 1).
                self._backend.put(key, [data])
            self._segments[key] = self._load(key)
        for segment in parts:
            if segment.key != key:
                # Invariant 5: the merged segment, durable now, says all that this one said.
                self._backend.delete(segment.key)
                del self._segments[segment.key]

    def _load(self, key: str) -> _Segment:
        path = self._backend.local_path(key)
        if path is None:
            return self._decode(key, memoryview(self._backend.read(key)))
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < index_format.HEADER_SIZE:
                    raise FormatError(f"{key} is cut short; remove that file, the packs rebuild it.")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            # Design §12: people get casstore's errors; one that is gone is an ObjectNotFound.
            raise from_os_error(error, f"read {key} in {self._backend.url}") from error
        return self._decode(key, memoryview(mapped))

    def _decode(self, key: str, data: memoryview) -> _Segment:
        shape = index_format.decode_shape(data[: index_format.HEADER_SIZE], key=key)
        if shape.size != len(data):
            raise FormatError(f"{key} has the wrong length; remove that file, the packs rebuild it.")
        head = index_format.decode_head(data[: shape.head_size], shape, key=key)
        rows = np.frombuffer(data[shape.head_size : shape.bases_begin], ROW)
        bases = index_format.decode_bases(data[shape.bases_begin :], shape, key=key)
        numbers = np.array([self.number_of(pack) for pack in head.packs], np.uint32)
        return _Segment(key, head, rows, bases, numbers, np.zeros(shape.buckets, np.bool_))

    def _judge(self, numbers: NDArray[np.uint32], usable: Callable[[int], bool] | None) -> NDArray[np.bool_]:
        good = {
            number
            for number in np.unique(numbers).tolist()
            if number not in self._gone and (usable is None or usable(number))
        }
        return np.isin(numbers, list(good)) if good else np.zeros(len(numbers), np.bool_)

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where another thread of the parent may have held it."""
        self._lock = threading.RLock()


_indexes: weakref.WeakSet[Index] = weakref.WeakSet()


def _renew_locks() -> None:
    for index in _indexes:
        index.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)


def read_footer(backend: Backend, pack_id: bytes) -> Footer:
    """Read and check a pack's footer with one or two range reads from its end."""
    key = pack_key(pack_id)
    size = backend.stat(key).size
    begin = max(0, size - _FOOTER_GUESS)
    tail = memoryview(backend.read(key, start=begin, length=size - begin))
    trailer = pack_format.decode_trailer(tail, pack_size=size, key=key)
    if trailer.begin < begin:
        body = backend.read(key, start=trailer.begin, length=trailer.size)
    else:
        body = bytes(tail[trailer.begin - begin : trailer.begin - begin + trailer.size])
    return pack_format.decode_footer(body, trailer, key=key)
