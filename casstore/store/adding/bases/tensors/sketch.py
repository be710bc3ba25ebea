"""Sketches: a few elements of a tensor, at positions that depend on nothing but how many it has. Pure.

Tensors with as many elements can be compared by their sketches, whatever their element types; those of a transposed tensor
are the same elements at other positions. The difference of sketches also says how large a delta would be.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.codecs.delta import Order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = np.ndarray[Any, np.dtype[Any]]
    Positions = NDArray[np.int64]

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
    width = words.dtype.itemsize
    top = (words[signed_places(len(words))] >> words.dtype.type(8 * width - 1)).astype(np.uint64)
    return int((top << np.arange(_SIGNS, dtype=np.uint64)).sum())


def signed_places(count: int) -> slice:
    """Return which of so many elements give a signature its bits, the lowest first."""
    step = count // _SIGNS
    return slice(0, step * _SIGNS, step)


def is_negative(words: Words) -> NDArray[np.bool_]:
    """Say of each element whether its top bit is set, as in negative numbers."""
    found: NDArray[np.bool_] = words.view(f"<i{words.dtype.itemsize}") < 0
    return found


def differences(actual: Words, predicted: Words, order: Order) -> Words:
    """Return the residuals of elements, as format/README.md defines them."""
    width = actual.dtype.itemsize
    left, right = actual, predicted
    if order is Order.FLOAT:
        left, right = _numbered(actual), _numbered(predicted)
    signed = (left - right).view(f"<i{width}")
    found: Words = ((signed << 1) ^ (signed >> (8 * width - 1))).view(f"<u{width}")
    return found


def _numbered(words: Words) -> Words:
    width = words.dtype.itemsize
    mask = words.dtype.type((1 << (8 * width - 1)) - 1)
    signs = (words.view(f"<i{width}") >> (8 * width - 1)).view(f"<u{width}")
    found: Words = words ^ (signs & mask)
    return found


def distance(residuals: Words) -> float:
    """Return the mean number of bits of residuals: relatives have few, strangers about a third of the element's."""
    return float(np.log2(residuals.astype(np.float64) + 1.0).mean())


def are_strangers(residuals: Words, dtype: str) -> bool:
    """Say whether tensors of a type with such differences have nothing in common; a few residuals are enough."""
    return bool(strange_rows(residuals[None], dtype)[0])


def strange_rows(residuals: Words, dtype: str) -> NDArray[np.bool_]:
    """Say for each row of differences whether such tensors have nothing in common."""
    limit = _STRANGE.get(dtype, 7 * residuals.dtype.itemsize)
    found: NDArray[np.bool_] = np.log2(residuals.astype(np.float64) + 1.0).mean(axis=1) > limit
    return found


def share_left(words: Words) -> float:
    """Estimate what planes leave of elements like these, as a share: the entropy of each byte column."""
    count, width = len(words), words.dtype.itemsize
    columns = np.ascontiguousarray(words).view(np.uint8).reshape(count, width)
    numbered = columns + 256 * np.arange(width)
    counts = np.bincount(numbered.ravel(), minlength=256 * width).reshape(width, 256)
    shares = counts / count
    bits = -(shares * np.log2(np.maximum(shares, 1 / count))).sum(axis=1)
    # Miller's correction: few samples see too few values (Miller 1955, "Note on the bias of information estimates").
    bits += (np.count_nonzero(counts, axis=1) - 1) / (2 * count * np.log(2))
    return float(np.minimum(bits, 8).sum()) / (8 * width)
