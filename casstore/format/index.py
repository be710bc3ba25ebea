"""An index segment: a sorted, immutable table of rows with a fan-out by the ids' leading bits.

A segment is read in three steps: `Head`, which says where buckets are and what their checksums are; the keys, a
column of four bytes for each row, which is enough for nearly every look-up of an absent object; and
buckets of rows, which are contiguous and verified one by one. So no reader needs the whole table.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from casstore.digest import DIGEST_SIZE, Hasher, digest
from casstore.errors import FormatError, UnsupportedVersion
from casstore.format.fields import split_ids
from casstore.format.rows import ROW, BaseLists, sort_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from casstore.format.rows import Rows

MAGIC = b"cassindx"
VERSION = 1
ROWS_PER_BUCKET = 48
"""Limit of the average number of rows in a bucket: with 64-byte rows, a bucket takes one or two pages."""

KEY_SIZE = 4
CHECK_SIZE = 8
SIZE_SIZE = 8
BLOCK = 4096
"""Bytes of the base lists that one checksum covers: no id and no offset lies in two blocks."""

_HEADER = struct.Struct("<8sHBBIQII32s")
HEADER_SIZE = _HEADER.size


class ListSource(Protocol):
    """Base lists in their canonical order, as `BaseLists` are and as a merge makes them bit by bit."""

    def __len__(self) -> int: ...

    @property
    def total(self) -> int:
        """How many ids all lists have together."""

    def parts(self) -> Iterator[bytes]:
        """Yield all ids, then all offsets."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The counts that a segment's header states, from which every offset in the file follows."""

    bits: int
    packs: int
    rows: int
    lists: int
    list_ids: int
    check: bytes

    @property
    def buckets(self) -> int:
        """Number of buckets."""
        return 1 << self.bits

    @property
    def sizes_begin(self) -> int:
        """Where the sizes of the packs start."""
        return HEADER_SIZE + DIGEST_SIZE * self.packs

    @property
    def fanout_begin(self) -> int:
        """Where the fan-out starts."""
        return self.sizes_begin + SIZE_SIZE * self.packs

    @property
    def head_size(self) -> int:
        """Bytes before the keys."""
        return self.checks_begin + CHECK_SIZE * (self.buckets + self.blocks)

    @property
    def checks_begin(self) -> int:
        """Where the checksums of the buckets start; those of the base lists follow them."""
        return self.fanout_begin + 4 * (self.buckets + 1)

    @property
    def blocks(self) -> int:
        """Number of blocks of the base lists."""
        return -(-self.bases_size // BLOCK)

    @property
    def bases_size(self) -> int:
        """Bytes of the base lists."""
        return DIGEST_SIZE * self.list_ids + 4 * (self.lists + 1)

    @property
    def rows_begin(self) -> int:
        """Where the rows start."""
        return self.head_size + KEY_SIZE * self.rows

    @property
    def bases_begin(self) -> int:
        """Where the base lists start."""
        return self.rows_begin + ROW.itemsize * self.rows

    @property
    def size(self) -> int:
        """Bytes of the whole segment."""
        return self.bases_begin + self.bases_size


@dataclass(frozen=True, slots=True)
class Head:
    """The packs that a segment covers, their sizes in bytes, where its buckets start, and their checksums."""

    shape: Shape
    packs: list[bytes]
    sizes: list[int]
    fanout: NDArray[np.uint32]
    checks: NDArray[np.void]
    block_checks: NDArray[np.void]

    def bucket_of(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the bucket number of each id, given as (n, 4) words."""
        return _bucket_of(words[:, 0], self.shape.bits)

    def key_of(self, words: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Return the key of each id in the column of keys: the 32 bits after its bucket's number."""
        return _key_of(words[:, 0], self.shape.bits)

    def check_buckets(self, buckets: NDArray[np.int64], rows: Sequence[Buffer], *, key: str) -> None:
        """Raise FormatError unless `rows` are exactly the bytes that were written for each of `buckets`."""
        found = b"".join([Hasher(part).digest(length=CHECK_SIZE) for part in rows])
        if found != self.checks[buckets].tobytes():
            raise FormatError(
                f"A bucket of {key} fails its checksum. Remove that file; it is rebuilt from the packs."
            )

    def check_blocks(self, blocks: NDArray[np.int64], parts: Sequence[Buffer], *, key: str) -> None:
        """Raise FormatError unless `parts` are the bytes that were written for each of these blocks of base lists."""
        found = b"".join([Hasher(part).digest(length=CHECK_SIZE) for part in parts])
        if found != self.block_checks[blocks].tobytes():
            raise FormatError(
                f"The base lists of {key} fail their checksum. Remove that file; it is rebuilt from the packs."
            )

    def check_keys(self, rows: Rows, keys: NDArray[np.uint32], *, key: str) -> None:
        """Raise FormatError unless `keys` are those of `rows`."""
        if not np.array_equal(self.key_of(rows["id"].astype(np.uint64)), keys):
            raise FormatError(
                f"The keys of {key} are not those of its rows. Remove that file; it is rebuilt from the packs."
            )


def encode(rows: Rows, bases: BaseLists, packs: Mapping[bytes, int]) -> bytes:
    """Return the bytes of a segment over `packs`, whose sizes in bytes are given by id.

    `rows` are in any order, their `pack` is a position in `packs`.
    """
    rows = rows[sort_order(rows)]
    lists, renumbered = bases.sorted()
    rows["bases"] = renumbered[rows["bases"]]
    return b"".join(encode_parts(lambda: iter((rows,)), len(rows), lists, packs))


def encode_parts(
    batches: Callable[[], Iterator[Rows]], count: int, lists: ListSource, packs: Mapping[bytes, int]
) -> Iterator[bytes]:
    """Return the bytes of a segment of `count` rows in parts, holding one batch at a time.

    `batches` is called three times and gives the same sorted rows each time; a batch ends where a bucket
    does (`bucket_bits`). The parts of `lists` are asked for twice.
    """
    bits = bucket_bits(count)
    fanout = np.zeros((1 << bits) + 1, "<u4")
    checks = np.frombuffer(digest(b"")[:CHECK_SIZE] * (1 << bits), f"V{CHECK_SIZE}").copy()
    for rows in batches():
        assert rows.dtype == ROW
        buckets = _bucket_of(rows["id"][:, 0].astype(np.uint64), bits)
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        view = memoryview(np.ascontiguousarray(rows).view(np.uint8).reshape(-1))
        edges = [*(starts * ROW.itemsize).tolist(), len(view)]
        fanout[buckets[starts] + 1] = np.diff(starts, append=len(rows))
        for bucket, begin, end in zip(buckets[starts].tolist(), edges, edges[1:], strict=False):
            checks[bucket] = digest(view[begin:end])[:CHECK_SIZE]
    fanout = np.cumsum(fanout, dtype="<u4")
    assert fanout[-1] == count
    sizes = np.array(list(packs.values()), "<u8")
    blocks = b"".join([Hasher(block).digest(length=CHECK_SIZE) for block in _blocks(lists.parts())])
    tables = b"".join(packs) + sizes.tobytes() + fanout.tobytes() + checks.tobytes() + blocks
    shape = Shape(bits, len(packs), count, len(lists), lists.total, check=bytes(DIGEST_SIZE))
    yield _pack_header(replace(shape, check=digest(_pack_header(shape) + tables)))
    yield tables
    for rows in batches():
        yield _key_of(rows["id"][:, 0].astype(np.uint64), bits).astype("<u4").tobytes()
    for rows in batches():
        yield rows.tobytes()
    yield from lists.parts()


def _blocks(parts: Iterator[bytes]) -> Iterator[memoryview]:
    """Cut parts into blocks; only the last one may be short."""
    left = b""
    for part in parts:
        view = memoryview(left + part)
        whole = len(view) - len(view) % BLOCK
        for at in range(0, whole, BLOCK):
            yield view[at : at + BLOCK]
        left = bytes(view[whole:])
    if left:
        yield memoryview(left)


def bucket_bits(rows: int) -> int:
    """Return how many leading bits of an id number the bucket, in a segment of that many rows."""
    return max(0, math.ceil(math.log2(max(1, rows) / ROWS_PER_BUCKET)))


def _bucket_of(lead: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    """Return the first `bits` bits of leading words."""
    if bits == 0:
        return np.zeros(len(lead), np.int64)
    return (lead >> np.uint64(64 - bits)).astype(np.int64)


def _key_of(lead: NDArray[np.uint64], bits: int) -> NDArray[np.uint32]:
    """Return the 32 bits that follow the first `bits` ones."""
    return ((lead << np.uint64(bits)) >> np.uint64(32)).astype(np.uint32)


def decode_shape(data: Buffer, *, key: str) -> Shape:
    """Read the first HEADER_SIZE bytes of a segment."""
    view = memoryview(data)
    if len(view) < HEADER_SIZE:
        raise FormatError(f"{key} is truncated. Remove that file; it is rebuilt from the packs.")
    magic, version, bits, flags, packs, rows, lists, list_ids, check = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise FormatError(f"{key} is not an index segment. Remove that file; it is rebuilt from the packs.")
    if version != VERSION or flags:
        raise UnsupportedVersion(f"{key} is an index of version {version}; upgrade casstore to read it.")
    if bits > 32 or rows >= 1 << 32:
        raise FormatError(f"{key} states an impossible size. Remove that file; it is rebuilt from the packs.")
    return Shape(bits=bits, packs=packs, rows=rows, lists=lists, list_ids=list_ids, check=check)


def decode_head(data: Buffer, shape: Shape, *, key: str) -> Head:
    """Read and check the first `shape.head_size` bytes of a segment."""
    view = memoryview(data)[: shape.head_size]
    if len(view) < shape.head_size:
        raise FormatError(f"{key} is truncated. Remove that file; it is rebuilt from the packs.")
    hasher = Hasher(_pack_header(replace(shape, check=bytes(DIGEST_SIZE))))
    hasher.update(view[HEADER_SIZE:])
    if hasher.digest() != shape.check:
        raise FormatError(
            f"The head of {key} fails its checksum. Remove that file; it is rebuilt from the packs."
        )
    fanout = np.frombuffer(view[shape.fanout_begin : shape.checks_begin], "<u4")
    checks = np.frombuffer(view[shape.checks_begin :], f"V{CHECK_SIZE}")
    if fanout[0] != 0 or fanout[-1] != shape.rows or np.any(fanout[1:] < fanout[:-1]):
        raise FormatError(
            f"The fan-out of {key} does not ascend. Remove that file; it is rebuilt from the packs."
        )
    packs = split_ids(bytes(view[HEADER_SIZE : shape.sizes_begin]), kind="segment")
    if len(set(packs)) != len(packs):
        raise FormatError(f"{key} names a pack twice. Remove that file; it is rebuilt from the packs.")
    return Head(
        shape=shape,
        packs=packs,
        sizes=np.frombuffer(view[shape.sizes_begin : shape.fanout_begin], "<u8").tolist(),
        fanout=fanout,
        checks=checks[: shape.buckets],
        block_checks=checks[shape.buckets :],
    )


def decode_bases(data: Buffer, head: Head, *, key: str) -> BaseLists:
    """Read and check all base lists, the last `bases_size` bytes of a segment."""
    view, shape = memoryview(data), head.shape
    parts = [view[at : at + BLOCK] for at in range(0, len(view), BLOCK)]
    if len(view) != shape.bases_size:
        raise FormatError(
            f"The base lists of {key} are truncated. Remove that file; it is rebuilt from the packs."
        )
    head.check_blocks(np.arange(shape.blocks), parts, key=key)
    split = DIGEST_SIZE * shape.list_ids
    offsets = np.frombuffer(view[split:], "<u4")
    if offsets[0] != 0 or offsets[-1] != shape.list_ids or np.any(offsets[1:] < offsets[:-1]):
        raise FormatError(
            f"The base lists of {key} do not ascend. Remove that file; it is rebuilt from the packs."
        )
    return BaseLists(offsets, bytes(view[:split]))


def _pack_header(shape: Shape) -> bytes:
    counts = (shape.bits, 0, shape.packs, shape.rows, shape.lists, shape.list_ids)
    return _HEADER.pack(MAGIC, VERSION, *counts, shape.check)
