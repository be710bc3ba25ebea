"""Encode batches of chunks, decode payloads: the two directions of every encoding."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.encoding import ElementHint, Encoded, Encoding
from casstore.codecs.kernels import equal
from casstore.codecs.planes import (
    Plan,
    compressed_runs,
    decode_planes,
    encode_planes,
    planes_decode_to,
    read_table,
)
from casstore.codecs.select import Choice, choose
from casstore.codecs.zstd import compress_all, decompress_all
from casstore.errors import FormatError, UnsupportedVersion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from casstore.codecs.planes import Table

    U8 = NDArray[np.uint8]

__all__ = ["decode_batch", "decodes_to", "encode_each", "share_of_plain"]

# Bytes whose elements are taken apart, or put together, at once: fewer native calls, fewer waits for the GIL.
_GROUP = 4 << 20
# Bytes whose elements are taken apart at once: with fewer, threads wait for the GIL more often; with more, columns
# leave the core's own cache (two threads: 570 MB/s with 1 MiB, 670 with 2, 690 with 4; processor 3.0, 2.5, 2.6 s/GB).
_REGROUPED = 2 << 20
# One choice of encoding serves up to this many adjacent bytes of a tensor.
_STRETCH = 4 << 20


def encode_each(
    block: Buffer,
    cuts: Sequence[tuple[int, int]],
    hints: Sequence[ElementHint | None],
    *,
    out: memoryview | None = None,
    lead: int = 0,
) -> Iterator[Encoded]:
    """Encode the chunks that `cuts`, pairs of (offset, length) in bytes, name in `block`, and yield them in order.

    Each is yielded as soon as it is ready, while chunk and payload are in the core's cache: the caller may decode them
    on this thread before it asks for the next, but encode nothing else.

    One hint per cut, or None where nothing is known. A payload is never longer than its chunk. The same batch
    gives the same result, each time and in each process; adjacent chunks with like hints share one choice.
    Payloads are slices of `out`, writable bytes of the caller's, or of fresh memory: one after the other in
    the order of the cuts, `lead` bytes left alone before each. `block` is only read and may be reused at the
    end. Any number of threads may call it at once; hand over 4 MiB and more. Raises ValueError
    for a cut outside `block`, or an `out` that could be too short (lead and length of all cuts).
    """
    data: U8 = np.frombuffer(block, np.uint8)
    for offset, length in cuts:
        if offset < 0 or length < 0 or offset + length > len(data):
            raise ValueError(
                f"A cut of {length} bytes at {offset} is outside its block of {len(data)} bytes."
            )
    room = sum(lead + length for _, length in cuts)
    if out is None:
        out = memoryview(np.empty(room, np.uint8))
    elif len(out) < room:
        raise ValueError(f"{len(out)} bytes cannot take payloads of up to {room} bytes.")
    target: U8 = np.frombuffer(out, np.uint8)
    position = 0
    last: tuple[int, Choice] | None = None
    for first, end in _stretches(cuts, hints):
        begin = cuts[first][0]
        stretch = data[begin : sum(cuts[end - 1])]
        choice = choose(stretch, hints[first], _moved(last, begin))
        if hints[first] is None:
            last = begin, choice
        edges = [offset - begin for offset, _ in cuts[first:end]] + [len(stretch)]
        for encoding, size in _encode(stretch, edges, choice, target[position:], lead):
            position += lead
            yield Encoded(encoding, out[position : position + size])
            position += size


def share_of_plain(plain: Buffer, hint: ElementHint | None) -> float:
    """Estimate which share of a chunk `encode_each` leaves, by a look at some of its bytes."""
    return choose(np.frombuffer(plain, np.uint8), hint).share


def _moved(last: tuple[int, Choice] | None, begin: int) -> Choice | None:
    """Return the choice made for other bytes of the block, with the phase that it has at `begin`."""
    if last is None:
        return None
    before, choice = last
    if not isinstance(choice.plan, Plan):
        return None
    return choice._replace(phase=(choice.phase - (begin - before)) % choice.plan.stride)


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


def _encode(
    stretch: U8, edges: Sequence[int], choice: Choice, target: U8, lead: int
) -> Iterator[tuple[Encoding, int]]:
    """Write the payload of each chunk between the `edges` of `stretch` to `target`; yield how long it is once it is there."""
    plan = choice.plan
    position = 0
    if isinstance(plan, Plan):
        for first, end in _whole_elements(edges, choice.phase, plan.stride):
            begin = edges[first]
            part_edges = [edge - begin for edge in edges[first : end + 1]]
            phase = (choice.phase - begin) % plan.stride
            sizes = encode_planes(
                stretch[begin : edges[end]], part_edges, phase, plan, target[position:], lead=lead
            )
            for is_planes, size in sizes:
                yield Encoding.PLANES if is_planes else Encoding.RAW, size
                position += lead + size
        return
    for begin, end in pairwise(edges):
        chunk = stretch[begin:end]
        frame = compress_all([chunk], plan)[0] if plan is not None and begin < end else chunk
        is_smaller = len(frame) < len(chunk)
        stored = frame if is_smaller else chunk
        position += lead
        target[position : position + len(stored)] = stored
        yield Encoding.ZSTD if is_smaller else Encoding.RAW, len(stored)
        position += len(stored)


def _whole_elements(edges: Sequence[int], phase: int, stride: int) -> Iterator[tuple[int, int]]:
    """Divide chunks into ranges of up to _REGROUPED bytes whose inner edges lie between elements."""
    first = 0
    for at in range(1, len(edges)):
        if at + 1 < len(edges):
            begin, edge, end = edges[at - 1], edges[at], edges[at + 1]
            whole = (edge - phase) % stride == 0 and min(edge - begin, end - edge) >= 2 * stride
            if whole and end - edges[first] <= _REGROUPED:
                continue
        yield first, at
        first = at


def decode_batch(payloads: Sequence[tuple[int, Buffer]], lengths: Sequence[int], out: Buffer) -> None:
    """Write the plain bytes of (encoding, payload) pairs over `out`, one after the other.

    `lengths` are the chunks' and add up to len(out). Payloads and `out` stay the caller's; they must not overlap. Nothing
    outside them is read or written. Memory beyond `out` is at most its size again and a few times 4 MiB, most of which stays
    with the thread; many chunks at once take a fraction of the native calls. Raises FormatError when a payload
    does not make exactly as many bytes as its chunk has, UnsupportedVersion for an encoding this release does not know;
    `out` is in any state after an error. The bytes must not be used before their hash was checked (invariant 4).
    """
    target: U8 = np.frombuffer(out, np.uint8)
    for source, table, plains, begin, end in _opened(payloads, lengths, len(target)):
        if table is not None:
            decode_planes(source, table, plains, target[begin:end])
        else:
            target[begin:end] = next(plains)


def decodes_to(payloads: Sequence[tuple[int, Buffer]], lengths: Sequence[int], plain: Buffer) -> bool:
    """Say whether `decode_batch` would write exactly `plain`, as long as `lengths` together; all of it is only read.

    Raises what that raises, and needs less memory and time: chunks are compared while they are put together.
    """
    expected: U8 = np.frombuffer(plain, np.uint8)
    for source, table, plains, begin, end in _opened(payloads, lengths, len(expected)):
        if table is not None:
            same = planes_decode_to(source, table, plains, expected[begin:end])
        else:
            same = equal(memoryview(next(plains)), memoryview(expected[begin:end]))
        if not same:
            return False
    return True


def _opened(
    payloads: Sequence[tuple[int, Buffer]], lengths: Sequence[int], size: int
) -> Iterator[tuple[memoryview, Table | None, Iterator[U8], int, int]]:
    """Yield for each chunk its payload, the table of its planes, plain bytes, and where it begins and ends.

    Chunks are opened in groups: the zstd frames of all in one native call. Each is then decoded on its own, while
    its elements are in the core's own cache. Of one that has no planes, all bytes come next in the plain ones.
    """
    edges = [0, *accumulate(lengths)]
    if edges[-1] != size:
        raise ValueError(f"Chunks of {edges[-1]} bytes do not fill {size} bytes.")
    first = 0
    for end in range(1, len(payloads) + 1):
        if end == len(payloads) or edges[end + 1] - edges[first] > _GROUP:
            yield from _opened_group(payloads[first:end], edges[first : end + 1])
            first = end


def _opened_group(
    payloads: Sequence[tuple[int, Buffer]], edges: Sequence[int]
) -> Iterator[tuple[memoryview, Table | None, Iterator[U8], int, int]]:
    sources = []
    tables = []
    frames: list[tuple[memoryview, int]] = []
    for (encoding, payload), (begin, end) in zip(payloads, pairwise(edges), strict=True):
        source = memoryview(payload).cast("B")
        table = None
        if encoding == Encoding.PLANES:
            table = read_table(source, end - begin)
            frames += compressed_runs(source, table)
        elif encoding == Encoding.ZSTD:
            frames.append((source, end - begin))
        elif encoding == Encoding.DELTA:
            # Whoever has its bases decodes it (`decode_deltas`).
            raise FormatError("A delta stands where only bytes that decode alone may.")
        elif encoding != Encoding.RAW:
            raise UnsupportedVersion(
                f"This chunk has encoding {encoding}, of a newer casstore. Upgrade to read it."
            )
        elif len(source) != end - begin:
            raise FormatError(f"A raw payload has {len(source)} bytes instead of {end - begin}.")
        sources.append(source)
        tables.append(table)
    plains = iter(decompress_all(frames))
    for (encoding, _), source, table, (begin, end) in zip(
        payloads, sources, tables, pairwise(edges), strict=True
    ):
        raw = iter((np.frombuffer(source, np.uint8),)) if encoding == Encoding.RAW else None
        yield source, table, raw or plains, begin, end
