"""zstd frames of literals alone (RFC 8878, sections 3.1.1 and 4): what `native/huffman.c` does, in numpy, to the byte.

Tables are made symbol by symbol, in Python; only what touches each byte is numpy's. `huffman.c` says why such frames are
written, and what its parts are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.huffman_tables import MAX_DIRECT, HuffmanTable, make_table
from casstore.codecs.logarithms import MILLER, logs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]

__all__ = ["column_bits", "count_repeats", "frame_size", "write_frame"]

_BLOCK = 128 << 10
_LEAST_BLOCK = 256
"""A shorter block is stored as it is."""

_MAX_SIZE = (1 << 32) - 1
_SLOTS_LOG = 11
_RAW, _REPEATED, _COMPRESSED = range(3)
"""Types of blocks."""

# fmt: off
_LOG2 = (
    0, 11, 22, 33, 44, 54, 63, 73, 82, 92, 100, 109, 118, 126, 134, 142,
    150, 157, 165, 172, 179, 186, 193, 200, 207, 213, 220, 226, 232, 238, 244, 250,
)
# fmt: on


class _Block(NamedTuple):
    """How a block is stored: its type, and of a compressed one the table, and whether the frame has it already."""

    kind: int
    size: int
    table: HuffmanTable | None = None
    is_new: bool = False


def write_frame(data: U8) -> U8 | None:
    """Return one frame, None if it would not be smaller than the data."""
    size = len(data)
    if size == 0 or size > _MAX_SIZE:
        return None
    parts = [_head(size)]
    table: HuffmanTable | None = None
    for begin in range(0, size, _BLOCK):
        part = data[begin : begin + _BLOCK]
        block = _plan(part, table)
        table = block.table or table
        last = int(begin + len(part) == size)
        if block.table is not None:
            body = _compressed(part, block.table, is_new=block.is_new)
            parts.append(_number(last | _COMPRESSED << 1 | len(body) << 3, 3) + body)
        else:
            plain = part.tobytes() if block.kind == _RAW else bytes(part[:1])
            parts.append(_number(last | block.kind << 1 | len(part) << 3, 3) + plain)
    frame = b"".join(parts)
    return np.frombuffer(frame, np.uint8) if len(frame) < size else None


def frame_size(data: U8) -> int:
    """Return about the size of the frame, a few bytes too large, 0 if it would not be smaller than the data."""
    size = len(data)
    if size == 0 or size > _MAX_SIZE:
        return 0
    total = len(_head(size))
    table: HuffmanTable | None = None
    for begin in range(0, size, _BLOCK):
        block = _plan(data[begin : begin + _BLOCK], table)
        table = block.table or table
        total += block.size
    return total if total < size else 0


def count_repeats(data: U8) -> int:
    """Return about how many positions begin 8 bytes that occurred before, not far away."""
    starts = np.arange(0, len(data) - 19, 12)
    if not len(starts):
        return 0
    windows = np.lib.stride_tricks.sliding_window_view(data, 8)
    asked = (starts[:, None] + np.arange(0, 12, 3)).ravel()
    kept = (starts[:, None] + np.arange(0, 12, 4)).ravel()
    # What is remembered of a group of 12 is found from the next one on: the nearest place before that has the same slot.
    order = np.sort(_slots(windows[kept]) << np.uint64(32) | kept.astype(np.uint64))
    slots, groups = _slots(windows[asked]), np.repeat(starts, 4).astype(np.uint64)
    at = np.searchsorted(order, slots << np.uint64(32) | groups) - 1
    found = order[np.maximum(at, 0)]
    is_slot = (at >= 0) & (found >> np.uint64(32) == slots)
    before = np.where(is_slot, found & np.uint64(0xFFFFFFFF), 0).astype(np.intp)
    same = (windows[before] == windows[asked]).all(axis=1) & (before < asked)
    return 12 * int(np.count_nonzero(same))


def column_bits(sample: U8) -> list[int]:
    """Return the entropy of each column of elements of 1, 2, 4 and 8 bytes, in 65536ths of a bit."""
    columns = np.arange(len(sample), dtype=np.int64) % 8 * 256 + sample
    finest = np.bincount(columns, minlength=8 * 256).reshape(8, 256)
    counts = np.concatenate([finest.reshape(-1, width, 256).sum(axis=0) for width in (1, 2, 4, 8)])
    totals = counts.sum(axis=1)
    bits = totals * _logs(totals) - (counts * _logs(counts)).sum(axis=1)
    used = np.count_nonzero(counts, axis=1)
    found: list[int] = np.where(totals > 0, bits + MILLER * (used - 1), 0).tolist()
    return found


def _logs(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the logarithms of numbers, 0 for 0."""
    return logs(np.maximum(values, 1).astype(np.uint64)).astype(np.int64)


def _slots(windows: U8) -> NDArray[np.uint64]:
    words = np.ascontiguousarray(windows).view(np.uint64).ravel()
    return words * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - _SLOTS_LOG)


def _number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def _head(size: int) -> bytes:
    """Return the start of a frame of one segment, which has this size."""
    code, length = (0, 1) if size < 256 else (1, 2) if size < 65536 + 256 else (2, 4)
    return _number(0xFD2FB528, 4) + _number(code << 6 | 1 << 5, 1) + _number(size - 256 * (code == 1), length)


def _plan(part: U8, before: HuffmanTable | None) -> _Block:
    """Choose how a block is stored; `before` is the table that a reader has."""
    size = len(part)
    raw = _Block(_RAW, 3 + size)
    if size < _LEAST_BLOCK:
        return raw
    counts = np.bincount(part, minlength=256)
    used = int(np.count_nonzero(counts))
    if used == 1:
        return _Block(_REPEATED, 4)
    if not _may_shrink(counts.tolist(), size, used):
        return raw
    table = make_table(counts)
    own = None if table.head is None else _size_by(table, counts)
    best = None if own is None or table.head is None else own + len(table.head)
    again = None if before is None else _size_by(before, counts)
    is_new = again is None or (best is not None and best < again)
    chosen, least = (table, best) if is_new else (before, again)
    if least is None or least >= size - 16:
        return raw
    return _Block(_COMPRESSED, least + 9, chosen, is_new)


def _may_shrink(counts: list[int], size: int, used: int) -> bool:
    """Say whether a code could save a 64th of the bytes: entropy and the least that a table takes are less than that."""
    whole = _log2(size)
    bits = sum(count * (whole - _log2(count)) for count in counts if count)
    return (bits >> 11) + (40 if used > MAX_DIRECT else used // 4) < size - (size >> 6)


def _log2(value: int) -> int:
    """Return log2 in 256ths, at most 1/20 of a bit too small."""
    whole = value.bit_length() - 1
    part = value >> (whole - 5) if whole >= 5 else value << (5 - whole)
    return whole << 8 | _LOG2[part & 31]


def _size_by(table: HuffmanTable, counts: NDArray[np.intp]) -> int | None:
    """Return the bytes of four streams and the sizes of three, None if the table lacks a symbol."""
    if np.any((counts > 0) & (table.bits == 0)):
        return None
    return (int(counts @ table.bits.astype(np.intp)) >> 3) + 4 + 6


def _compressed(part: U8, table: HuffmanTable, *, is_new: bool) -> bytes:
    """Return a block's literals in four streams (3.1.1.3.1), and that there are no sequences."""
    quarter = (len(part) + 3) // 4
    streams = [_stream(part[k * quarter : (k + 1) * quarter], table) for k in range(4)]
    sizes = b"".join(_number(len(stream), 2) for stream in streams[:3])
    head = table.head if is_new and table.head is not None else b""
    literals = b"".join([head, sizes, *streams])
    code = (2 if is_new else 3) | 3 << 2 | len(part) << 4 | len(literals) << 22
    return _number(code, 5) + literals + b"\0"


def _stream(part: U8, table: HuffmanTable) -> bytes:
    """Return the codes of a part, the last one first, from the lowest bit on, and the bit that says where they end."""
    # Four codes, which have 44 bits at most, become one item: a code of no bits fills up the last item.
    count = -(-len(part) // 4) * 4
    codes, sizes = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    backwards = part[::-1]
    codes[: len(part)] = table.codes[backwards]
    sizes[: len(part)] = table.bits[backwards]
    for _ in range(2):
        codes = codes[::2] | codes[1::2] << sizes[::2]
        sizes = sizes[::2] + sizes[1::2]
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    begins = ends - sizes
    at, shift = begins >> np.uint64(6), begins & np.uint64(63)
    # An item is shorter than a word: one begins in each word, and the last of these may reach into the next.
    first = np.flatnonzero(np.diff(at, prepend=np.uint64(1 << 63)))
    words = np.zeros((total >> 6) + 2, np.uint64)
    words[: len(first)] = np.bitwise_or.reduceat(codes << shift, first)
    final = np.append(first[1:], len(at)) - 1
    words[1 : len(first) + 1] |= codes[final] >> np.uint64(1) >> (np.uint64(63) - shift[final])
    words[total >> 6] |= np.uint64(1 << (total & 63))
    return words.astype("<u8").tobytes()[: (total >> 3) + 1]
