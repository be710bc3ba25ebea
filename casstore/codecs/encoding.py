"""The values that callers of the codecs use: encodings, hints and encoded chunks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["MAX_STRIDE", "ElementHint", "Encoded", "Encoding"]

MAX_STRIDE = 512


class Encoding(IntEnum):
    """How a chunk is stored; the numbers are part of the frame format."""

    RAW = 0
    ZSTD = 1
    PLANES = 2
    DELTA = 3


@dataclass(frozen=True, slots=True)
class ElementHint:
    """What a tensor span says about the elements of a chunk. A wrong hint costs ratio, never correctness.

    `width` is the size in bytes of an element (1, 2, 4, 8) or of a quantised block (up to 512); `phase` is the
    offset in the chunk at which the first whole element starts, less than `width`. Both are reduced to
    something usable when they are not.
    """

    width: int
    phase: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk's encoding and payload.

    `payload` is a contiguous view of bytes that belong to the batch: it stays valid when the block it was
    encoded from is overwritten, and keeps the whole batch's memory alive as long as it is referenced.
    """

    encoding: Encoding
    payload: memoryview
