"""Encode batches of chunks, decode payloads: the two directions of every encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.encoding import ElementHint, Encoded, Encoding
from casstore.codecs.planes import Plan, decode_planes, encode_planes
from casstore.codecs.select import Choice, choose
from casstore.codecs.zstd import compress, decompress
from casstore.errors import FormatError, UnsupportedVersion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    U8 = NDArray[np.uint8]

__all__ = ["decode", "decode_into", "encode_batch"]

# Payloads start at multiples of this, so that integer copies into them are aligned.
_ALIGN = 64
# One choice of encoding serves up to this many adjacent bytes of a tensor.
_STRETCH = 4 << 20


def encode_batch(
    block: Buffer, cuts: Sequence[tuple[int, int]], hints: Sequence[ElementHint | None]
) -> list[Encoded]:
    """Encode the chunks that `cuts`, pairs of (offset, length) in bytes, name in `block`.

    One hint per cut, or None where nothing is known. A payload is never longer than its chunk. The same batch
    gives the same result, each time and in each process; adjacent chunks with like hints share one choice.
    `block` is only read and may be reused as soon as this returns. Any number of threads may call it at once;
    hand over 4 MiB and more. Raises ValueError for a cut outside `block`.
    """
    data: U8 = np.frombuffer(block, np.uint8)
    for offset, length in cuts:
        if offset < 0 or length < 0 or offset + length > len(data):
            raise ValueError(
                f"A cut of {length} bytes at {offset} is outside its block of {len(data)} bytes."
            )
    arena: U8 = np.empty(sum(-(-length // _ALIGN) * _ALIGN for _, length in cuts), np.uint8)
    view = memoryview(arena)
    position = 0
    encoded = []
    for first, end in _stretches(cuts, hints):
        begin = cuts[first][0]
        choice = choose(data[begin : sum(cuts[end - 1])], hints[first])
        for offset, length in cuts[first:end]:
            encoding, stored = _encode(
                data[offset : offset + length], choice, offset - begin, arena[position : position + length]
            )
            encoded.append(Encoded(encoding, view[position : position + stored]))
            position += -(-stored // _ALIGN) * _ALIGN
    return encoded


def _stretches(
    cuts: Sequence[tuple[int, int]], hints: Sequence[ElementHint | None]
) -> Iterator[tuple[int, int]]:
    """Divide the batch into ranges of cuts that are adjacent and whose hints see the same elements."""
    first = 0
    for at in range(1, len(cuts) + 1):
        if at < len(cuts):
            begin, hint, next_hint = cuts[first][0], hints[first], hints[at]
            offset, length = cuts[at]
            if (
                hint is not None
                and next_hint is not None
                and hint.width == next_hint.width > 0
                and (hint.phase - next_hint.phase - (offset - begin)) % hint.width == 0
                and sum(cuts[at - 1]) == offset
                and offset + length - begin <= _STRETCH
            ):
                continue
        if at > first:
            yield first, at
        first = at


def _encode(chunk: U8, choice: Choice, offset: int, out: U8) -> tuple[Encoding, int]:
    """Write the payload of the chunk at `offset` of its stretch to the start of `out`; return its length.

    `out` is as long as the chunk.
    """
    plan = choice.plan
    if isinstance(plan, Plan):
        stored = encode_planes(chunk, (choice.phase - offset) % plan.stride, plan, out)
        if stored is not None:
            return Encoding.PLANES, stored
    elif plan is not None and len(chunk):
        frame = compress(chunk, plan)
        if len(frame) < len(chunk):
            out[: len(frame)] = np.frombuffer(frame, np.uint8)
            return Encoding.ZSTD, len(frame)
    out[:] = chunk
    return Encoding.RAW, len(chunk)


def decode_into(encoding: int, payload: Buffer, out: Buffer) -> None:
    """Write the plain bytes of `payload` over the whole of `out`, whose length is the chunk's.

    Both stay the caller's; they must not overlap. Nothing outside them is read or written, and memory beyond
    `out` is at most its size again. Raises FormatError when the payload does not make exactly len(out) bytes,
    UnsupportedVersion for an encoding this release does not know; `out` is in any state after an error.
    Nobody may use the bytes before their hash was checked (invariant 4).
    """
    source = memoryview(payload).cast("B")
    target: U8 = np.frombuffer(out, np.uint8)
    if encoding == Encoding.RAW:
        if len(source) != len(target):
            raise FormatError(f"A raw payload has {len(source)} bytes instead of {len(target)}.")
        target[:] = np.frombuffer(source, np.uint8)
    elif encoding == Encoding.ZSTD:
        target[:] = np.frombuffer(decompress(source, len(target)), np.uint8)
    elif encoding == Encoding.PLANES:
        decode_planes(source, target)
    elif encoding == Encoding.DELTA:
        raise UnsupportedVersion(
            "This chunk is stored as a delta against other chunks. Upgrade casstore to read it."
        )
    else:
        raise UnsupportedVersion(
            f"This chunk has encoding {encoding}, of a newer casstore. Upgrade to read it."
        )


def decode(encoding: int, payload: Buffer, raw_length: int) -> bytes:
    """Return the `raw_length` plain bytes of `payload`; errors and limits as `decode_into`."""
    if encoding == Encoding.ZSTD:
        return decompress(memoryview(payload).cast("B"), raw_length)
    if encoding == Encoding.RAW and memoryview(payload).nbytes != raw_length:
        raise FormatError(f"A raw payload has {memoryview(payload).nbytes} bytes instead of {raw_length}.")
    out = bytearray(raw_length)
    decode_into(encoding, payload, out)
    return bytes(out)
