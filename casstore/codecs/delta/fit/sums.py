"""Which mean, weighted sum or task arithmetic made a tensor from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta.fit.estimate import Fit, best_of, residual_for
from casstore.codecs.delta.operations.cast import cast_step
from casstore.codecs.delta.operations.combine import Combination
from casstore.codecs.delta.piece import Extent, Step
from casstore.codecs.delta.predict import piece_of, predict
from casstore.codecs.delta.programs import combine_steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    U8 = NDArray[np.uint8]


def fit_mean(target: Buffer, bases: Sequence[Buffer], *, dtype: str) -> Fit:
    """Return the best way to compute the mean of bases: divided at the end, or each multiplied by a share."""
    return best_of(target, bases, _means(len(bases), dtype), residual_for(dtype))


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
    values = np.stack([as_floats(base, dtype) for base in bases], axis=1)
    weights = _solved(values, as_floats(target, dtype))
    if weights is None:
        return mean
    return min(
        mean, best_of(target, bases, _weighted(count, weights, dtype), residual), key=lambda fit: fit.share
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
    first, *others = (as_floats(base, dtype) for base in bases)
    values = np.stack([one - other for one, other in zip(others[::2], others[1::2], strict=True)], axis=1)
    weights = _solved(values, as_floats(target, dtype) - first) or [[1.0] * (count // 2)]
    rules = (
        combine_steps(range(count), inputs=count, weights=some, combination=tasks, element=dtype)
        for some in weights
        for tasks in _tasks(dtype)
    )
    return best_of(target, bases, rules, residual_for(dtype))


def as_floats(data: Buffer, dtype: str) -> NDArray[np.float64]:
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
