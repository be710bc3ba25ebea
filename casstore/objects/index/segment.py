"""One loaded index segment: which of its rows are about the objects that are asked for.

A small segment is held in memory. Of a large one, only the head is, and the keys where they are few: other keys, rows
and base lists are read as they are needed, so the time and memory of a look-up depend on the number of ids, not on the
size of the segment.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.errors import FormatError
from casstore.format import index as index_format
from casstore.format.rows import ROW, check_rows, row_ids, word_ids
from casstore.objects.index.segment_file import DAMAGED
from casstore.objects.index.stored_lists import StoredLists, distinct

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray

    from casstore.format.rows import Rows
    from casstore.objects.index.segment_file import SegmentFile

    Positions = NDArray[np.int64]

BATCH_BITS = 18
"""Rows that are handled at once when all are: 2^18 of them, 16 MiB."""

FEW_IDS = 128
"""Ids that are looked up one by one in small segments."""

_KEYS_HELD = 1 << 20  # columns of keys of at most this many bytes are held in memory
_KEYS_APART = 1024
_SHORT_QUESTIONS = (
    4  # look-ups in a small segment after which a table pays for itself; in a tiny one it does at once
)
_SMALL = 8192
_TINY = 512


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

    def __init__(self, file: SegmentFile) -> None:
        self.key = file.key
        self._file = file
        shape = index_format.decode_shape(file.data[: index_format.HEADER_SIZE], key=self.key)
        if shape.size != file.size:
            raise FormatError(f"{self.key} has the wrong length. {DAMAGED}")
        self.head = index_format.decode_head(file.data[: shape.head_size], shape, key=self.key)
        self.lists = StoredLists(file, self.head)
        self.checked = np.zeros(shape.buckets, np.bool_)
        self._held_keys: NDArray[np.uint32] | None = None
        self.numbers: NDArray[np.uint32] = np.zeros(0, np.uint32)
        """The index-wide numbers of the segment's packs: the index sets them."""
        self._table: dict[bytes, list[int]] | None = None
        self._short_questions = 0

    def __len__(self) -> int:
        return self.head.shape.rows

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
            table = self._table_for(len(words))
            if table is not None:
                queries, rows = _match_few(words, table)
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
            wanted = distinct(unchecked)[0]
            rows = self._read_buckets(wanted)[0]
            try:
                self._judge(rows)
            except FormatError:
                # Invariant 5: they are judged again by whoever asks next, and sets the segment aside.
                self.checked[wanted] = False
                raise

    def verify(self) -> None:
        """Read and verify everything; raise FormatError if something is damaged."""
        for _ in self.batches():
            pass
        self.lists.verify()

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

    def lacks(self, ids: Collection[bytes]) -> bool:
        """Say whether none of a few ids is in a small segment; False says nothing.

        Most look-ups are about objects that are new, and this spares them what numpy takes for a few items. Raises FormatError
        for a damaged segment.
        """
        table = self._table_for(len(ids)) if len(self) <= _SMALL else None
        return table is not None and table.keys().isdisjoint(ids)

    def _table_for(self, questions: int) -> dict[bytes, list[int]] | None:
        """Return the rows of each id in a small segment, all verified; None where that does not pay for so many ids."""
        if questions > FEW_IDS:
            return None
        if self._table is None:
            self._short_questions += 1
            if len(self) > _TINY and self._short_questions <= _SHORT_QUESTIONS:
                return None
            self.check(np.arange(self.head.shape.buckets))
            table: dict[bytes, list[int]] = {}
            for row, object_id in enumerate(row_ids(self._rows(0, len(self)))):
                table.setdefault(object_id, []).append(row)
            self._table = table
        return self._table

    def _keys_of(self, buckets: NDArray[np.int64]) -> _Keys:
        """Return the keys of these buckets, at least."""
        shape = self.head.shape
        if self._held_keys is None and (
            self._file.is_held or index_format.KEY_SIZE * shape.rows <= _KEYS_HELD
        ):
            self._held_keys = np.frombuffer(self._file.view(shape.head_size, shape.rows_begin), "<u4")
        if self._held_keys is not None:
            return _Keys(self._held_keys, self.head.fanout)
        return self._read_keys(distinct(buckets)[0])

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
        self._file.read_places(memory, places)
        runs = np.repeat(np.arange(len(heads)), tails - heads + 1)
        return _Keys(column, edges[runs] + begins - begins[heads][runs], wanted)

    def _fetch(self, rows: Positions, buckets: NDArray[np.int64], keys: _Keys) -> Rows:
        """Return rows of the file, whose buckets are given; those are read and verified, the rows judged."""
        if not rows.size:
            return np.zeros(0, ROW)
        wanted, which = distinct(buckets)
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
        self._file.read_places(memory, places)
        self._verify(wanted, starts, fetched, keys)
        return fetched, starts

    def _rows(self, begin: int, end: int) -> Rows:
        origin = self.head.shape.rows_begin
        view = self._file.view(origin + ROW.itemsize * begin, origin + ROW.itemsize * end)
        return np.frombuffer(view, ROW)

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


def _match_few(words: NDArray[np.uint64], table: dict[bytes, list[int]]) -> tuple[Positions, Positions]:
    """Answer one of many short questions to a small segment, where a dict beats numpy's overhead."""
    pairs = [
        (query, row) for query, object_id in enumerate(word_ids(words)) for row in table.get(object_id, ())
    ]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]
