"""One frame of a pack: a 52-byte header, the ids of its bases, the payload."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.digest import DIGEST_SIZE
from casstore.errors import FormatError
from casstore.format.rows import MAX_BASES, MAX_RANK, Kind, max_plain

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"CFRM"
_HEADER = struct.Struct("<4sBBBBII32sI")
HEADER_SIZE = _HEADER.size

MAX_HEADER_SIZE = HEADER_SIZE + DIGEST_SIZE * MAX_BASES
"""Limit in bytes of a header with its list of bases."""

_KINDS = frozenset(int(kind) for kind in Kind)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header before a payload: `raw` and `stored` are lengths in bytes, `bases` object ids."""

    object_id: bytes
    kind: int
    encoding: int
    raw: int
    stored: int
    rank: int = 0
    bases: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        """Bytes from the frame's start to its payload."""
        return HEADER_SIZE + DIGEST_SIZE * len(self.bases)


def header_size(bases: int) -> int:
    """Return the bytes that come before the payload of a frame with that many bases."""
    return HEADER_SIZE + DIGEST_SIZE * bases


def encode_header(header: FrameHeader, *, key: str = "An unfinished pack") -> bytes:
    """Return the bytes that come before the payload; raise FormatError, naming `key`, for a header that readers refuse."""
    _check_limits(header.kind, header.rank, len(header.bases), header.raw, header.stored, key=key)
    bases = b"".join(header.bases)
    head = _pack_fields(header, 0)
    return _pack_fields(header, zlib.crc32(bases, zlib.crc32(head))) + bases


def decode_header(data: Buffer, *, key: str) -> FrameHeader:
    """Read a header from the start of `data`; raise FormatError if it is torn or absurd."""
    view = memoryview(data)
    if len(view) < HEADER_SIZE:
        raise FormatError(f"A frame of {key} is truncated.")
    magic, kind, encoding, rank, count, raw, stored, object_id, check = _HEADER.unpack_from(view)
    size = header_size(count)
    if magic != MAGIC:
        raise FormatError(f"{key} holds no frame where one should start.")
    _check_limits(kind, rank, count, raw, stored, key=key)
    if len(view) < size:
        raise FormatError(f"A frame of {key} is truncated.")
    bases = bytes(view[HEADER_SIZE:size])
    header = FrameHeader(
        object_id=object_id,
        kind=kind,
        encoding=encoding,
        raw=raw,
        stored=stored,
        rank=rank,
        bases=tuple(bases[at : at + DIGEST_SIZE] for at in range(0, len(bases), DIGEST_SIZE)),
    )
    if zlib.crc32(bases, zlib.crc32(_pack_fields(header, 0))) != check:
        raise FormatError(f"A frame header of {key} fails its checksum.")
    return header


def _check_limits(kind: int, rank: int, bases: int, raw: int, stored: int, *, key: str) -> None:
    """Raise FormatError unless a frame is valid; writers and readers both check here (invariant 14)."""
    if kind not in _KINDS or rank > MAX_RANK or max(raw, stored) > max_plain(kind):
        raise FormatError(
            f"{key} holds a frame that cannot exist: its kind, rank or size is beyond the limits."
        )
    if bases > MAX_BASES or (bases == 0) != (rank == 0):
        raise FormatError(f"{key} holds a frame with an impossible list of bases.")


def _pack_fields(header: FrameHeader, check: int) -> bytes:
    return _HEADER.pack(
        MAGIC,
        header.kind,
        header.encoding,
        header.rank,
        len(header.bases),
        header.raw,
        header.stored,
        header.object_id,
        check,
    )
