"""The 64-byte row that describes one frame, and the lists of bases that rows share.

Pack footers and index segments hold the same rows, so a footer becomes an index by sorting. Rows, not
columns: a look-up touches one cache line and one page per id instead of one per column.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    Rows = NDArray[np.void]

MAX_CHUNK = 1 << 20
"""Limit of a chunk in plain bytes."""

MAX_OBJECT = 1 << 28
"""Limit of a layout, tree or manifest in plain bytes."""

MAX_OFFSET = 1 << 62
"""Limit of a frame's offset: no file is as long, and sums of offsets and lengths stay within 63 bits."""

MAX_RANK = 32
"""Limit of ranks, and so of the length of a chain of deltas."""

RANK_STEP = 4
"""What a new delta's rank is above its bases': a chain has 8 deltas at most, and a base may be replaced by a delta."""

MAX_BASES = 4096
"""Limit of the bases of one frame: as many of the smallest usual chunks have MAX_BASE_BYTES."""

MAX_BASE_BYTES = 256 << 20
"""Limit of the plain bytes of a frame's bases, with the bases of those, each counted once."""


class Kind(enum.IntEnum):
    """What an object is."""

    CHUNK = 1
    LAYOUT = 2
    MANIFEST = 3
    TREE = 4


def max_plain(kind: int) -> int:
    """Return the limit in plain bytes of an object of a kind; a payload has no more."""
    return MAX_CHUNK if kind == Kind.CHUNK else MAX_OBJECT


ROW: np.dtype[np.void] = np.dtype(
    [
        ("id", ">u8", 4),
        ("offset", "<u8"),
        ("stored", "<u4"),
        ("raw", "<u4"),
        ("pack", "<u4"),
        ("bases", "<u4"),
        ("kind", "u1"),
        ("encoding", "u1"),
        ("rank", "u1"),
        ("reserved", "u1", 5),
    ]
)
"""One frame: `offset` is where its header starts in the pack, `stored` the payload's length,
`pack` an index into the segment's pack table (0 in a footer), `bases` 1 + an index into the base lists,
0 for none. The id is read as four big-endian words so that numpy sorts and compares it as bytes do."""

ROW_FIELDS = struct.Struct("<32sQIIIIBBB5x")
"""The fields of one row except the reserved ones, unpacked together, which is faster than asking numpy for each."""

assert ROW.itemsize == ROW_FIELDS.size == 64

_MIXERS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], np.uint64
)

_LIST_COUNTS = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class BaseLists:
    """Deduplicated lists of base ids, in CSR form: list k is `ids[offsets[k]:offsets[k + 1]]`."""

    offsets: NDArray[np.uint32]
    ids: bytes

    @classmethod
    def empty(cls) -> BaseLists:
        """Return no lists."""
        return cls(np.zeros(1, "<u4"), b"")

    @classmethod
    def of(cls, lists: Sequence[tuple[bytes, ...]]) -> BaseLists:
        """Pack `lists` of 32-byte ids; raise FormatError for lists that `decode` would refuse."""
        lengths = np.array([len(item) for item in lists], "<u4")
        _check_list_lengths(lengths, key="An unfinished pack")
        offsets = np.zeros(len(lists) + 1, "<u4")
        np.cumsum(lengths, out=offsets[1:])
        return cls(offsets, b"".join(base for item in lists for base in item))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def size(self) -> int:
        """Bytes that `encode` returns."""
        return _LIST_COUNTS.size + 4 * len(self.offsets) + len(self.ids)

    def length(self, number: int) -> int:
        """Return how many bases a row's `bases` field means."""
        return int(self.offsets[number]) - int(self.offsets[number - 1]) if number else 0

    @property
    def total(self) -> int:
        """How many ids all lists have together."""
        return len(self.ids) // DIGEST_SIZE

    def parts(self) -> Iterator[bytes]:
        """Yield all ids, then all offsets: what an index segment holds."""
        yield self.ids
        yield self.offsets.astype("<u4").tobytes()

    def take(self, chosen: NDArray[np.integer[Any]]) -> BaseLists:
        """Return the lists with these numbers, which start at 0, in this order."""
        positions, ends = expand(self.offsets[chosen], self.offsets[chosen + 1])
        ids = np.frombuffer(self.ids, f"V{DIGEST_SIZE}")[positions]
        return BaseLists(np.concatenate([[0], ends]).astype("<u4"), ids.tobytes())

    def sorted(self) -> tuple[BaseLists, NDArray[np.uint32]]:
        """Return the lists in their canonical order, equal ones once, and what each value of `bases` becomes."""
        chosen, renumbered = self.order()
        return self.take(chosen), renumbered

    def order(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Return the numbers of the lists in their canonical order, equal ones once, and what `bases` becomes.

        They are sorted by the first word of their first id, then by a checksum: so lists of several sources can be
        joined in batches that have equal ones together.
        """
        leads, sums = self._keys()
        order = np.lexsort((sums, leads))
        leads, sums, counts = leads[order], sums[order], np.diff(self.offsets.astype(np.int64))[order]
        same = np.zeros(len(self), np.bool_)
        same[1:] = (leads[1:] == leads[:-1]) & (sums[1:] == sums[:-1]) & (counts[1:] == counts[:-1])
        # If checksums collide, equal lists may be written twice, which does no harm.
        maybe = np.flatnonzero(same)
        one, other = order[maybe], order[maybe - 1]
        here, ends = expand(self.offsets[one], self.offsets[one + 1])
        before, _ = expand(self.offsets[other], self.offsets[other + 1])
        words = np.frombuffer(self.ids, "<u8").reshape(-1, 4)
        equal = np.concatenate([[0], np.cumsum((words[here] == words[before]).all(axis=1))])
        same[maybe] = equal[ends] - equal[ends - counts[maybe]] == counts[maybe]
        renumbered = np.zeros(len(self) + 1, "<u4")
        renumbered[order + 1] = np.cumsum(~same)
        return order[~same], renumbered

    def _keys(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        words = np.frombuffer(self.ids, ">u8").reshape(-1, 4).astype(np.uint64)
        begins, ends = self.offsets[:-1].astype(np.int64), self.offsets[1:].astype(np.int64)
        leads = np.zeros(len(self), np.uint64)
        some = np.flatnonzero(ends > begins)
        leads[some] = words[begins[some], 0]
        places = np.arange(len(words)) - np.repeat(begins, ends - begins)
        mixed = (words * _MIXERS).sum(axis=1, dtype=np.uint64) + (places + 1).astype(np.uint64) * _MIXERS[0]
        for shift, mixer in ((np.uint64(30), _MIXERS[1]), (np.uint64(27), _MIXERS[2])):
            mixed = (mixed ^ (mixed >> shift)) * mixer
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        return leads, sums[ends] - sums[begins]

    def all(self) -> Iterator[tuple[bytes, ...]]:
        """Yield the bases of each list in order."""
        ids = [self.ids[at : at + DIGEST_SIZE] for at in range(0, len(self.ids), DIGEST_SIZE)]
        return (tuple(ids[start:stop]) for start, stop in pairwise(self.offsets.tolist()))

    def get(self, number: int) -> tuple[bytes, ...]:
        """Return the bases that a row's `bases` field means; `number` 0 is no bases."""
        if number == 0:
            return ()
        start, stop = self.offsets[number - 1 : number + 1].tolist()
        return tuple(self.ids[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE] for at in range(start, stop))

    def encode(self) -> bytes:
        """Return counts, offsets and ids."""
        counts = _LIST_COUNTS.pack(len(self), len(self.ids) // DIGEST_SIZE)
        return counts + self.offsets.astype("<u4").tobytes() + self.ids

    @classmethod
    def decode(cls, data: Buffer, *, key: str) -> BaseLists:
        """Read what `encode` wrote; raise FormatError if a length or an offset is wrong."""
        view = memoryview(data).cast("B")
        if len(view) < _LIST_COUNTS.size:
            raise FormatError(f"The base lists of {key} are truncated.")
        lists, bases = _LIST_COUNTS.unpack_from(view)
        split = _LIST_COUNTS.size + 4 * (lists + 1)
        if len(view) != split + DIGEST_SIZE * bases:
            raise FormatError(f"The base lists of {key} have the wrong length.")
        offsets = np.frombuffer(view[_LIST_COUNTS.size : split], "<u4")
        if offsets[0] != 0 or offsets[-1] != bases or np.any(offsets[1:] < offsets[:-1]):
            raise FormatError(f"The base lists of {key} do not ascend.")
        _check_list_lengths(np.diff(offsets), key=key)
        return cls(offsets, bytes(view[split:]))


def _check_list_lengths(lengths: NDArray[np.uint32], *, key: str) -> None:
    """Raise FormatError unless each list has bases, and not too many; writers and readers check here (invariant 14)."""
    if np.any(lengths == 0) or np.any(lengths > MAX_BASES):
        raise FormatError(f"{key} has a base list that is empty or has more than {MAX_BASES} bases.")


def expand(
    begins: NDArray[np.integer[Any]], ends: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all numbers of the ranges [begin, end), one range after the other, and where those of each end."""
    counts = ends.astype(np.int64) - begins.astype(np.int64)
    stops = np.cumsum(counts)
    within = np.arange(counts.sum()) - np.repeat(stops - counts, counts)
    return np.repeat(begins.astype(np.int64), counts) + within, stops


def id_words(ids: Sequence[bytes] | bytes) -> NDArray[np.uint64]:
    """Return ids (a list of 32-byte ids, or their concatenation) as an (n, 4) array of native words."""
    joined = ids if isinstance(ids, bytes) else b"".join(ids)
    return np.frombuffer(joined, ">u8").reshape(-1, 4).astype(np.uint64)


def word_ids(words: NDArray[np.uint64]) -> list[bytes]:
    """Return the 32-byte ids that `id_words` made into words."""
    return _split(words.astype(">u8").tobytes())


def row_ids(rows: Rows) -> list[bytes]:
    """Return the 32-byte ids of `rows`."""
    return _split(np.ascontiguousarray(rows["id"]).tobytes())


def _split(joined: bytes) -> list[bytes]:
    return [joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)]


def sort_order(rows: Rows) -> NDArray[np.intp]:
    """Return the order that sorts rows by id, ties by pack and offset.

    Leading words of BLAKE3 ids nearly never tie, and a stable sort of one word runs in linear time over
    rows that are already sorted in parts, as merged segments are.
    """
    words = rows["id"]
    lead = words[:, 0].astype(np.uint64)
    order = np.argsort(lead, kind="stable")
    ordered = lead[order]
    if not np.any(ordered[1:] == ordered[:-1]):
        return order
    keys: list[Any] = [rows["offset"], rows["pack"]]
    keys += [words[:, column].astype(np.uint64) for column in (3, 2, 1, 0)]
    return np.lexsort(keys)


def check_rows(rows: Rows, *, lists: int, packs: int, key: str) -> None:
    """Raise FormatError unless every field of every row is within its limits.

    Encodings are not checked here: an unknown one is refused when it is decoded.
    """
    if len(rows) == 0:
        return
    chunk = rows["kind"] == Kind.CHUNK
    limit = np.where(chunk, MAX_CHUNK, MAX_OBJECT)
    wrong = (
        (rows["kind"] < Kind.CHUNK)
        | (rows["kind"] > Kind.TREE)
        | (rows["raw"] > limit)
        | (rows["stored"] > limit)
        | (rows["offset"] > MAX_OFFSET)
        | (rows["rank"] > MAX_RANK)
        | ((rows["bases"] == 0) != (rows["rank"] == 0))
        | (rows["bases"] > lists)
        | (rows["pack"] >= packs)
        | rows["reserved"].any(axis=1)
    )
    if wrong.any():
        raise FormatError(f"{key} describes a frame that cannot exist (row {int(np.argmax(wrong))}).")


def merge_base_lists(parts: Iterable[tuple[Rows, BaseLists]]) -> tuple[Rows, BaseLists]:
    """Join rows of several sources; their `bases` fields are renumbered into one set of lists."""
    arrays: list[Rows] = []
    offsets: list[NDArray[np.uint32]] = [np.zeros(1, "<u4")]
    ids: list[bytes] = []
    lists = bases = 0
    for rows, part in parts:
        moved = rows.copy()
        moved["bases"] += np.where(rows["bases"] > 0, np.uint32(lists), np.uint32(0))
        arrays.append(moved)
        offsets.append((part.offsets[1:] + np.uint32(bases)).astype("<u4"))
        ids.append(part.ids)
        lists += len(part)
        bases += len(part.ids) // DIGEST_SIZE
    # Without the dtype, numpy would return native words, and the ids could not be read as bytes.
    joined = np.concatenate(arrays, dtype=ROW) if arrays else np.zeros(0, ROW)
    return joined, BaseLists(np.concatenate(offsets), b"".join(ids))
