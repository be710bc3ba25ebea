"""One frame of a pack: a 52-byte header, its bases, the payload."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.errors import FormatError
from casstore.format.rows import MAX_BASES, MAX_RANK, Kind, max_plain

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

MAGIC = b"CFRM"
_HEADER = struct.Struct("<4sBBBBII32sI")
_CHECK = struct.Struct("<I")
_COUNT = struct.Struct("<H")
HEADER_SIZE = _HEADER.size

MAX_HEADER_SIZE = HEADER_SIZE + _COUNT.size + DIGEST_SIZE * MAX_BASES
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
        return header_size(len(self.bases))


def header_size(bases: int) -> int:
    """Return the bytes that come before the payload of a frame with that many bases."""
    return HEADER_SIZE + (_COUNT.size + DIGEST_SIZE * bases if bases else 0)


def header_sizes(bases: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return what `header_size` does for each of these numbers of bases."""
    counts = bases.astype(np.int64)
    sizes: NDArray[np.int64] = HEADER_SIZE + np.where(counts > 0, _COUNT.size + DIGEST_SIZE * counts, 0)
    return sizes


def encode_header(header: FrameHeader, *, key: str = "An unfinished pack") -> bytes:
    """Return the bytes that come before the payload; raise FormatError, naming `key`, for a header that readers refuse."""
    return encode_fields(
        header.object_id,
        header.kind,
        header.encoding,
        header.raw,
        header.stored,
        rank=header.rank,
        bases=header.bases,
        key=key,
    )


def encode_fields(
    object_id: bytes,
    kind: int,
    encoding: int,
    raw: int,
    stored: int,
    *,
    rank: int,
    bases: tuple[bytes, ...],
    key: str,
) -> bytes:
    """Return what `encode_header` does for a header with these fields."""
    _check_limits(kind, rank, len(bases), raw, stored, key=key)
    tail = _COUNT.pack(len(bases)) + b"".join(bases) if bases else b""
    head = _HEADER.pack(MAGIC, kind, encoding, rank, 0, raw, stored, object_id, 0)
    check = zlib.crc32(tail, zlib.crc32(head))
    return head[: -_CHECK.size] + _CHECK.pack(check) + tail


def decode_header(data: Buffer, *, key: str) -> FrameHeader:
    """Read a header from the start of `data`; raise FormatError if it is torn or absurd."""
    view = memoryview(data)
    if len(view) < HEADER_SIZE:
        raise FormatError(f"A frame of {key} is truncated.")
    magic, kind, encoding, rank, reserved, raw, stored, object_id, check = _HEADER.unpack_from(view)
    if magic != MAGIC or reserved:
        raise FormatError(f"{key} holds no frame where one should start.")
    count = 0
    if rank:
        if len(view) < HEADER_SIZE + _COUNT.size:
            raise FormatError(f"A frame of {key} is truncated.")
        (count,) = _COUNT.unpack_from(view, HEADER_SIZE)
    _check_limits(kind, rank, count, raw, stored, key=key)
    size = header_size(count)
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
        bases=tuple(bases[at : at + DIGEST_SIZE] for at in range(_COUNT.size, len(bases), DIGEST_SIZE)),
    )
    unchecked = bytes(view[: HEADER_SIZE - _CHECK.size]) + bytes(_CHECK.size)
    if zlib.crc32(bases, zlib.crc32(unchecked)) != check:
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
