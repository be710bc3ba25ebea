"""How much of a tensor its residual takes, and the best of some rules by that."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.delta.operations.floats import FORMATS
from casstore.codecs.delta.operations.operation import Source
from casstore.codecs.delta.piece import Extent, Order, Residual, Step
from casstore.codecs.delta.predict import piece_of, predict
from casstore.codecs.delta.predicted import Task, subtract_each
from casstore.codecs.delta.residual import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    U8 = NDArray[np.uint8]

_INTEGERS = {"I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}


class Fit(NamedTuple):
    """The best of some rules: its steps on the bases, as inputs 0, 1, …, the residual, and the share of the bytes that is left."""

    share: float
    steps: tuple[Step, ...]
    residual: Residual


def residual_for(dtype: str) -> Residual:
    """Return how differences of elements of a type are stored; block-quantised and packed types are taken as bytes."""
    if dtype in FORMATS:
        return Residual(Order.FLOAT, FORMATS[dtype].width)
    return Residual(Order.INTEGER, _INTEGERS.get(dtype, 1))


def estimate(actual: Buffer, predicted: Buffer, residual: Residual) -> float:
    """Return about what share of `actual` its residual takes: 0 if the prediction is exact, 1 if it is no use.

    The entropy of each byte of the differences, with what a sample of this size hides of it (Miller and Madow, 1955).
    """
    one: U8 = np.frombuffer(actual, np.uint8)
    differences = np.empty(len(one), np.uint8)
    task = Task(one, Source([np.frombuffer(predicted, np.uint8)]), residual)
    if subtract_each([task], differences) == [Outcome.EXACT]:
        return 0.0
    bits = 0.0
    count = len(one) // residual.width
    for plane in differences.reshape(count, residual.width).T:
        found = np.bincount(plane, minlength=256)
        shares = found[found > 0] / count
        entropy = -float((shares * np.log2(shares)).sum()) + (len(shares) - 1) / (2 * np.log(2) * count)
        bits += min(8.0, float(entropy))
    return bits / (8 * residual.width)


def best_of(
    target: Buffer, bases: Sequence[Buffer], rules: Iterable[tuple[Step, ...]], residual: Residual
) -> Fit:
    """Return the rule that leaves least, the first of several."""
    buffers = [np.frombuffer(base, np.uint8) for base in bases]
    inputs = [[Extent(at, 0, len(base))] for at, base in enumerate(buffers)]
    best = None
    for steps in rules:
        predicted = predict(piece_of(0, inputs, steps), buffers, np.empty(0, np.uint8))
        found = Fit(estimate(target, predicted, residual), steps, residual)
        if best is None or found.share < best.share:
            best = found
        if best.share == 0:
            break
    if best is None:
        raise ValueError("There is no rule to try.")
    return best
