"""One loaded index segment: which of its rows are about the objects that are asked for.

A small segment is held in memory. Of a large one, only the head is, and the keys where they are few: other keys, rows
and base lists are read as they are needed, so the time and memory of a look-up depend on the number of ids, not on the
size of the segment. Nothing is mapped: if someone truncated the file meanwhile, touching it would kill the process.
"""

from __future__ import annotations

import itertools
import os
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.backend.oserrors import from_os_error
from casstore.digest import DIGEST_SIZE
from casstore.errors import FormatError
from casstore.format import index as index_format
from casstore.format.index import BLOCK
from casstore.format.rows import MAX_BASES, ROW, BaseLists, check_rows, expand, row_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from casstore.backend.base import Backend
    from casstore.errors import BackendError
    from casstore.format.rows import Rows

    Positions = NDArray[np.int64]

BATCH_BITS = 18
"""Rows that are handled at once when all are: 2^18 of them, 16 MiB."""

HELD = 1 << 20
"""Segments of at most this many bytes are held in memory."""

_LISTS = 1 << 16
_READ = 8 << 20
_KEYSHELD = 1 << 20  # columns of keys of at most this many bytes are held in memory
_KEYS_APART = 1024
_FEW_IDS = 128
_SHORT_QUESTIONS = 4  # look-ups in a small segment after which a table pays for itself
_SMALL = 8192
_MANY = 64
_ASKED = 16
_DAMAGED = "Remove that file; it is rebuilt from the packs."


@dataclass(frozen=True, slots=True)
class _Keys:
    """A piece of the column of keys: those of `buckets`, which ascend, or of all, start at `begins`."""

    column: NDArray[np.uint32]
    begins: NDArray[Any]
    buckets: Positions | None = None

    def begins_of(self, buckets: Positions) -> Positions:
        """Return where in the column the keys of each of these buckets start."""
        at = buckets if self.buckets is None else np.searchsorted(self.buckets, buckets)
        return self.begins[at].astype(np.int64)


class Segment:
    """A segment's head in memory, the rest there, too, or within reach; safe in threads and after a fork."""

    def __init__(
        self, key: str, data: memoryview, descriptor: int | None, *, size: int | None = None
    ) -> None:
        """`data` is the whole file, or its head; then `descriptor`, which becomes this object's, is a file of `size` bytes."""
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor)
        self.key = key
        shape = index_format.decode_shape(data[: index_format.HEADER_SIZE], key=key)
        if shape.size != (len(data) if size is None else size):
            raise FormatError(f"{key} has the wrong length. {_DAMAGED}")
        self.head = index_format.decode_head(data[: shape.head_size], shape, key=key)
        self._data = data
        self._descriptor = descriptor
        self.checked = np.zeros(shape.buckets, np.bool_)
        self._checked_blocks = np.zeros(shape.blocks, np.bool_)
        self._held_keys: NDArray[np.uint32] | None = None
        if descriptor is None:
            self._held_keys = np.frombuffer(data[shape.head_size : shape.rows_begin], "<u4")
        self.numbers: NDArray[np.uint32] = np.zeros(0, np.uint32)
        """The index-wide numbers of the segment's packs: the index sets them."""
        self._table: dict[bytes, list[int]] | None = None
        self._short_questions = 0

    def __len__(self) -> int:
        return self.head.shape.rows

    def lists(self, numbers: NDArray[np.int64]) -> BaseLists:
        """Return the base lists with these numbers, which start at 0, in this order; only what holds them is read."""
        shape = self.head.shape
        origin = DIGEST_SIZE * shape.list_ids
        begins = self._list_items("<u4", origin, numbers)
        ends = self._list_items("<u4", origin, numbers + 1)
        if np.any(begins > ends) or np.any(ends > shape.list_ids) or np.any(ends - begins > MAX_BASES):
            raise FormatError(f"{self.key} has a base list that cannot exist. {_DAMAGED}")
        positions, stops = expand(begins, ends)
        ids = self._list_items(f"V{DIGEST_SIZE}", 0, positions)
        return BaseLists(np.concatenate([[0], stops]).astype("<u4"), ids.tobytes())

    def list_range(self, begin: int, end: int) -> BaseLists:
        """Return the base lists from number `begin` to before `end`, as `lists` does but many at once."""
        shape = self.head.shape
        origin = DIGEST_SIZE * shape.list_ids
        offsets = self._list_slice("<u4", origin + 4 * begin, origin + 4 * (end + 1))
        if (
            np.any(offsets[:-1] > offsets[1:])
            or offsets[-1] > shape.list_ids
            or np.any(np.diff(offsets) > MAX_BASES)
        ):
            raise FormatError(f"{self.key} has a base list that cannot exist. {_DAMAGED}")
        ids = self._list_slice("u1", DIGEST_SIZE * int(offsets[0]), DIGEST_SIZE * int(offsets[-1]))
        return BaseLists(offsets - offsets[0], ids.tobytes())

    def _list_slice(self, dtype: str, begin: int, end: int) -> NDArray[Any]:
        first = begin // BLOCK
        fetched = self._read_blocks(np.arange(first, -(-end // BLOCK)))
        return fetched[begin - first * BLOCK : end - first * BLOCK].view(dtype)

    def _list_items(self, dtype: str, origin: int, positions: Positions) -> NDArray[Any]:
        """Return items of the base lists, read and verified by blocks; `origin` is the byte where item 0 starts."""
        width = np.dtype(dtype).itemsize
        places = origin + positions.astype(np.int64) * width
        blocks, which = _distinct(places // BLOCK)
        fetched = self._read_blocks(blocks).view(dtype)
        items: NDArray[Any] = fetched[which * (BLOCK // width) + places % BLOCK // width]
        return items

    def _read_blocks(self, blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read and verify distinct, ascending blocks of the base lists; the last one of all is filled up with zeros."""
        fetched = np.zeros((len(blocks), BLOCK), np.uint8)
        if not len(blocks):
            return fetched.reshape(-1)
        shape = self.head.shape
        memory = memoryview(fetched.reshape(-1))
        runs = [0, *(np.flatnonzero(np.diff(blocks) != 1) + 1).tolist(), len(blocks)]
        places = []
        for first, last in itertools.pairwise(runs):
            begin = int(blocks[first]) * BLOCK
            size = min((last - first) * BLOCK, shape.bases_size - begin)
            places.append((shape.bases_begin + begin, first * BLOCK, first * BLOCK + size))
        self._read_places(memory, places)
        fresh = np.flatnonzero(~self._checked_blocks[blocks])
        sizes = np.minimum(BLOCK, shape.bases_size - blocks[fresh] * BLOCK).tolist()
        parts = [
            memory[at * BLOCK : at * BLOCK + size] for at, size in zip(fresh.tolist(), sizes, strict=True)
        ]
        self.head.check_blocks(blocks[fresh], parts, key=self.key)
        self._checked_blocks[blocks] = True
        return fetched.reshape(-1)

    def matches(self, words: NDArray[np.uint64]) -> tuple[Positions, Rows]:
        """Return the rows about the ids that are asked for, each with the position of its id in `words`.

        Buckets are verified before any of their rows is used. Those of a small segment are verified as
        soon as they are looked at; in a large one, a bucket is not verified if no key in it matches.
        """
        buckets = self.head.bucket_of(words)
        if len(self) > _SMALL:
            keys = self._keys_of(buckets)
            queries, rows = self._candidates(words, buckets, keys)
            found = self._fetch(rows, buckets[queries], keys)
        else:
            self.check(buckets)
            every = self._rows(0, len(self))
            short = len(words) <= _FEW_IDS
            self._short_questions += short
            if short and self._short_questions > _SHORT_QUESTIONS:
                queries, rows = self._match_few(words, buckets, every)
            else:
                queries, rows = self._candidates(words, buckets, self._keys_of(buckets))
            if not queries.size:
                return queries, every[:0]
            found = every[rows]
        same = (found["id"].astype(np.uint64) == words[queries]).all(axis=1)
        return queries[same], found[same]

    def check(self, buckets: NDArray[np.int64]) -> None:
        """Verify these buckets; raise FormatError if one is damaged."""
        unchecked = buckets[~self.checked[buckets]]
        if unchecked.size:
            self._judge(self._read_buckets(_distinct(unchecked)[0])[0])

    def verify(self) -> None:
        """Read and verify everything; raise FormatError if something is damaged."""
        for _ in self.batches():
            pass
        lists = self.head.shape.lists
        for begin in range(0, lists, _LISTS):
            self.list_range(begin, min(begin + _LISTS, lists))

    def batches(self, bits: int | None = None) -> Iterator[Rows]:
        """Yield all rows, verified, in their order: one batch for each value of the first `bits` bits of an id."""
        if bits is None:
            bits = max(0, len(self).bit_length() - BATCH_BITS)
        own = self.head.shape.bits
        if own < bits:
            # So few rows that one bucket of this segment spans several batches.
            self.check(np.arange(self.head.shape.buckets))
            rows = self._rows(0, len(self))
            self._judge(rows)
            leads = rows["id"][:, 0].astype(np.uint64) >> np.uint64(64 - bits)
            edges = np.searchsorted(leads, np.arange((1 << bits) + 1, dtype=np.uint64)).tolist()
            yield from (rows[begin:end] for begin, end in itertools.pairwise(edges))
            return
        width = 1 << (own - bits)
        for first in range(0, 1 << own, width):
            begin, end = int(self.head.fanout[first]), int(self.head.fanout[first + width])
            rows = self._rows(begin, end)
            starts = self.head.fanout[first : first + width + 1].astype(np.int64) - begin
            self._verify(np.arange(first, first + width), starts, rows)
            self._judge(rows)
            yield rows

    def _candidates(
        self, words: NDArray[np.uint64], buckets: NDArray[np.int64], there: _Keys
    ) -> tuple[Positions, Positions]:
        """Return (position in `words`, row) for every row with the key of an id that is asked for."""
        keys = self.head.key_of(words)
        column = there.column
        begin = there.begins_of(buckets)
        first = self.head.fanout[buckets].astype(np.int64)
        low = begin.copy()
        end = begin + self.head.fanout[buckets + 1] - first
        high = end.copy()
        while (open_ := np.flatnonzero(low < high)).size:
            middle = (low[open_] + high[open_]) >> 1
            below = column[middle] < keys[open_]
            low[open_] = np.where(below, middle + 1, low[open_])
            high[open_] = np.where(below, high[open_], middle)
        queries: list[Positions] = []
        rows: list[Positions] = []
        active = np.flatnonzero(low < end)
        while (active := active[column[low[active]] == keys[active]]).size:
            queries.append(active)
            rows.append(low[active] - begin[active] + first[active])
            low[active] += 1
            active = active[low[active] < end[active]]
        if not queries:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(queries), np.concatenate(rows)

    def _match_few(
        self, words: NDArray[np.uint64], buckets: NDArray[np.int64], every: Rows
    ) -> tuple[Positions, Positions]:
        """Answer one of many short questions to a small segment, where a dict beats numpy's overhead."""
        if self._table is None:
            table: dict[bytes, list[int]] = {}
            for row, object_id in enumerate(row_ids(every)):
                table.setdefault(object_id, []).append(row)
            self._table = table
        joined = words.astype(">u8").tobytes()
        asked = [joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)]
        low, end = self.head.fanout[buckets].tolist(), self.head.fanout[buckets + 1].tolist()
        pairs = [
            (query, row)
            for query, object_id in enumerate(asked)
            for row in self._table.get(object_id, ())
            if low[query] <= row < end[query]  # a row of another bucket has not been verified
        ]
        found = np.array(pairs, np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def _keys_of(self, buckets: NDArray[np.int64]) -> _Keys:
        """Return the keys of these buckets, at least."""
        shape = self.head.shape
        if self._held_keys is None and index_format.KEY_SIZE * shape.rows <= _KEYSHELD:
            column = np.empty(shape.rows, "<u4")
            self._read(memoryview(column.view(np.uint8)), shape.head_size)
            self._held_keys = column
        if self._held_keys is not None:
            return _Keys(self._held_keys, self.head.fanout)
        return self._read_keys(_distinct(buckets)[0])

    def _read_keys(self, wanted: NDArray[np.int64]) -> _Keys:
        """Read the keys of distinct, ascending buckets."""
        origin = self.head.shape.head_size
        begins = self.head.fanout[wanted].astype(np.int64)
        ends = self.head.fanout[wanted + 1].astype(np.int64)
        # Reading what lies between two near buckets costs less than another call.
        heads = np.flatnonzero(np.concatenate([[True], begins[1:] - ends[:-1] > _KEYS_APART]))
        tails = np.append(heads[1:], len(wanted)) - 1
        sizes = ends[tails] - begins[heads]
        edges = np.concatenate([[0], np.cumsum(sizes)])
        column = np.empty(int(edges[-1]), "<u4")
        memory = memoryview(column.view(np.uint8))
        places = list(
            zip(
                (origin + index_format.KEY_SIZE * begins[heads]).tolist(),
                (index_format.KEY_SIZE * edges[:-1]).tolist(),
                (index_format.KEY_SIZE * edges[1:]).tolist(),
                strict=True,
            )
        )
        self._read_places(memory, places)
        runs = np.repeat(np.arange(len(heads)), tails - heads + 1)
        return _Keys(column, edges[runs] + begins - begins[heads][runs], wanted)

    def _fetch(self, rows: Positions, buckets: NDArray[np.int64], keys: _Keys) -> Rows:
        """Return rows of the file, whose buckets are given; those are read and verified, the rows judged."""
        if not rows.size:
            return np.zeros(0, ROW)
        wanted, which = _distinct(buckets)
        fetched, starts = self._read_buckets(wanted, keys)
        found: Rows = fetched[starts[which] + rows - self.head.fanout[wanted][which]]
        self._judge(found)
        return found

    def _read_buckets(self, wanted: NDArray[np.int64], keys: _Keys | None = None) -> tuple[Rows, Positions]:
        """Read and verify buckets; return their rows, one after the other, and where those of each start."""
        begins = self.head.fanout[wanted].astype(np.int64)
        ends = self.head.fanout[wanted + 1].astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(ends - begins)])
        fetched = np.empty(int(starts[-1]), ROW)
        memory = memoryview(fetched.view(np.uint8))
        edges = (starts * ROW.itemsize).tolist()
        offsets = (begins * ROW.itemsize + self.head.shape.rows_begin).tolist()
        places = list(zip(offsets, edges, edges[1:], strict=False))
        self._read_places(memory, places)
        self._verify(wanted, starts, fetched, keys)
        return fetched, starts

    def _fetch_ahead(self, places: list[tuple[int, int, int]]) -> None:
        """Let a cold disk work on all places (offset, begin, end) at once; a few of them show whether it is cold."""
        if self._descriptor is None or not hasattr(os, "RWF_NOWAIT"):
            return
        try:
            for offset, _, _ in places[:: len(places) // _ASKED]:
                os.preadv(self._descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        except (
            OSError
        ):  # Not in memory, or unknown. This is only read-ahead: the reads that follow verify (invariant 4).
            for offset, begin, end in places:
                os.posix_fadvise(self._descriptor, offset, end - begin, os.POSIX_FADV_WILLNEED)

    def _rows(self, begin: int, end: int) -> Rows:
        origin = self.head.shape.rows_begin
        if self._descriptor is None:
            return np.frombuffer(self._data[origin + ROW.itemsize * begin : origin + ROW.itemsize * end], ROW)
        rows = np.empty(end - begin, ROW)
        self._read(memoryview(rows.view(np.uint8)), origin + ROW.itemsize * begin)
        return rows

    def _read_places(self, memory: memoryview, places: list[tuple[int, int, int]]) -> None:
        """Read for each place (offset, begin, end) what lies at `offset` into the bytes from `begin` to `end`."""
        if len(places) > _MANY:
            self._fetch_ahead(places)
        descriptor = self._descriptor
        try:
            for offset, begin, end in places:
                # There may be thousands, so `_read` is called only where one call of the system is not enough.
                if descriptor is None or os.preadv(descriptor, [memory[begin:end]], offset) != end - begin:
                    self._read(memory[begin:end], offset)
        except OSError as error:
            raise self._unreadable(error) from error  # design §12

    def _read(self, out: memoryview, offset: int) -> None:
        if self._descriptor is None:
            out[:] = self._data[offset : offset + len(out)]
            return
        try:
            done = 0
            while done < len(out):
                count = os.preadv(self._descriptor, [out[done:]], offset + done)
                if count == 0:
                    raise FormatError(f"{self.key} became shorter while it was read. {_DAMAGED}")
                done += count
        except OSError as error:
            raise self._unreadable(error) from error  # design §12

    def _unreadable(self, error: OSError) -> BackendError:
        return from_os_error(error, f"read {self.key}", retryable=False)

    def _verify(
        self, buckets: NDArray[np.int64], starts: Positions, rows: Rows, keys: _Keys | None = None
    ) -> None:
        """Check that buckets, whose rows lie one after the other in `rows`, are as they were written, once.

        `keys` are those of these buckets, and others, where they have been read already.
        """
        fresh = np.flatnonzero(~self.checked[buckets])
        if not fresh.size:
            return
        view = memoryview(np.ascontiguousarray(rows).view(np.uint8).reshape(-1))
        edges = (starts * ROW.itemsize).tolist()
        parts = [view[edges[at] : edges[at + 1]] for at in fresh.tolist()]
        self.head.check_buckets(buckets[fresh], parts, key=self.key)
        keys = keys or self._keys_of(buckets)
        places = np.repeat(keys.begins_of(buckets) - starts[:-1], np.diff(starts)) + np.arange(len(rows))
        self.head.check_keys(rows, keys.column[places], key=self.key)
        self.checked[buckets] = True

    def _judge(self, rows: Rows) -> None:
        """Raise FormatError for a row that is impossible, whoever wrote it; for rows that leave this object."""
        check_rows(rows, lists=self.head.shape.lists, packs=len(self.head.packs), key=self.key)


def _distinct(values: Positions) -> tuple[Positions, Positions]:
    """Return the distinct values, ascending, and which of them each value is.

    As np.unique does, whose first call spends 30 ms on importing masked arrays.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.diff(ordered, prepend=-1) != 0
    which = np.empty(len(values), np.int64)
    which[order] = np.cumsum(new) - 1
    return ordered[new], which


def load(key: str, backend: Backend) -> Segment:
    """Load a segment from its store; raises ObjectNotFound if it is gone, FormatError if it is damaged."""
    path = backend.local_path(key)
    if path is None:
        return Segment(key, memoryview(backend.read(key)), None)
    return load_file(key, path, place=backend.url)


def load_file(key: str, path: str, *, place: str = "") -> Segment:
    """Load a segment from the file that holds it; errors as with `load`. `place` is where people look for it."""
    try:
        # Without O_NONBLOCK, opening a pipe that someone put there would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise from_os_error(error, f"read {key} in {place or path}", retryable=False) from error  # design §12
    try:
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, size if size <= HELD else index_format.HEADER_SIZE, 0)
        if size > HELD:
            shape = index_format.decode_shape(data[: index_format.HEADER_SIZE], key=key)
            data = os.pread(descriptor, min(shape.head_size, size), 0)
    except OSError as error:
        os.close(descriptor)
        raise from_os_error(error, f"read {key} in {place or path}", retryable=False) from error  # design §12
    except FormatError:
        os.close(descriptor)
        raise
    if size <= HELD:
        os.close(descriptor)
        return Segment(key, memoryview(data), None)
    return Segment(key, memoryview(data), descriptor, size=size)
