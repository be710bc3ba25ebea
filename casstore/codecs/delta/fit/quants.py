"""Which rule quantised a tensor, given its scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from casstore.codecs.delta.fit.estimate import estimate
from casstore.codecs.delta.operations.gguf import BLOCKS, gguf_step, scales_of
from casstore.codecs.delta.operations.quantise import (
    INTEGERS,
    PER_TENSOR,
    Rule,
    quantise_floats,
    quantise_step,
    read_step,
)
from casstore.codecs.delta.piece import Extent, Order, Residual
from casstore.codecs.delta.predict import piece_of, predict

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer


class QuantiseFit(NamedTuple):
    """The best rule of *quantise*, for `quantise_step`, the residual, and the share of the bytes that is left."""

    share: float
    rule: Rule
    limits: tuple[int, int]
    residual: Residual


def fit_quantise(
    actual: NDArray[Any],
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32] | None = None,
    *,
    target: str,
) -> QuantiseFit:
    """Return the best rule of *quantise*, from integers, one for each value, and the scale and zero point of each value.

    Scales and zero points are arrays of one number, too, or of as many as there are values.
    """
    kind = INTEGERS[target]
    residual = Residual(Order.INTEGER, max(1, kind.bits // 8))
    words = f"<u{residual.width}"
    expected = np.asarray(actual).astype(np.int64).astype(words).view(np.uint8)
    offset = np.zeros(1, np.float32) if zeros is None else zeros
    low, high = kind.range
    best = None
    for rule in map(Rule, range(sum(Rule) + 1)):
        for limits in [(low, high), (-high, high)] if kind.signed else [(low, high)]:
            step = read_step(
                quantise_step(0, 1, target=target, axis=PER_TENSOR, rule=rule, limits=limits).parameters
            )
            found = quantise_floats(values, scales, offset, step).astype(words).view(np.uint8)
            fit = QuantiseFit(estimate(expected, found, residual), rule, limits, residual)
            if best is None or fit.share < best.share:
                best = fit
            if best.share == 0:
                return best
    if best is None:
        raise ValueError("There is no rule to try.")
    return best


class GgufFit(NamedTuple):
    """Whether scales are to be given to *gguf*, the residual, and the share of the bytes that is left, with the scales."""

    share: float
    given: bool
    residual: Residual


def fit_gguf(actual: Buffer, values: Buffer, *, target: str) -> GgufFit:
    """Return whether blocks follow from F32 values with scales by their own rule, or better with those that they have.

    Some hundred whole blocks and their values, not the whole tensor, are enough.
    """
    blocks, floats = np.frombuffer(actual, np.uint8), np.frombuffer(values, np.uint8)
    residual = Residual(Order.INTEGER, 1)
    scales = scales_of(blocks, target=target)
    found = []
    for given in (False, True) if BLOCKS[target].has_rule else (True,):
        inputs = [[Extent(0, 0, len(floats))], [Extent(1, 0, len(scales))]]
        step = gguf_step(0, 1 if given else None, target=target)
        predicted = predict(piece_of(0, inputs, [step]), [floats, scales], floats[:0])
        share = estimate(blocks, predicted, residual)
        if given:
            nothing = np.zeros(len(scales), np.uint8)
            share += estimate(scales, nothing, residual) * len(scales) / len(blocks)
        found.append(GgufFit(share, given, residual))
    return min(found, key=lambda fit: fit.share)
