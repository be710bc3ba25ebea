"""Which rule of a family made one tensor from others, tried on samples, and how much of it a delta would store.

All functions are pure. A sample is the bytes of elements at some places of a tensor, whole elements, and those at the same
places of each base; 256 places tell which rule it is, some thousands also the share to within a few hundredths.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from casstore.codecs.delta import residual as residuals
from casstore.codecs.delta.operations.cast import cast_step
from casstore.codecs.delta.operations.combine import Combination
from casstore.codecs.delta.operations.floats import FORMATS, Rounding
from casstore.codecs.delta.operations.quantise import INTEGERS, PER_TENSOR, Rule, quantise_floats, read_step
from casstore.codecs.delta.operations.quantise import quantise_step as _quantise_step
from casstore.codecs.delta.piece import SAME, Extent, Order, Residual, Step
from casstore.codecs.delta.predict import piece_of, predict
from casstore.codecs.delta.programs import combine_steps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    U8 = NDArray[np.uint8]

__all__ = [
    "Fit",
    "QuantiseFit",
    "estimate",
    "fit_cast",
    "fit_combine",
    "fit_mean",
    "fit_quantise",
    "fit_same",
    "fit_tasks",
    "residual_for",
]

_INTEGERS = {"I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}


class Fit(NamedTuple):
    """The best of some rules: its steps on the bases, as inputs 0, 1, …, the residual, and the share of the bytes that is left."""

    share: float
    steps: tuple[Step, ...]
    residual: Residual


class QuantiseFit(NamedTuple):
    """The best rule of *quantise*, for `quantise_step`, the residual, and the share of the bytes that is left."""

    share: float
    rule: Rule
    limits: tuple[int, int]
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
    residuals.subtract(one, np.frombuffer(predicted, np.uint8), residual, differences)
    if not differences.any():
        return 0.0
    bits = 0.0
    count = len(one) // residual.width
    for plane in differences.reshape(count, residual.width).T:
        found = np.bincount(plane, minlength=256)
        shares = found[found > 0] / count
        entropy = -float((shares * np.log2(shares)).sum()) + (len(shares) - 1) / (2 * np.log(2) * count)
        bits += min(8.0, entropy)
    return bits / (8 * residual.width)


def _best(
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


def fit_same(target: Buffer, base: Buffer, *, dtype: str) -> Fit:
    """Return what is left of elements that are predicted as those of the base, of the same type."""
    return _best(target, [base], [(Step(SAME, 1, (0,)),)], residual_for(dtype))


def fit_cast(target: Buffer, base: Buffer, *, source: str, dtype: str) -> Fit:
    """Return the best cast from elements of type `source` to those of type `dtype`, directly or by way of F32.

    Raises ValueError if one of them is no float that can be cast, or both are the same.
    """
    if source not in FORMATS or dtype not in FORMATS or source == dtype:
        raise ValueError(f"There is no cast from {source} to {dtype}.")
    return _best(target, [base], _casts(source, dtype), residual_for(dtype))


def _casts(source: str, target: str) -> Iterator[tuple[Step, ...]]:
    paths = []
    if "F32" in {source, target} or source == "F64":
        paths.append([source, target])
    if "F32" not in {source, target}:
        paths.append([source, "F32", target])
    for saturate in (False, True):
        for rounding in Rounding:
            for path in paths:
                yield tuple(
                    _cast(at, one, other, rounding, saturate=saturate)
                    for at, (one, other) in enumerate(pairwise(path))
                )


def _cast(operand: int, source: str, target: str, rounding: Rounding, *, saturate: bool) -> Step:
    if FORMATS[source].width < FORMATS[target].width:
        return cast_step(operand, source=source, target=target)
    return cast_step(operand, source=source, target=target, rounding=rounding, saturate=saturate)


def fit_mean(target: Buffer, bases: Sequence[Buffer], *, dtype: str) -> Fit:
    """Return the best way to compute the mean of bases: divided at the end, or each multiplied by a share."""
    return _best(target, bases, _means(len(bases), dtype), residual_for(dtype))


def _means(count: int, dtype: str) -> Iterator[tuple[Step, ...]]:
    inputs = range(count)
    yield combine_steps(inputs, inputs=count, weights=[1] * count, divisor=count, element=dtype)
    for combination in _sums(dtype):
        yield combine_steps(
            inputs, inputs=count, weights=[1 / count] * count, combination=combination, element=dtype
        )


def _sums(dtype: str) -> tuple[Combination, ...]:
    return (Combination.SUM,) if dtype == "F64" else (Combination.SUM, Combination.FUSED_SUM)


def fit_combine(target: Buffer, bases: Sequence[Buffer], *, dtype: str) -> Fit:
    """Return the best weighted sum of bases, or mean of them; the weights are found by least squares."""
    residual, count = residual_for(dtype), len(bases)
    mean = fit_mean(target, bases, dtype=dtype)
    if mean.share == 0:
        return mean
    values = np.stack([_floats(base, dtype) for base in bases], axis=1)
    weights = _solved(values, _floats(target, dtype))
    if weights is None:
        return mean
    return min(
        mean, _best(target, bases, _weighted(count, weights, dtype), residual), key=lambda fit: fit.share
    )


def _weighted(count: int, weights: list[list[float]], dtype: str) -> Iterator[tuple[Step, ...]]:
    inputs = range(count)
    for some in weights:
        for combination in _sums(dtype):
            yield combine_steps(inputs, inputs=count, weights=some, combination=combination, element=dtype)
        if count == 2:
            # What torch.lerp does: one of the two, and a part of the way to the other one.
            share = some[1]
            orders = [(0, 1, 0), (1, 1, 0)]
            for order, weight in zip(orders, (share, share - 1), strict=True):
                for tasks in _tasks(dtype)[:2]:
                    yield combine_steps(order, inputs=2, weights=[weight], combination=tasks, element=dtype)


def _tasks(dtype: str) -> tuple[Combination, ...]:
    exact = (Combination.TASKS, Combination.JOINT_TASKS)
    return exact if dtype == "F64" else (Combination.TASKS, Combination.FUSED_TASKS, Combination.JOINT_TASKS)


def fit_tasks(target: Buffer, bases: Sequence[Buffer], *, dtype: str) -> Fit:
    """Return the best task arithmetic: the first base, and multiples of the differences of the pairs that follow it.

    Bases are x, a, b, c, d, … for x + w(a - b) + v(c - d) …; one may stand there several times. Weights are found by
    least squares.
    """
    count = len(bases)
    if count < 3 or count % 2 == 0:
        raise ValueError(f"{count} bases are not one and some pairs.")
    first, *others = (_floats(base, dtype) for base in bases)
    values = np.stack([one - other for one, other in zip(others[::2], others[1::2], strict=True)], axis=1)
    weights = _solved(values, _floats(target, dtype) - first) or [[1.0] * (count // 2)]
    rules = (
        combine_steps(range(count), inputs=count, weights=some, combination=tasks, element=dtype)
        for some in weights
        for tasks in _tasks(dtype)
    )
    return _best(target, bases, rules, residual_for(dtype))


def _floats(data: Buffer, dtype: str) -> NDArray[np.float64]:
    """Return elements as float64, and what is not finite as 0."""
    plain: U8 = np.frombuffer(data, np.uint8)
    if dtype not in {"F64", "F32"}:
        piece = piece_of(0, [[Extent(0, 0, len(plain))]], [cast_step(0, source=dtype, target="F32")])
        plain = predict(piece, [plain], plain[:0])
    values = plain.view("<f8" if dtype == "F64" else "<f4").astype(np.float64)
    return np.nan_to_num(values, posinf=0.0, neginf=0.0)


def _solved(values: NDArray[np.float64], target: NDArray[np.float64]) -> list[list[float]] | None:
    """Return weights by least squares, first those that people write, with few digits; None if nothing is near."""
    found, _, rank, _ = np.linalg.lstsq(values, target, rcond=None)
    if rank < values.shape[1] or not np.isfinite(found).all():
        return None
    tried: list[list[float]] = []
    for digits in (1, 2, 3, 4):
        short = [round(float(weight), digits) for weight in found]
        if short not in tried and np.allclose(short, found, rtol=0, atol=2e-3):
            tried.append(short)
    return [*tried, [float(weight) for weight in found]]


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
                _quantise_step(0, 1, target=target, axis=PER_TENSOR, rule=rule, limits=limits).parameters
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
