"""How like elements of two tensors are, and what a delta would leave of one. Pure.

Logarithms are integers, in 65536ths, so that every machine comes to the same numbers; `native/sketch.c` does the same work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from casstore import _build
from casstore.codecs.delta import Order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = np.ndarray[Any, np.dtype[Any]]

ONE = 1 << 16
"""One bit, in the unit of logarithms."""

# fmt: off
_PARTS = np.array((
    0, 1466, 2909, 4331, 5732, 7112, 8473, 9814, 11136, 12440, 13727, 14996, 16248,
    17484, 18704, 19909, 21098, 22272, 23433, 24579, 25711, 26830, 27936, 29029, 30109, 31178,
    32234, 33279, 34312, 35334, 36346, 37346, 38336, 39316, 40286, 41246, 42196, 43137, 44068,
    44990, 45904, 46809, 47705, 48593, 49472, 50344, 51207, 52063, 52911, 53751, 54584, 55410,
    56229, 57040, 57845, 58643, 59434, 60219, 60997, 61769, 62534, 63294, 64047, 64794, 65536,
), np.uint64)
# fmt: on
"""log2(1 + k / 64): between them lines are at most 1/20000 too low."""

_MILLER = 47274
"""Half of 1 / ln 2: what a value more among those seen adds to the entropy, times the count.

Few samples see too few values (Miller 1955, "Note on the bias of information estimates").
"""


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


def logs(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the binary logarithms of numbers other than 0, in 65536ths."""
    whole, rest = np.zeros(values.shape, np.uint64), values
    for step in (32, 16, 8, 4, 2, 1):
        move = np.where(rest >> np.uint64(step) > 0, np.uint64(step), np.uint64(0))
        whole, rest = whole + move, rest >> move
    mantissa = values << (np.uint64(63) - whole) << np.uint64(1)
    part = (mantissa >> np.uint64(58)).astype(np.intp)
    fraction = mantissa >> np.uint64(42) & np.uint64(ONE - 1)
    rise = (_PARTS[part + 1] - _PARTS[part]) * fraction >> np.uint64(16)
    found: NDArray[np.uint64] = (whole << np.uint64(16)) + _PARTS[part] + rise
    return found


def bits_of(residuals: Words) -> NDArray[np.uint64]:
    """Return how many bits residuals have, summed up along the last axis, in 65536ths: of each, log2(x + 1)."""
    wide = residuals.astype(np.uint64)
    sums: NDArray[np.uint64] = logs(wide + (wide != np.iinfo(np.uint64).max)).sum(axis=-1)
    return sums


def distances(actual: Words, rows: Words, order: Order) -> NDArray[np.float64]:
    """Return the mean number of bits of what each row of elements differs by: relatives have few, strangers about a third of all."""
    if _build.kernels is None:
        found = bits_of(differences(np.broadcast_to(actual, rows.shape).copy(), rows, order))
    else:
        found = np.empty(len(rows), np.uint64)
        is_float = order is Order.FLOAT
        _build.kernels.sketch_distances(actual, rows, found, actual.dtype.itemsize, is_float)
    return found / (len(actual) * ONE)


def entropy(words: Words) -> int:
    """Return the entropies of the byte columns of elements times the number of these, in 65536ths of bits."""
    count, width = len(words), words.dtype.itemsize
    if _build.kernels is not None:
        return _build.kernels.sketch_entropy(words, width)
    columns = np.ascontiguousarray(words).view(np.uint8).reshape(count, width)
    whole = count * int(logs(np.array([count], np.uint64))[0])
    total = 0
    for column in range(width):
        seen = np.bincount(columns[:, column]).astype(np.uint64)
        counts = seen[seen > 0]
        bits = max(0, whole - int((counts * logs(counts)).sum()))
        total += min(bits + (len(counts) - 1) * _MILLER, 8 * count * ONE)
    return total


def compare(actual: Words, predicted: Words, order: Order, *, first: int, limit: int) -> int | None:
    """Return the `entropy` of differences, 0 if there are none, None if the first few have more bits than `limit`, in 65536ths."""
    if _build.kernels is not None:
        found = _build.kernels.sketch_compare(
            actual, predicted, actual.dtype.itemsize, order is Order.FLOAT, first, limit
        )
        return None if found < 0 else found
    residuals = differences(actual, predicted, order)
    if not residuals.any():
        return 0
    return None if int(bits_of(residuals[:first])) > limit else entropy(residuals)


def share_of(bits: int, words: Words) -> float:
    """Return what share of elements so many bits are, in 65536ths times their number as `entropy` gives them."""
    return bits / (8 * words.nbytes * ONE)


def top_bits(words: Words, count: int) -> int:
    """Return the top bits of so many of the elements, equally far apart, the first one lowest."""
    if _build.kernels is not None:
        return _build.kernels.sketch_signs(words, words.dtype.itemsize, count)
    step = len(words) // count
    chosen = words[: step * count : step] >> words.dtype.type(8 * words.dtype.itemsize - 1)
    return int((chosen.astype(np.uint64) << np.arange(count, dtype=np.uint64)).sum())
