"""A tensor of a file that is being added, of which a few elements are looked at."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from casstore.store.adding.bases.rules.quantising import find_scales
from casstore.store.adding.bases.rules.rotary import orders, source_row
from casstore.store.adding.bases.tensors.names import is_rotated
from casstore.store.adding.bases.tensors.sketch import (
    WIDTHS,
    elements_at,
    positions,
    signature,
    signed_places,
    transposed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from casstore.format.layout import Span
    from casstore.store.adding.bases.rules.quantising import Scales
    from casstore.store.adding.bases.tensors.sketch import Positions, Words
    from casstore.tensors import TensorSpan

    Gather = Callable[[NDArray[np.int64]], Buffer]
    """What reads ranges of a file, each a first byte and a length."""

MIN_SIZE = 64 << 10
"""Bytes from which a tensor has a sketch; smaller ones follow from their names."""

_AROUND = 4
"""How far the median of a sketch may be from a zero point."""


class TargetTensor:
    """The elements of one tensor: from memory where all of it is at hand, else from its file. For one thread.

    `data` are its bytes, or None; `read` returns bytes of its file, by offset and length, fewer at the end, and `gather` many
    such ranges one after the other, with zeros for what is missing. `read_small` returns another tensor of the file, a small
    one, by its name and type.
    """

    def __init__(
        self,
        span: TensorSpan,
        data: memoryview | None,
        *,
        read: Callable[[int, int], bytes],
        read_small: Callable[[str, str], bytes | None],
        gather: Gather | None = None,
    ) -> None:
        self.span = span
        self.elements = prod(span.shape)
        self.width = WIDTHS[span.dtype]
        self._data = data
        self._read = read
        self._read_small = read_small
        self._gather = gather or gather_by(read)

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

    def signatures(self) -> Iterator[int]:
        """Yield the signatures under which it may be found."""
        places = positions(self.elements)
        signed = signed_places(len(places))
        views = [places, self.transposed_places] if self.is_matrix else [places]
        yield from (signature(self.at(view[signed])) for view in views)
        yield from map(signature, self.centred())

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
        edges = np.concatenate(([0], np.flatnonzero(np.diff(places) != 1) + 1, [len(places)]))
        begins = self.span.begin + places[edges[:-1]] * self.width
        ranges = np.stack((begins, np.diff(edges) * self.width), axis=1)
        return np.frombuffer(self._gather(ranges), f"<u{self.width}")


def gather_by(read: Callable[[int, int], bytes]) -> Gather:
    """Return what reads many ranges by reading one after the other."""
    # Zeros for what a file lacks that became shorter: the add ends as soon as that is noticed.
    return lambda ranges: b"".join(
        read(begin, length).ljust(length, b"\0") for begin, length in ranges.tolist()
    )


def has_sketch(span: Span | TensorSpan) -> bool:
    """Say whether a tensor has a sketch."""
    # Of 8 bytes at most, SIZE elements are no more than MIN_SIZE.
    return span.end - span.begin >= MIN_SIZE and span.dtype in WIDTHS
