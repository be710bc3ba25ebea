"""Sketches: a few elements of a tensor, at positions that depend on nothing but how many it has. Pure.

Tensors with as many elements can be compared by their sketches, whatever their element types; those of a transposed tensor
are the same elements at other positions. The difference of sketches also says how large a delta would be.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.codecs.delta import Order
from casstore.codecs.logarithms import ONE
from casstore.store.adding.bases.tensors.likeness import (
    bits_of,
    compare,
    differences,
    distances,
    entropy,
    share_of,
    top_bits,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = np.ndarray[Any, np.dtype[Any]]
    Positions = NDArray[np.int64]

__all__ = [
    "FIRST",
    "FLOATS",
    "INTEGERS",
    "PLACES",
    "RUN",
    "SIZE",
    "WIDTHS",
    "are_strangers",
    "differences",
    "elements_at",
    "is_negative",
    "left_of",
    "order_of",
    "positions",
    "share_left",
    "signature",
    "signed_places",
    "strange_rows",
    "transposed",
]

PLACES = 64
RUN = 4
SIZE = PLACES * RUN
"""A sketch has so many elements: RUN adjacent ones at each of PLACES places."""

FIRST = 16
"""Elements of a sketch, from its start, that tell strangers from relatives; the places are in no order."""

_SIGNS = 16
_STRANGE = {"F64": 53, "F32": 23, "F16": 11.5, "BF16": 10}
"""Bits of the mean difference between tensors of which one predicts nothing of the other; more where signs differ."""

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
INTEGERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
WIDTHS = {
    **FLOATS,
    **INTEGERS,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
}
"""The element types that have sketches, with their widths in bytes."""


def order_of(dtype: str) -> Order:
    """Return in which order the bit patterns of an element type are numbers."""
    return Order.INTEGER if dtype in INTEGERS or dtype == "F8_E8M0" else Order.FLOAT


@lru_cache(maxsize=1024)
def positions(elements: int) -> Positions:
    """Return the positions of a sketch of a tensor with so many elements, SIZE or more of them."""
    # The finaliser of SplitMix64 (Steele, Lea, Flood, 2014): equally spread, and the same everywhere.
    state = np.arange(1, PLACES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    share = (state >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    starts = (share * (elements - RUN + 1)).astype(np.int64)
    return (starts[:, None] + np.arange(RUN)).ravel()


def transposed(places: Positions, rows: int, columns: int) -> Positions:
    """Return where the elements at `places` of a tensor of `rows` and `columns` are in its transpose."""
    row, column = np.divmod(places, columns)
    return column * rows + row


def elements_at(data: memoryview, places: Positions, width: int) -> Words:
    """Return the bit patterns of the elements at these positions; `data` is the tensor's bytes, at any address."""
    words = np.frombuffer(data, f"<u{width}", count=len(data) // width)
    return words[places]


def signature(words: Words) -> int:
    """Return the top bits of some elements: like tensors mostly have the same, others rarely do."""
    return top_bits(words, _SIGNS)


def signed_places(count: int) -> slice:
    """Return which of so many elements give a signature its bits, the lowest first."""
    step = count // _SIGNS
    return slice(0, step * _SIGNS, step)


def is_negative(words: Words) -> NDArray[np.bool_]:
    """Say of each element whether its top bit is set, as in negative numbers."""
    found: NDArray[np.bool_] = words.view(f"<i{words.dtype.itemsize}") < 0
    return found


def left_of(actual: Words, predicted: Words, dtype: str) -> float | None:
    """Estimate what share is left of elements of a type that are predicted: 0 if the prediction is exact; None for strangers.

    FIRST elements at most tell whether the tensors have nothing in common.
    """
    first = min(FIRST, len(actual))
    limit = int(_strange(dtype, actual) * first * ONE)
    found = compare(actual, predicted, order_of(dtype), first=first, limit=limit)
    return None if found is None else share_of(found, actual)


def are_strangers(residuals: Words, dtype: str) -> bool:
    """Say whether tensors of a type with such differences have nothing in common; a few residuals are enough."""
    return int(bits_of(residuals)) > _strange(dtype, residuals) * len(residuals) * ONE


def strange_rows(actual: Words, rows: Words, dtype: str) -> NDArray[np.bool_]:
    """Say for each row of elements whether such a tensor has nothing in common with one of a type that has the `actual` ones."""
    found: NDArray[np.bool_] = distances(actual, rows, order_of(dtype)) > _strange(dtype, actual)
    return found


def _strange(dtype: str, words: Words) -> float:
    return _STRANGE.get(dtype, 7 * words.dtype.itemsize)


def share_left(words: Words) -> float:
    """Estimate what planes leave of elements like these, as a share: the entropy of each byte column."""
    return share_of(entropy(words), words)
