"""A tensor of a file that is being added, of which a few elements are looked at."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from casstore.store.adding.bases.sketch import SIZE, WIDTHS, elements_at, positions, transposed
from casstore.store.adding.sources import read_range

if TYPE_CHECKING:
    from casstore.format.layout import Span
    from casstore.store.adding.bases.sketch import Positions, Words
    from casstore.tensors import TensorSpan

MIN_SIZE = 64 << 10
"""Bytes from which a tensor has a sketch; smaller ones follow from their names."""


class TargetTensor:
    """The elements of one tensor: from memory where all of it is at hand, else from its file.

    `data` are its bytes, or None; they are only used while the caller's buffer holds them.
    """

    def __init__(self, span: TensorSpan, data: memoryview | None, descriptor: int, shown: str) -> None:
        self.span = span
        self.elements = prod(span.shape)
        self.width = WIDTHS[span.dtype]
        self._data = data
        self._descriptor = descriptor
        self._shown = shown

    @cached_property
    def sketch(self) -> Words:
        """Its elements at the positions of a sketch."""
        return self.at(positions(self.elements))

    def views(self) -> list[Words]:
        """Return the sketches by which it may be found: its own, and that of its transpose."""
        return [self.sketch, self.transpose] if self.is_matrix else [self.sketch]

    @property
    def is_matrix(self) -> bool:
        """Whether it differs from its transpose."""
        return len(self.span.shape) == 2 and 1 not in self.span.shape

    @cached_property
    def transpose(self) -> Words:
        """The sketch of its transpose."""
        rows, columns = self.span.shape
        return self.at(transposed(positions(self.elements), columns, rows))

    def at(self, places: Positions) -> Words:
        """Return the elements at these positions."""
        if self._data is not None:
            return elements_at(self._data, places, self.width)
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        parts = []
        for run in np.split(places, breaks):
            begin, length = self.span.begin + int(run[0]) * self.width, len(run) * self.width
            part = read_range(self._descriptor, begin, length, self._shown)
            # Of a file that became shorter: the add ends as soon as that is noticed.
            parts.append(part.ljust(length, b"\0"))
        return np.frombuffer(b"".join(parts), f"<u{self.width}")


def has_sketch(span: Span | TensorSpan) -> bool:
    """Say whether a tensor has a sketch."""
    width = WIDTHS.get(span.dtype)
    return width is not None and span.end - span.begin >= max(MIN_SIZE, SIZE * width)
