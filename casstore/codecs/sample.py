"""A few KiB of a stretch that stand for all of it when its encoding is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    U8 = NDArray[np.uint8]

__all__ = ["Sample"]

# A sample consists of pieces of 1 KiB; half as many for a single chunk.
_PIECE = 1 << 10
_PIECES = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """Whole elements spread evenly over the bytes: `pieces` of `rows` elements each, `step` bytes from one to the next.

    Elements are `stride` bytes; the first one starts at `phase` of `stretch`, which is borrowed.
    """

    stretch: U8
    stride: int
    phase: int
    step: int
    pieces: int
    rows: int

    @classmethod
    def of(cls, stretch: U8, stride: int, phase: int) -> Self:
        """Choose the elements; `stretch` holds one at least."""
        elements = (len(stretch) - phase) // stride
        pieces = _PIECES if len(stretch) > 1 << 20 else _PIECES // 2
        rows = max(_PIECE // stride, 1)
        if elements <= rows * pieces:
            return cls(stretch, stride, phase, 0, 1, elements)
        return cls(stretch, stride, phase, (elements - rows) // (pieces - 1) * stride, pieces, rows)

    @property
    def count(self) -> int:
        """The number of elements."""
        return self.pieces * self.rows

    def elements(self) -> U8:
        """Return them as rows of `stride` bytes."""
        shape = (self.pieces, self.rows * self.stride)
        spread: U8 = np.ndarray(shape, np.uint8, self.stretch, self.phase, (self.step, 1))
        return spread.reshape(-1, self.stride)

    def column(self, start: int, width: int) -> U8:
        """Return `width` adjacent bytes of each element, one element after the other."""
        return np.ascontiguousarray(self.elements()[:, start : start + width]).reshape(-1)

    def moved_column(self, at: int) -> U8:
        """Return one of the two columns of elements of 2 bytes whose sign is moved (see regroup.py): the lower one is 0."""
        elements = self.elements()
        below, top = elements[:, 0], elements[:, 1]
        if at:
            return np.bitwise_or(np.left_shift(top, 1), np.right_shift(below, 7))
        return np.bitwise_or(np.bitwise_and(below, 0x7F), np.bitwise_and(top, 0x80))
