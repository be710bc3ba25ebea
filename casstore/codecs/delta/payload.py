"""The payload of a delta: bytes to streams and pieces, and back. format/README.md gives every byte.

In short: a header, a table of streams, their bodies. The directory, which is the first stream, lists the pieces; another one has
the literal bytes, and one for each width of elements has the residuals of the pieces of that width.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from casstore.codecs.delta.piece import Extent, Order, Piece, Residual, Step
from casstore.codecs.encoding import Encoding
from casstore.errors import FormatError, UnsupportedVersion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

VERSION = 1
DIRECTORY, LITERAL = 0, 1
RESIDUALS = {1: 2, 2: 3, 4: 4, 8: 5}
"""The stream with the residuals of elements of a width in bytes."""

MAX_PLAIN = 1 << 20
"""Limit of what a delta decodes to, and of each stream, in bytes."""

MAX_PIECES = 4096
MAX_STEPS = 16
MAX_EXTENTS = 65_536
"""Limits of the pieces of a delta, of the steps of a piece, and of the extents of a delta."""

_SHORT = 512
"""Bytes of a directory that may be remembered."""

_HEADER = struct.Struct("<BBHI")
_STREAM = struct.Struct("<BBHII")
_PIECE = struct.Struct("<IIBBBB")
_COUNT = struct.Struct("<H")
_EXTENT = struct.Struct("<HHII")
_STEP = struct.Struct("<HBBH")


class Stream(NamedTuple):
    """One stream: its number, how it is encoded (raw, zstd or planes), its plain bytes, and its body."""

    number: int
    encoding: int
    plain: int
    body: memoryview


class Head(NamedTuple):
    """The parts of a payload: how many pieces there are, and the streams by number."""

    pieces: int
    streams: dict[int, Stream]

    def plain(self, number: int) -> int:
        """Return the plain bytes of a stream; 0 for one that is not there."""
        return self.streams[number].plain if number in self.streams else 0


def write_head(pieces: int, streams: Sequence[Stream]) -> bytes:
    """Return header and table; the bodies of the streams follow them."""
    table = [_STREAM.pack(item.number, item.encoding, 0, item.plain, len(item.body)) for item in streams]
    return _HEADER.pack(VERSION, len(streams), pieces, 0) + b"".join(table)


def read_head(payload: memoryview) -> Head:
    """Read header and table; raise FormatError unless the bodies of the streams are exactly what follows."""
    if len(payload) < _HEADER.size:
        raise FormatError(f"A delta of {len(payload)} bytes is shorter than its header.")
    version, count, pieces, reserved = _HEADER.unpack_from(payload)
    if version != VERSION or reserved:
        raise UnsupportedVersion(
            f"A delta has version {version}: a newer casstore wrote it. Upgrade to read it."
        )
    at = _HEADER.size + _STREAM.size * count
    if len(payload) < at:
        raise FormatError(f"A delta ends inside its table of {count} streams.")
    streams: dict[int, Stream] = {}
    last = -1
    for number, encoding, spare, plain, stored in _STREAM.iter_unpack(payload[_HEADER.size : at]):
        if number > max(RESIDUALS.values()) or encoding > Encoding.PLANES or spare:
            raise UnsupportedVersion(
                f"A delta has stream {number} in encoding {encoding}: a newer casstore wrote it. Upgrade to read it."
            )
        if number <= last or not 0 < plain <= MAX_PLAIN or stored > len(payload) - at:
            raise FormatError(
                f"Stream {number} of a delta is out of order, or its size is beyond the limits."
            )
        streams[number] = Stream(number, encoding, plain, payload[at : at + stored])
        last, at = number, at + stored
    if at != len(payload) or DIRECTORY not in streams:
        raise FormatError("A delta has no directory, or bytes after its last stream.")
    return Head(pieces, streams)


def write_directory(pieces: Sequence[Piece]) -> bytes:
    """Return the directory of these pieces."""
    parts = []
    for piece in pieces:
        order, width = piece.residual or (0, 0)
        head = piece.begin, piece.end, order, width, len(piece.inputs), len(piece.steps)
        parts.append(_PIECE.pack(*head))
        for extents in piece.inputs:
            parts.append(_COUNT.pack(len(extents)))
            parts += [_EXTENT.pack(base, 0, begin, end) for base, begin, end in extents]
        for step in piece.steps:
            parts.append(
                _STEP.pack(step.operation, step.version, len(step.operands), len(step.parameters))
                + bytes(step.operands)
                + step.parameters
            )
    return b"".join(parts)


def read_pieces(data: memoryview, count: int) -> Sequence[Piece]:
    """Return what `read_directory` does, which nobody may change: most deltas of a tensor have the same directory."""
    return (_read_short if len(data) <= _SHORT else read_directory)(bytes(data), count)


def read_directory(data: Buffer, count: int) -> list[Piece]:
    """Read a directory of so many pieces; raise FormatError unless that is exactly what it holds."""
    if not 0 < count <= MAX_PIECES:
        raise FormatError(f"A delta has {count} pieces.")
    data = memoryview(data)
    pieces: list[Piece] = []
    at = extents = 0
    try:
        for _ in range(count):
            begin, end, order, width, inputs, steps = _PIECE.unpack_from(data, at)
            at += _PIECE.size
            if steps > MAX_STEPS:
                raise FormatError(f"A piece of a delta has {steps} steps.")
            values = []
            for _ in range(inputs):
                (parts,) = _COUNT.unpack_from(data, at)
                extents += parts
                start, at = at + _COUNT.size, at + _COUNT.size + _EXTENT.size * parts
                if parts == 0 or extents > MAX_EXTENTS or at > len(data):
                    raise FormatError(f"An input of a delta has {parts} extents.")
                values.append(tuple(_read_extents(data[start:at])))
            program = []
            for _ in range(steps):
                operation, version, operands, parameters = _STEP.unpack_from(data, at)
                middle = at + _STEP.size + operands
                program.append(
                    Step(
                        operation,
                        version,
                        tuple(data[at + _STEP.size : middle]),
                        bytes(data[middle : middle + parameters]),
                    )
                )
                at = middle + parameters
            pieces.append(Piece(begin, end, tuple(values), tuple(program), _read_residual(order, width)))
    except struct.error as error:
        # Invariant 4: a directory that ends early is damage.
        raise FormatError("A delta's directory ends inside a piece.") from error
    if at != len(data):
        raise FormatError("A delta's directory does not end with its last piece.")
    return pieces


_read_short = lru_cache(maxsize=64)(read_directory)


def _read_extents(data: memoryview) -> list[Extent]:
    extents = []
    for base, spare, begin, end in _EXTENT.iter_unpack(data):
        if spare:
            raise UnsupportedVersion("A delta has an extent of a newer casstore. Upgrade to read it.")
        extents.append(Extent(base, begin, end))
    return extents


def _read_residual(order: int, width: int) -> Residual | None:
    if order == width == 0:
        return None
    if order > Order.FLOAT:
        raise UnsupportedVersion(
            f"A delta has a residual in order {order}: a newer casstore wrote it. Upgrade to read it."
        )
    if order == 0 or width not in RESIDUALS:
        raise FormatError(f"A delta has a residual of order {order} and width {width}.")
    return Residual(Order(order), width)


def check_order(pieces: Sequence[Piece], raw: int) -> int:
    """Check that pieces lie in order in `raw` bytes, in whole elements, or raise FormatError; return what they leave out."""
    if not 0 < raw <= MAX_PLAIN:
        raise FormatError(f"A delta is of {raw} bytes.")
    at, left = 0, raw
    for piece in pieces:
        if not at <= piece.begin < piece.end <= raw:
            raise FormatError(
                f"Bytes {piece.begin} to {piece.end} of a delta of {raw} bytes are out of order."
            )
        if piece.residual is not None and (piece.end - piece.begin) % piece.residual.width:
            raise FormatError(
                f"A residual of width {piece.residual.width} is for {piece.end - piece.begin} bytes."
            )
        at = piece.end
        left -= piece.end - piece.begin
    return left


def check_streams(pieces: Sequence[Piece], head: Head, left: int) -> None:
    """Check that the streams have the `left` literal bytes and just the residuals that pieces need; raise FormatError."""
    if head.plain(LITERAL) < left:
        raise FormatError(f"A delta has {head.plain(LITERAL)} literal bytes for {left}.")
    sizes = dict.fromkeys(RESIDUALS, 0)
    for piece in pieces:
        if piece.residual is not None:
            sizes[piece.residual.width] += piece.end - piece.begin
    if any(head.plain(RESIDUALS[width]) != size for width, size in sizes.items()):
        raise FormatError("The residuals of a delta do not have the sizes of their pieces.")
