"""Deltas to plain bytes: many at a time, so that their streams are decoded in few native calls."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.batch import decode_batch
from casstore.codecs.delta.operations.operation import Source
from casstore.codecs.delta.payload import (
    DIRECTORY,
    LITERAL,
    RESIDUALS,
    check_order,
    check_streams,
    read_head,
    read_pieces,
)
from casstore.codecs.delta.predict import check_programs, fills, predict_to, source_of
from casstore.codecs.delta.predicted import Task, add_each
from casstore.codecs.encoding import Encoding
from casstore.codecs.regroup import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from casstore.codecs.delta.payload import Head, Stream
    from casstore.codecs.delta.piece import Piece

    U8 = NDArray[np.uint8]

_GROUP = 2 << 20
"""Bytes of streams that are decoded at once: what a thread keeps as scratch."""


class Delta(NamedTuple):
    """A payload, and the plain bytes of the bases of its frame, in order."""

    payload: Buffer
    bases: Sequence[Buffer]


class _Parsed(NamedTuple):
    """A delta that was checked: its pieces, the streams that are to be decoded, and where each of those begins."""

    pieces: Sequence[Piece]
    streams: list[Stream]
    size: int
    bases: list[U8]


def decode_deltas(deltas: Sequence[Delta], lengths: Sequence[int], out: Buffer) -> None:
    """Write the plain bytes of deltas over `out`, one after the other, as `codecs.decode_batch` does for other encodings.

    `lengths` are the chunks' and add up to len(out). Raises FormatError for a payload that is malformed or does not fit
    bases and length, before it allocates for it; UnsupportedVersion for what this release does not know. `out` is in any
    state after an error. The bytes must not be used before their hash was checked (invariant 4).
    """
    target: U8 = np.frombuffer(out, np.uint8)
    edges = [0, *accumulate(lengths)]
    if edges[-1] != len(target):
        raise ValueError(f"Chunks of {edges[-1]} bytes do not fill {len(target)} bytes.")
    parsed: list[_Parsed] = []
    first = size = 0
    for at, delta in enumerate(deltas):
        item = _parse(delta, lengths[at])
        if parsed and size + item.size > _GROUP:
            _decode_group(parsed, target[edges[first] : edges[at]], lengths[first:at])
            parsed, first, size = [], at, 0
        parsed.append(item)
        size += item.size
    _decode_group(parsed, target[edges[first] :], lengths[first:])


def _parse(delta: Delta, raw: int) -> _Parsed:
    head = read_head(memoryview(delta.payload).cast("B"))
    pieces = read_pieces(_directory(head), head.pieces)
    check_streams(pieces, head, check_order(pieces, raw))
    bases: list[U8] = [np.frombuffer(base, np.uint8) for base in delta.bases]
    check_programs(pieces, [len(base) for base in bases], head.plain(LITERAL))
    streams = [stream for number, stream in head.streams.items() if number != DIRECTORY]
    return _Parsed(pieces, streams, sum(stream.plain for stream in streams), bases)


def _directory(head: Head) -> memoryview:
    stream = head.streams[DIRECTORY]
    if stream.encoding == Encoding.RAW and len(stream.body) == stream.plain:
        return stream.body
    plain = memoryview(bytearray(stream.plain))
    decode_batch([(stream.encoding, stream.body)], [stream.plain], plain)
    return plain


def _decode_group(parsed: Sequence[_Parsed], out: U8, lengths: Sequence[int]) -> None:
    streams = [stream for item in parsed for stream in item.streams]
    plain = scratch("streams", sum(stream.plain for stream in streams))
    decode_batch(
        [(stream.encoding, stream.body) for stream in streams], [stream.plain for stream in streams], plain
    )
    add_each(_tasks(parsed, plain, out, lengths))


def _tasks(parsed: Sequence[_Parsed], plain: U8, out: U8, lengths: Sequence[int]) -> Iterator[Task]:
    """Yield what is left to be made of deltas; `plain` is what the streams of all hold, one after the other."""
    at = begin = 0
    for item, length in zip(parsed, lengths, strict=True):
        yield from _tasks_of(item, plain[at : at + item.size], out[begin : begin + length])
        at += item.size
        begin += length


def _tasks_of(item: _Parsed, plain: U8, out: U8) -> Iterator[Task]:
    """Yield pieces and, between them, literals."""
    found: dict[int, U8] = {}
    begin = 0
    for stream in item.streams:
        found[stream.number] = plain[begin : begin + stream.plain]
        begin += stream.plain
    literals = found.get(LITERAL, plain[:0])
    taken = dict.fromkeys(found, 0)
    at = literal = 0
    for piece in item.pieces:
        if piece.begin > at:
            gap = piece.begin - at
            yield Task(out[at : piece.begin], Source([literals[literal : literal + gap]]), None)
            literal += gap
        at = piece.end
        actual = out[piece.begin : at]
        differences = None
        if piece.residual is not None:
            number = RESIDUALS[piece.residual.width]
            start = taken[number]
            taken[number] += len(actual)
            differences = found[number][start : start + len(actual)]
        elif fills(piece):
            predict_to(piece, item.bases, literals, actual)
            continue
        yield Task(actual, source_of(piece, item.bases, literals), piece.residual, differences)
    if at < len(out):
        yield Task(out[at:], Source([literals[literal : literal + len(out) - at]]), None)
