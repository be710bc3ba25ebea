"""What a prediction missed: the differences of elements, as small unsigned numbers.

The elements' bit patterns are put into an order in which neighbours in value are neighbours in number; the difference
wraps around, and is zigzagged: 0, -1, 1, -2 … become 0, 1, 2, 3 …. All integers are little-endian on every host. What is
here in numpy is the specification of the compiled kernels, and their replacement where there are none.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.codecs.delta.piece import Order
from casstore.codecs.regroup import equal, scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from casstore.codecs.delta.piece import Residual

    U8 = NDArray[np.uint8]
    Words = np.ndarray[Any, np.dtype[Any]]

_BLOCK = 32 << 10
"""Bytes that are worked on at once: they and two blocks of scratch stay in the core's first caches."""


class Outcome(IntEnum):
    """What `subtract` found."""

    EXACT = 0
    """Nothing differs."""
    RESTORED = 1
    """The differences, added to the predicted elements, gave the actual ones."""
    LOST = 2
    """They did not: the differences are wrong."""


def subtract(actual: U8, predicted: U8, residual: Residual, out: U8) -> Outcome:
    """Write the zigzagged differences to `out`, unless there are none, and add them again to see what they restore.

    All three have the same length, whole elements.
    """
    if equal(actual.data, predicted.data):
        return Outcome.EXACT
    _subtract(actual, predicted, residual, out)
    restored = scratch("restored", len(out))
    add(out, predicted, residual, restored)
    return Outcome.RESTORED if equal(actual.data, restored.data) else Outcome.LOST


def _subtract(actual: U8, predicted: U8, residual: Residual, out: U8) -> None:
    for at, end in _blocks(len(actual)):
        difference, spare = _words(residual.width, end - at)
        _to_order(_view(actual, at, end, residual), residual, spare, difference)
        target = _view(out, at, end, residual)
        _to_order(_view(predicted, at, end, residual), residual, spare, target)
        np.subtract(difference, target, out=difference)
        # An arithmetic shift leaves the sign in every bit.
        np.right_shift(_signed(difference), 8 * residual.width - 1, out=_signed(spare))
        np.left_shift(difference, 1, out=difference)
        np.bitwise_xor(difference, spare, out=target)


def add(differences: U8, predicted: U8, residual: Residual, out: U8) -> None:
    """Write the actual elements to `out`: the inverse of `subtract`. `out` must not overlap the others."""
    for at, end in _blocks(len(differences)):
        value, spare = _words(residual.width, end - at)
        zigzagged = _view(differences, at, end, residual)
        np.bitwise_and(zigzagged, 1, out=value)
        np.negative(value, out=value)
        np.right_shift(zigzagged, 1, out=spare)
        np.bitwise_xor(value, spare, out=value)
        target = _view(out, at, end, residual)
        _to_order(_view(predicted, at, end, residual), residual, spare, target)
        np.add(value, target, out=value)
        _to_order(value, residual, spare, target)


def _to_order(words: Words, residual: Residual, spare: Words, out: Words) -> None:
    """Number bit patterns in the residual's order. It is its own inverse."""
    if residual.order is Order.INTEGER:
        np.copyto(out, words)
        return
    # Where the sign is set, all other bits are inverted: the larger the magnitude, the smaller the number.
    bits = 8 * residual.width
    np.right_shift(_signed(words), bits - 1, out=_signed(spare))
    np.bitwise_and(spare, spare.dtype.type((1 << bits - 1) - 1), out=spare)
    np.bitwise_xor(words, spare, out=out)


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + _BLOCK, size)) for at in range(0, size, _BLOCK))


def _view(data: U8, at: int, end: int, residual: Residual) -> Words:
    return data[at:end].view(f"<u{residual.width}")


def _words(width: int, size: int) -> tuple[Words, Words]:
    memory = scratch("differences", 2 * _BLOCK)
    return memory[:size].view(f"<u{width}"), memory[_BLOCK : _BLOCK + size].view(f"<u{width}")


def _signed(words: Words) -> Words:
    return words.view(f"<i{words.dtype.itemsize}")
