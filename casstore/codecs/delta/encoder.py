"""Plain bytes to a delta, given the predictions."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.batch import decodes_to, encode_each
from casstore.codecs.delta.payload import (
    DIRECTORY,
    LITERAL,
    RESIDUALS,
    Stream,
    check_order,
    check_streams,
    read_head,
    read_pieces,
    write_directory,
    write_head,
)
from casstore.codecs.delta.piece import LITERALS
from casstore.codecs.delta.predict import check_programs, source_of, strides
from casstore.codecs.delta.predicted import Task, subtract_each
from casstore.codecs.delta.residual import Outcome
from casstore.codecs.encoding import ElementHint, Encoding
from casstore.codecs.kernels import equal
from casstore.codecs.regroup import scratch
from casstore.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from casstore.codecs.delta.piece import Piece
    from casstore.codecs.encoding import Encoded

    U8 = NDArray[np.uint8]

_TINY = 64
"""Bytes from which a stream without residuals is worth compressing."""


class DeltaInput(NamedTuple):
    """Plain bytes, the plain bytes of bases, and predictions for parts of the first; the rest becomes literal bytes.

    `side` are bytes beyond the literals for inputs to name: they follow the literals, in `LITERALS` too.
    """

    plain: Buffer
    bases: Sequence[Buffer]
    pieces: Sequence[Piece]
    side: bytes = b""


class EncodedDelta(NamedTuple):
    """A payload, the end of `room`, which is the caller's from now on.

    `is_proved` says that it was shown to decode to its input, so that decoding it would do the same again.
    """

    payload: memoryview
    is_proved: bool
    room: memoryview


class _Checked(NamedTuple):
    """An input that was checked: its bytes, those of bases and literals, how many no piece has, and the order of residuals."""

    data: U8
    bases: list[U8]
    literals: U8
    left: int
    pieces: Sequence[Piece]
    order: list[int]


class _Parts(NamedTuple):
    """What becomes of one input: pieces, literals, the sizes of its residuals by width, and how many bytes no piece has.

    `comes_back` says that predictions and residuals together make the input again.
    """

    pieces: list[Piece]
    literals: U8
    sizes: dict[int, int]
    left: int
    comes_back: bool


def encode_delta(
    plain: Buffer, bases: Sequence[Buffer], pieces: Sequence[Piece], *, side: bytes = b""
) -> bytes:
    """Return the payload of `plain`, given predictions for parts of it (`encode_deltas`)."""
    return bytes(encode_deltas([DeltaInput(plain, bases, pieces, side)])[0].payload)


def encode_deltas(inputs: Sequence[DeltaInput], *, leads: Sequence[int] | None = None) -> list[EncodedDelta]:
    """Return the payload of each input. Those of one tensor are best given together, a few megabytes of them.

    A piece whose prediction proves exact gets no residual. Raises ValueError for one that is not and names
    none, FormatError for pieces that a reader would refuse. A payload may be longer than its plain bytes. With `leads`, so
    many bytes are left for the caller before each.
    """
    room = scratch("residuals", sum(memoryview(item.plain).nbytes for item in inputs))
    checked = list(map(_check, inputs))
    outcomes = iter(subtract_each(_tasks(checked), room))
    parts = [_parts(item, outcomes) for item in checked]
    cuts: list[tuple[int, int]] = []
    hints: list[ElementHint | None] = []
    at = 0
    for part in parts:
        for width, size in sorted(part.sizes.items()):
            cuts.append((at, size))
            hints.append(_residual_hint(part.pieces, width))
            at += size
    # Adjoining residuals of one width are judged, taken apart and compressed together.
    out = scratch("encoded", at).data
    # All of them first: nothing else may be encoded in between.
    encoded = list(encode_each(room[:at].data, cuts, hints, out=out))
    streams = [(item.encoding, item.payload) for item in encoded]
    are_whole = decodes_to(streams, [size for _, size in cuts], room[:at].data)
    residuals = iter(encoded)
    return [
        _payload(item, residuals, lead, are_whole=are_whole)
        for item, lead in zip(parts, leads or [0] * len(parts), strict=True)
    ]


def _check(item: DeltaInput) -> _Checked:
    data: U8 = np.frombuffer(item.plain, np.uint8)
    left = check_order(item.pieces, len(data))
    bases: list[U8] = [np.frombuffer(base, np.uint8) for base in item.bases]
    literals = _literals(item, data) if left or item.side else data[:0]
    check_programs(item.pieces, [len(base) for base in bases], len(literals))
    # Residuals of small elements come first.
    order = sorted(range(len(item.pieces)), key=lambda number: _width(item.pieces[number]))
    return _Checked(data, bases, literals, left, item.pieces, order)


def _tasks(checked: Sequence[_Checked]) -> Iterator[Task]:
    """Yield all pieces of all inputs, in the order of their residuals."""
    for item in checked:
        for number in item.order:
            piece = item.pieces[number]
            source = source_of(piece, item.bases, item.literals)
            yield Task(item.data[piece.begin : piece.end], source, piece.residual)


def _parts(item: _Checked, outcomes: Iterator[Outcome]) -> _Parts:
    """Return what becomes of an input, of which the outcomes come next."""
    kept = list(item.pieces)
    sizes: dict[int, int] = {}
    comes_back = True
    for number in item.order:
        piece, outcome = kept[number], next(outcomes)
        if outcome is Outcome.EXACT:
            kept[number] = piece if piece.residual is None else replace(piece, residual=None)
            continue
        if piece.residual is None:
            raise ValueError(
                f"The prediction for bytes {piece.begin} to {piece.end} is not exact, and has no residual."
            )
        comes_back = comes_back and outcome is Outcome.RESTORED
        width = piece.residual.width
        sizes[width] = sizes.get(width, 0) + piece.end - piece.begin
    return _Parts(kept, item.literals, sizes, item.left, comes_back)


def _literals(item: DeltaInput, data: U8) -> U8:
    """Return the bytes that no piece predicts, and the side after them."""
    ends = [0, *(piece.end for piece in item.pieces)]
    begins = [*(piece.begin for piece in item.pieces), len(data)]
    gaps = [data[begin:end] for begin, end in zip(ends, begins, strict=True)]
    found: U8 = np.concatenate([*gaps, np.frombuffer(item.side, np.uint8)])
    return found


def _width(piece: Piece) -> int:
    return 0 if piece.residual is None else piece.residual.width


def _payload(parts: _Parts, residuals: Iterator[Encoded], lead: int, *, are_whole: bool) -> EncodedDelta:
    """Return the payload of an input, of which the residuals come next; `are_whole` says that those decode to what they were."""
    directory, parsed = _directory(parts.pieces)
    plains: dict[int, U8] = {DIRECTORY: np.frombuffer(directory, np.uint8)}
    if parts.literals.size:
        plains[LITERAL] = parts.literals
    hints = {DIRECTORY: None, LITERAL: _literal_hint(parts.pieces)}
    streams = [_stream(number, plain, hints[number]) for number, plain in plains.items()]
    for width, size in sorted(parts.sizes.items()):
        encoded = next(residuals)
        streams.append(Stream(RESIDUALS[width], int(encoded.encoding), size, encoded.payload))
    head_bytes = write_head(len(parts.pieces), streams)
    room = memoryview(bytearray().join([bytes(lead), head_bytes, *(stream.body for stream in streams)]))
    payload = room[lead:]
    head = read_head(payload)
    check_streams(parts.pieces, head, parts.left)
    # A decoder makes the input out of predictions, residuals and literals. These predictions were made and compared; what
    # is left to show is that a decoder finds the same pieces, literals and residuals in the payload.
    is_proved = (
        parts.comes_back
        and are_whole
        and parsed == parts.pieces
        and head.pieces == len(parts.pieces)
        and list(map(_place, head.streams.values())) == list(map(_place, streams))
        and all(_holds(head.streams[number], plain) for number, plain in plains.items())
    )
    return EncodedDelta(payload, is_proved, room)


def _place(stream: Stream) -> tuple[int, ...]:
    """Return all of a stream but its body: bodies of these lengths, one after the other, are where they were put."""
    return stream.number, stream.encoding, stream.plain, len(stream.body)


def _holds(stream: Stream, plain: U8) -> bool:
    """Say whether a stream decodes to these bytes."""
    if stream.encoding == Encoding.RAW:
        return equal(stream.body, plain.data)
    return decodes_to([(stream.encoding, stream.body)], [len(plain)], plain)


def _literal_hint(pieces: Sequence[Piece]) -> ElementHint | None:
    """Return what is known about the first literals that a piece takes as an operand."""
    for piece in pieces:
        for step in piece.steps:
            for at, stride in zip(step.operands, strides(step)[1:], strict=False):
                if at < len(piece.inputs) and piece.inputs[at][0].base == LITERALS:
                    return ElementHint(stride, piece.inputs[at][0].begin % stride)
    return None


def _residual_hint(pieces: Sequence[Piece], width: int) -> ElementHint:
    """Return the stride of the residuals of elements of a width: their own, or that of blocks if all are such."""
    found = {
        strides(piece.steps[-1])[:1] for piece in pieces if piece.residual and piece.residual.width == width
    }
    (stride,) = found.pop() or (width,)
    return ElementHint(width if found else stride)


def _directory(pieces: Sequence[Piece]) -> tuple[bytes, Sequence[Piece]]:
    """Return the directory, after checking that a reader takes it (invariant 14), and the pieces that a reader finds."""
    try:
        directory = write_directory(pieces)
    except struct.error as error:
        raise FormatError("A delta has more of something than its directory can count.") from error
    return directory, read_pieces(memoryview(directory), len(pieces))


def _stream(number: int, plain: U8, hint: ElementHint | None) -> Stream:
    if len(plain) < _TINY:
        return Stream(number, int(Encoding.RAW), len(plain), plain.data)
    (encoded,) = encode_each(plain.data, [(0, len(plain))], [hint])
    return Stream(number, int(encoded.encoding), len(plain), encoded.payload)
