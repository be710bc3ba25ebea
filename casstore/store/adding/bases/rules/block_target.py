"""A tensor of blocks that is being added, and the floats for which a few of its blocks stand, about."""

from __future__ import annotations

from functools import cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta import block_values
from casstore.codecs.delta.operations.gguf import BLOCKS
from casstore.store.adding.bases.rules.combining import floats
from casstore.store.adding.bases.rules.target import MIN_SIZE
from casstore.store.adding.bases.tensors.sketch import FLOATS, RUN, positions, signature, signed_places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from casstore.store.adding.bases.rules.target import Gather
    from casstore.store.adding.bases.tensors.sketch import Words
    from casstore.tensors import TensorSpan

    Floats = NDArray[np.float32]

_UNSURE = 6
"""Signs that are tried both ways, at most: of quants near zero nobody knows them."""

_SMALLEST = 4 << 10
"""Bytes of blocks that are worth looking for their floats."""

_ALIKE = 0.6
"""How far floats may be from those of blocks, as a share of their mean magnitude: strangers are 1.4 away, blocks of two bits 0.3."""


class BlockTarget:
    """The blocks of one tensor: `read` returns bytes of its file, `gather` many ranges, as for a TargetTensor. For one thread."""

    def __init__(self, span: TensorSpan, read: Callable[[int, int], bytes], *, gather: Gather) -> None:
        self.span = span
        self.elements = prod(span.shape)
        self.read = read
        self._gather = gather

    @property
    def is_large(self) -> bool:
        """Whether it has a sketch; smaller ones follow from their names."""
        return self.span.end - self.span.begin >= MIN_SIZE

    @property
    def sketch(self) -> Words:
        """The floats at the positions of a sketch, as the bit patterns of F32."""
        return self._floats[0].astype("<f4").view("<u4")

    def signatures(self) -> Iterator[int]:
        """Yield the signatures that floats may have of which the blocks were made."""
        values, apart = self._floats
        places = signed_places(len(values))
        with np.errstate(all="ignore"):
            sureness = np.abs(values[places]) / apart[places]
        unsure = [place for place in np.argsort(sureness).tolist() if not sureness[place] > 0.5][:_UNSURE]
        own = signature(self.sketch)
        for flips in product((0, 1), repeat=len(unsure)):
            yield own ^ sum(flip << place for flip, place in zip(flips, unsure, strict=True))

    def distance(self, data: bytes, dtypes: tuple[str, ...] = tuple(FLOATS)) -> float:
        """Return how far the floats of a sketch are from those of the blocks, as a share of their magnitude; inf if none are.

        Their type is one of `dtypes`, whichever comes nearest.
        """
        values = self._floats[0].astype(np.float64)
        best = np.inf
        for dtype in dtypes:
            if len(data) != len(values) * FLOATS[dtype]:
                continue
            others = floats(np.frombuffer(data, f"<u{FLOATS[dtype]}"), dtype)
            with np.errstate(all="ignore"):
                found = float(np.abs(values - others).mean() / np.abs(others).mean())
            best = min(best, found) if np.isfinite(found) else best
        return best

    def is_like(self, data: bytes, dtype: str) -> bool:
        """Say whether floats of this type, whose sketch this is, may be those of which the blocks were made."""
        return self.distance(data, (dtype,)) < _ALIKE

    @cached_property
    def _floats(self) -> tuple[Floats, Floats]:
        """The floats at the positions of a sketch, and how far apart neighbouring ones are there."""
        block = BLOCKS[self.span.dtype]
        places = positions(self.elements)
        starts = places[::RUN] // block.elements
        counts = places[RUN - 1 :: RUN] // block.elements + 1 - starts
        ranges = np.stack((self.span.begin + starts * block.size, counts * block.size), axis=1)
        rows = np.frombuffer(self._gather(ranges), np.uint8).reshape(-1, block.size)
        values, apart = block_values(self.span.dtype, rows)
        # Where the first blocks of each place are among all rows.
        before = np.cumsum(counts) - counts
        at = places[::RUN] + (before - starts) * block.elements
        chosen = (at[:, None] + np.arange(RUN)).ravel()
        return values.ravel()[chosen], apart.ravel()[chosen]


def is_block(span: TensorSpan) -> bool:
    """Say whether a tensor is of blocks that may be made of floats, enough of them to look for those."""
    return span.end - span.begin >= _SMALLEST and span.dtype in BLOCKS
