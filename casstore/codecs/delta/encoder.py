"""Plain bytes to a delta, given the predictions."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.batch import encode_each
from casstore.codecs.delta import residual
from casstore.codecs.delta.payload import (
    DIRECTORY,
    LITERAL,
    RESIDUALS,
    Stream,
    check_order,
    check_streams,
    read_directory,
    read_head,
    write_directory,
    write_head,
)
from casstore.codecs.delta.piece import LITERALS
from casstore.codecs.delta.predict import check_programs, predict, strides
from casstore.codecs.encoding import ElementHint
from casstore.codecs.kernels import equal
from casstore.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from casstore.codecs.delta.piece import Piece

    U8 = NDArray[np.uint8]


def encode_delta(
    plain: Buffer, bases: Sequence[Buffer], pieces: Sequence[Piece], *, side: bytes = b""
) -> bytes:
    """Return the payload of `plain`, given predictions for parts of it; the rest becomes literal bytes.

    `bases` are plain bytes. `side` are bytes beyond the literals for inputs to name: they follow the literals, in `LITERALS`
    too. A piece whose prediction proves exact gets no residual. Raises ValueError for one that is not and names
    none, FormatError for pieces that a reader would refuse. The payload may be longer than `plain`.
    """
    data: U8 = np.frombuffer(plain, np.uint8)
    left = check_order(pieces, len(data))
    buffers: list[U8] = [np.frombuffer(base, np.uint8) for base in bases]
    gaps = zip(
        [0, *(piece.end for piece in pieces)], [*(piece.begin for piece in pieces), len(data)], strict=True
    )
    literals: U8 = np.concatenate([*(data[begin:end] for begin, end in gaps), np.frombuffer(side, np.uint8)])
    check_programs(pieces, [len(base) for base in buffers], len(literals))
    kept: list[Piece] = []
    residuals: dict[int, list[U8]] = {}
    for piece in pieces:
        actual, predicted = data[piece.begin : piece.end], predict(piece, buffers, literals)
        if equal(actual.data, predicted.data):
            kept.append(replace(piece, residual=None))
            continue
        if piece.residual is None:
            raise ValueError(
                f"The prediction for bytes {piece.begin} to {piece.end} is not exact, and has no residual."
            )
        differences = np.empty(len(actual), np.uint8)
        residual.subtract(actual, predicted, piece.residual, differences)
        residuals.setdefault(piece.residual.width, []).append(differences)
        kept.append(piece)
    streams = [_stream(DIRECTORY, np.frombuffer(_directory(kept), np.uint8), None)]
    if literals.size:
        streams.append(_stream(LITERAL, literals, _literal_hint(kept)))
    for width, number in RESIDUALS.items():
        if width in residuals:
            streams.append(_stream(number, np.concatenate(residuals[width]), _residual_hint(kept, width)))
    payload = b"".join([write_head(len(kept), streams), *(stream.body for stream in streams)])
    check_streams(kept, read_head(memoryview(payload)), left)
    return payload


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


def _directory(pieces: Sequence[Piece]) -> bytes:
    """Return the directory, after checking that a reader takes it (invariant 14)."""
    try:
        directory = write_directory(pieces)
    except struct.error as error:
        raise FormatError("A delta has more of something than its directory can count.") from error
    read_directory(memoryview(directory), len(pieces))
    return directory


def _stream(number: int, plain: U8, hint: ElementHint | None) -> Stream:
    (encoded,) = encode_each(plain.data, [(0, len(plain))], [hint])
    return Stream(number, int(encoded.encoding), len(plain), encoded.payload)
