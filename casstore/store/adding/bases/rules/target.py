"""A tensor of a file that is being added, of which a few elements are looked at."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from casstore.store.adding.bases.rules.quantising import find_scales
from casstore.store.adding.bases.rules.rotary import orders, source_row
from casstore.store.adding.bases.tensors.names import is_rotated
from casstore.store.adding.bases.tensors.sketch import SIZE, WIDTHS, elements_at, positions, transposed

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.format.layout import Span
    from casstore.store.adding.bases.rules.quantising import Scales
    from casstore.store.adding.bases.tensors.sketch import Positions, Words
    from casstore.tensors import TensorSpan

MIN_SIZE = 64 << 10
"""Bytes from which a tensor has a sketch; smaller ones follow from their names."""

_AROUND = 4
"""How far the median of a sketch may be from a zero point."""


class TargetTensor:
    """The elements of one tensor: from memory where all of it is at hand, else from its file. For one thread.

    `data` are its bytes, or None; `read` returns bytes of its file, by offset and length, fewer at the end. `read_small` returns
    another tensor of the file, a small one, by its name and type.
    """

    def __init__(
        self,
        span: TensorSpan,
        data: memoryview | None,
        *,
        read: Callable[[int, int], bytes],
        read_small: Callable[[str, str], bytes | None],
    ) -> None:
        self.span = span
        self.elements = prod(span.shape)
        self.width = WIDTHS[span.dtype]
        self._data = data
        self._read = read
        self._read_small = read_small

    @cached_property
    def sketch(self) -> Words:
        """Its elements at the positions of a sketch."""
        return self.at(positions(self.elements))

    def views(self) -> list[Words]:
        """Return the sketches by which it may be found: its own, and that of its transpose."""
        return [self.sketch, self.transpose] if self.is_matrix else [self.sketch]

    def centred(self) -> list[Words]:
        """Return the views of unsigned integers as distances from their zero point, which have the signs of the floats.

        Where nobody knows it, from all near the median: floats are positive about as often as negative.
        """
        known = self.scales if self.span.dtype == "U8" else None
        if known is None or (known.zeros and len(set(known.zeros)) > 1):
            return []
        middle = int(np.median(self.sketch))
        zeros = known.zeros[:1] if known.zeros else range(max(0, middle - _AROUND), middle + _AROUND)
        return [words - np.uint8(min(zero, 255)) for zero in zeros for words in self.views()]

    @cached_property
    def turned(self) -> list[Words]:
        """Its elements at the positions of a sketch of what it may have been before its rows were put in each of `orders`."""
        if not is_rotated(self.span.name) or len(self.span.shape) != 2:
            return []
        rows, columns = np.divmod(positions(self.elements), self.span.shape[1])
        return [
            self.at(source_row(rows, head, pairs=not pairs) * self.span.shape[1] + columns)
            for head, pairs in orders(self.span.shape)
        ]

    @property
    def is_matrix(self) -> bool:
        """Whether it differs from its transpose."""
        return len(self.span.shape) == 2 and 1 not in self.span.shape

    @cached_property
    def transpose(self) -> Words:
        """The sketch of its transpose."""
        return self.at(self.transposed_places)

    @property
    def transposed_places(self) -> Positions:
        """Where the elements of the sketch of its transpose are."""
        rows, columns = self.span.shape
        return transposed(positions(self.elements), columns, rows)

    @cached_property
    def scales(self) -> Scales | None:
        """What the file says of how it was quantised."""
        return find_scales(self.span.name, self.span.dtype, self._read_small)

    def part(self, begin: int, end: int) -> bytes:
        """Return some of its bytes, fewer if the file became shorter."""
        if self._data is not None:
            return bytes(self._data[begin:end])
        return self._read(self.span.begin + begin, end - begin)

    def at(self, places: Positions) -> Words:
        """Return the elements at these positions."""
        if self._data is not None:
            return elements_at(self._data, places, self.width)
        edges = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
        parts = []
        for first, (at, end) in zip(places[edges[:-1]].tolist(), pairwise(edges), strict=True):
            length = (end - at) * self.width
            part = self._read(self.span.begin + first * self.width, length)
            # Of a file that became shorter: the add ends as soon as that is noticed.
            parts.append(part.ljust(length, b"\0"))
        return np.frombuffer(b"".join(parts), f"<u{self.width}")


def has_sketch(span: Span | TensorSpan) -> bool:
    """Say whether a tensor has a sketch."""
    width = WIDTHS.get(span.dtype)
    return width is not None and span.end - span.begin >= max(MIN_SIZE, SIZE * width)
