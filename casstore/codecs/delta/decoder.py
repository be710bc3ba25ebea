"""Deltas to plain bytes: many at a time, so that their streams are decoded in few native calls."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.batch import decode_batch
from casstore.codecs.delta import residual
from casstore.codecs.delta.payload import (
    DIRECTORY,
    LITERAL,
    RESIDUALS,
    check_order,
    check_streams,
    read_directory,
    read_head,
)
from casstore.codecs.delta.predict import check_programs, predict, predict_to
from casstore.codecs.encoding import Encoding
from casstore.codecs.regroup import scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    pieces: list[Piece]
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
    pieces = read_directory(_directory(head), head.pieces)
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
    at = 0
    for item, (begin, end) in zip(parsed, pairwise([0, *accumulate(lengths)]), strict=True):
        _decode(item, plain[at : at + item.size], out[begin:end])
        at += item.size


def _decode(item: _Parsed, plain: U8, out: U8) -> None:
    """Fill `out` with pieces and, between them, literals; `plain` is what the streams hold, one after the other."""
    ends = [0, *accumulate(stream.plain for stream in item.streams)]
    found = {
        stream.number: plain[begin:end]
        for stream, (begin, end) in zip(item.streams, pairwise(ends), strict=True)
    }
    literals = found.get(LITERAL, plain[:0])
    taken = dict.fromkeys(found, 0)
    at = literal = 0
    for piece in item.pieces:
        gap = piece.begin - at
        out[at : piece.begin] = literals[literal : literal + gap]
        at, literal = piece.end, literal + gap
        actual = out[piece.begin : piece.end]
        if piece.residual is None:
            predict_to(piece, item.bases, literals, actual)
            continue
        predicted = predict(piece, item.bases, literals)
        number = RESIDUALS[piece.residual.width]
        start = taken[number]
        taken[number] += len(actual)
        residual.add(found[number][start : start + len(actual)], predicted, piece.residual, actual)
    out[at:] = literals[literal : literal + len(out) - at]
