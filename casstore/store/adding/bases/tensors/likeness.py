"""How like elements of two tensors are, and what a delta would leave of one. Pure.

Logarithms are integers, in 65536ths, so that every machine comes to the same numbers; `native/sketch.c` does the same work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from casstore import _build
from casstore.codecs.delta import Order
from casstore.codecs.logarithms import MILLER, ONE, logs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = np.ndarray[Any, np.dtype[Any]]


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
        total += min(bits + (len(counts) - 1) * MILLER, 8 * count * ONE)
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
