"""The values of which a delta consists: pieces, their inputs, the steps of their programs, their residuals."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

LITERALS = 0xFFFF
"""As the base of an extent: the literal bytes of the delta itself."""

SAME = 1
CAST = 2
TRANSPOSE = 3
QUANTISE = 4
COMBINE = 5
GGUF = 6
LORA = 7
"""The numbers of the operations."""


class Extent(NamedTuple):
    """Bytes [`begin`, `end`) of base number `base` of the frame, or of the frame's LITERALS."""

    base: int
    begin: int
    end: int


class Step(NamedTuple):
    """One operation of a program. `operands` are numbers of values: first the piece's inputs, then the results of steps."""

    operation: int
    version: int
    operands: tuple[int, ...]
    parameters: bytes = b""


class Order(IntEnum):
    """In which order the bit patterns of elements are numbers, so that like values have small differences."""

    INTEGER = 1
    """As integers, signed or not: differences wrap around."""
    FLOAT = 2
    """Sign and magnitude, as all floats are."""


class Residual(NamedTuple):
    """How the differences between actual and predicted elements of `width` bytes (1, 2, 4 or 8) are stored."""

    order: Order
    width: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The prediction for bytes [`begin`, `end`) of the output: the last step's result.

    An input is the bytes of its extents, one after the other. `residual` is None where the prediction is exact.
    """

    begin: int
    end: int
    inputs: tuple[tuple[Extent, ...], ...]
    steps: tuple[Step, ...]
    residual: Residual | None = None


def same(begin: int, extents: Sequence[Extent], residual: Residual | None = None) -> Piece:
    """Return the piece that predicts from `begin` on what these extents hold."""
    size = sum(extent.end - extent.begin for extent in extents)
    return Piece(begin, begin + size, (tuple(extents),), (Step(SAME, 1, (0,)),), residual)
