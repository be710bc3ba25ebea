"""An index segment: a sorted, immutable table of rows with a fan-out by the ids' leading bits.

A segment is read through `Head`: everything but the rows. Buckets of rows are contiguous and carry their
own checksums, so a local reader maps the file and a remote one fetches just the buckets it needs.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import DIGEST_SIZE, digest
from casstore.errors import FormatError, UnsupportedVersion
from casstore.format.fields import split_ids
from casstore.format.rows import ROW, BaseLists, sort_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from casstore.format.rows import Rows

MAGIC = b"cassindx"
VERSION = 1
ROWS_PER_BUCKET = 48
"""Rows a bucket holds on average, at most: with 64-byte rows, a bucket is read with one or two pages."""

CHECK_SIZE = 8
_HEADER = struct.Struct("<8sHBBIQQ32s")
HEADER_SIZE = _HEADER.size


@dataclass(frozen=True, slots=True)
class Shape:
    """The counts that a segment's header states, from which every offset in the file follows."""

    bits: int
    packs: int
    rows: int
    bases_size: int
    check: bytes

    @property
    def buckets(self) -> int:
        """Number of buckets."""
        return 1 << self.bits

    @property
    def head_size(self) -> int:
        """Bytes before the first row."""
        return HEADER_SIZE + DIGEST_SIZE * self.packs + 4 * (self.buckets + 1) + CHECK_SIZE * self.buckets

    @property
    def bases_begin(self) -> int:
        """Where the base lists start."""
        return self.head_size + ROW.itemsize * self.rows

    @property
    def size(self) -> int:
        """Bytes of the whole segment."""
        return self.bases_begin + self.bases_size + DIGEST_SIZE


@dataclass(frozen=True, slots=True)
class Head:
    """A segment without its rows: the packs it covers, where buckets start, and their checksums."""

    shape: Shape
    packs: list[bytes]
    fanout: NDArray[np.uint32]
    checks: NDArray[np.void]

    def bucket_of(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the bucket number of each id, given as (n, 4) words."""
        if self.shape.bits == 0:
            return np.zeros(len(words), np.int64)
        buckets: NDArray[np.int64] = (words[:, 0] >> np.uint64(64 - self.shape.bits)).astype(np.int64)
        return buckets

    def check_bucket(self, bucket: int, rows: Rows, *, key: str) -> None:
        """Raise FormatError unless `rows` are exactly the bytes that were written for `bucket`."""
        if digest(rows.tobytes())[:CHECK_SIZE] != self.checks[bucket].tobytes():
            raise FormatError(
                f"A bucket of {key} fails its checksum; remove that file, the packs rebuild it."
            )


def encode(rows: Rows, bases: BaseLists, packs: Sequence[bytes]) -> bytes:
    """Return the bytes of a segment over `packs`; `rows` are in any order, their `pack` indexes `packs`."""
    assert rows.dtype == ROW
    rows = rows[sort_order(rows)]
    bits = max(0, math.ceil(math.log2(max(1, len(rows)) / ROWS_PER_BUCKET)))
    lead = rows["id"][:, 0].astype(np.uint64)
    edges = (
        np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits) if bits else np.zeros(0, np.uint64)
    )
    fanout = np.zeros((1 << bits) + 1, "<u4")
    fanout[1:-1] = np.searchsorted(lead, edges)
    fanout[-1] = len(rows)
    body = rows.tobytes()
    view = memoryview(body)
    edges_bytes = (fanout.astype(np.int64) * ROW.itemsize).tolist()
    checks = b"".join(
        digest(view[start:stop])[:CHECK_SIZE] for start, stop in itertools.pairwise(edges_bytes)
    )
    tables = b"".join(packs) + fanout.tobytes() + checks
    lists = bases.encode()
    counts = (bits, len(packs), len(rows), len(lists))
    check = digest(_pack_header(*counts, bytes(DIGEST_SIZE)) + tables)
    return b"".join([_pack_header(*counts, check), tables, body, lists, digest(lists)])


def decode_shape(data: Buffer, *, key: str) -> Shape:
    """Read the first HEADER_SIZE bytes of a segment."""
    view = memoryview(data)
    if len(view) < HEADER_SIZE:
        raise FormatError(f"{key} is cut short; remove that file, the packs rebuild it.")
    magic, version, bits, flags, packs, rows, bases_size, check = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise FormatError(f"{key} is not an index segment; remove that file, the packs rebuild it.")
    if version != VERSION or flags:
        raise UnsupportedVersion(f"{key} is an index of version {version}; upgrade casstore to read it.")
    if bits > 32 or rows >= 1 << 32 or bases_size >= 1 << 40:
        raise FormatError(f"{key} states an impossible size; remove that file, the packs rebuild it.")
    return Shape(bits=bits, packs=packs, rows=rows, bases_size=bases_size, check=check)


def decode_head(data: Buffer, shape: Shape, *, key: str) -> Head:
    """Read and check the first `shape.head_size` bytes of a segment."""
    view = memoryview(data)[: shape.head_size]
    if len(view) < shape.head_size:
        raise FormatError(f"{key} is cut short; remove that file, the packs rebuild it.")
    blank = _pack_header(shape.bits, shape.packs, shape.rows, shape.bases_size, bytes(DIGEST_SIZE))
    if digest(blank + bytes(view[HEADER_SIZE:])) != shape.check:
        raise FormatError(f"The head of {key} fails its checksum; remove that file, the packs rebuild it.")
    fan = HEADER_SIZE + DIGEST_SIZE * shape.packs
    checks = fan + 4 * (shape.buckets + 1)
    fanout = np.frombuffer(view[fan:checks], "<u4")
    if fanout[0] != 0 or fanout[-1] != shape.rows or np.any(fanout[1:] < fanout[:-1]):
        raise FormatError(f"The fan-out of {key} does not ascend; remove that file, the packs rebuild it.")
    packs = split_ids(bytes(view[HEADER_SIZE:fan]), kind="segment")
    return Head(
        shape=shape, packs=packs, fanout=fanout, checks=np.frombuffer(view[checks:], f"V{CHECK_SIZE}")
    )


def decode_bases(data: Buffer, shape: Shape, *, key: str) -> BaseLists:
    """Read and check the base lists, the last `bases_size` + 32 bytes of a segment."""
    view = memoryview(data)
    lists = view[: shape.bases_size]
    if len(view) != shape.bases_size + DIGEST_SIZE or digest(lists) != bytes(view[shape.bases_size :]):
        raise FormatError(
            f"The base lists of {key} fail their checksum; remove that file, the packs rebuild it."
        )
    return BaseLists.decode(lists, key=key)


def _pack_header(bits: int, packs: int, rows: int, bases_size: int, check: bytes) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, bits, 0, packs, rows, bases_size, check)
