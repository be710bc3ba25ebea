"""Which mean, weighted sum or task arithmetic made a tensor from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta.fit.estimate import Fit, best_of, residual_for
from casstore.codecs.delta.operations.cast import cast_step
from casstore.codecs.delta.operations.combine import Combination, combine_step, rounded
from casstore.codecs.delta.operations.floats import FORMATS
from casstore.codecs.delta.piece import Extent, Step
from casstore.codecs.delta.predict import piece_of, predict
from casstore.codecs.delta.programs import combine_steps, widened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    U8 = NDArray[np.uint8]


_SUMMED = (5, 7)
"""Operands of two and of three task vectors that are added before they are scaled; more would take more steps than a piece may have."""


def fit_mean(target: Buffer, bases: Sequence[Buffer], *, dtype: str) -> Fit:
    """Return the best way to compute the mean of bases: divided at the end, or each multiplied by a share."""
    return best_of(target, bases, _means(len(bases), dtype), residual_for(dtype))


def _means(count: int, dtype: str) -> Iterator[tuple[Step, ...]]:
    for wide in _widths(dtype):
        yield combine_steps(
            range(count), inputs=count, weights=[1] * count, divisor=count, element=dtype, wide=wide
        )
    yield from _sums(count, [1 / count] * count, dtype)


def _widths(dtype: str) -> tuple[bool, ...]:
    """Return whether steps may be rounded at the end only: F16 and BF16 are computed in both ways."""
    return (False,) if dtype in {"F64", "F32"} else (False, True)


def _sums(count: int, weights: Sequence[float], dtype: str) -> Iterator[tuple[Step, ...]]:
    fused = () if dtype == "F64" else (Combination.FUSED_SUM,)
    for combination in (Combination.SUM, *fused):
        for wide in _widths(dtype):
            yield combine_steps(
                range(count),
                inputs=count,
                weights=weights,
                combination=combination,
                element=dtype,
                wide=wide,
            )


def fit_combine(target: Buffer, bases: Sequence[Buffer], *, dtype: str) -> Fit:
    """Return the best weighted sum of bases, or mean of them; the weights are found by least squares."""
    residual, count = residual_for(dtype), len(bases)
    mean = fit_mean(target, bases, dtype=dtype)
    if mean.share == 0:
        return mean
    values = np.stack([as_floats(base, dtype) for base in bases], axis=1)
    weights = _solved(values, as_floats(target, dtype), dtype)
    if weights is None:
        return mean
    rules = (rule for some in weights for rule in _weighted(count, some, dtype))
    return min(mean, best_of(target, bases, rules, residual), key=lambda fit: fit.share)


def _weighted(count: int, weights: list[float], dtype: str) -> Iterator[tuple[Step, ...]]:
    yield from _sums(count, weights, dtype)
    if count == 2:
        # What torch.lerp does: one of the two, and a part of the way to the other one.
        share = weights[1]
        for order, weight in (((0, 1, 0), share), ((1, 1, 0), share - 1)):
            yield from _tasks(order, 2, [weight], dtype, joint=False)


def _tasks(
    operands: Sequence[int], inputs: int, weights: Sequence[float], dtype: str, *, joint: bool
) -> Iterator[tuple[Step, ...]]:
    combinations = [Combination.TASKS]
    if dtype != "F64":
        combinations.append(Combination.FUSED_TASKS)
    if joint:
        combinations.append(Combination.JOINT_TASKS)
    for combination in combinations:
        for wide in _widths(dtype):
            yield combine_steps(
                operands, inputs=inputs, weights=weights, combination=combination, element=dtype, wide=wide
            )


def _alpha(weight: float, dtype: str) -> tuple[Step, ...]:
    """Return the steps of torch.add with alpha for F16 and BF16: the difference is rounded, and then only the result."""
    difference = combine_step([4, 5], weights=[1, -1], rounding=dtype)
    total = combine_step([3, 6], weights=[1, weight])
    return (*widened(3, dtype), difference, total, cast_step(7, source="F32", target=dtype))


def _scaled_sum(count: int, weight: float, dtype: str) -> tuple[Step, ...]:
    """Return the steps of x + w·((a - b) + (c - d) + …): task vectors are added first, and scaled then."""
    is_narrow = dtype not in {"F64", "F32"}
    element, rounding = ("F32", dtype) if is_narrow else (dtype, None)
    steps = [*widened(count, dtype)] if is_narrow else []
    first = count if is_narrow else 0

    def add(one: int, other: int, weights: Sequence[float]) -> int:
        steps.append(combine_step([one, other], weights=weights, element=element, rounding=rounding))
        return count + len(steps) - 1

    differences = [add(first + at, first + at + 1, [1, -1]) for at in range(1, count, 2)]
    total = differences[0]
    for difference in differences[1:]:
        total = add(total, difference, [1, 1])
    total = add(first, total, [1, weight])
    return (*steps, cast_step(total, source="F32", target=dtype)) if is_narrow else tuple(steps)


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
    weights = _solved(values, as_floats(target, dtype) - first, dtype) or [[1.0] * (count // 2)]
    return best_of(target, bases, _task_rules(count, weights, dtype), residual_for(dtype))


def _task_rules(count: int, weights: list[list[float]], dtype: str) -> Iterator[tuple[Step, ...]]:
    for some in weights:
        if count in _SUMMED and len(set(some)) == 1:
            yield _scaled_sum(count, some[0], dtype)
        yield from _tasks(range(count), count, some, dtype, joint=True)
        if count == 3 and dtype not in {"F64", "F32"}:
            yield _alpha(some[0], dtype)


def as_floats(data: Buffer, dtype: str) -> NDArray[np.float64]:
    """Return elements as float64, and what is not finite as 0."""
    plain: U8 = np.frombuffer(data, np.uint8)
    if dtype not in {"F64", "F32"}:
        piece = piece_of(0, [[Extent(0, 0, len(plain))]], [cast_step(0, source=dtype, target="F32")])
        plain = predict(piece, [plain], plain[:0])
    values = plain.view("<f8" if dtype == "F64" else "<f4").astype(np.float64)
    return np.nan_to_num(values, posinf=0.0, neginf=0.0)


def _solved(values: NDArray[np.float64], target: NDArray[np.float64], dtype: str) -> list[list[float]] | None:
    """Return weights by least squares, first those that people write, with few digits; None if they are not determined.

    Of these, first what they become in the type of the tensors: in F32 that is what all libraries compute with, and few elements show
    which of the two it was.
    """
    found, _, rank, _ = np.linalg.lstsq(values, target, rcond=None)
    if rank < values.shape[1] or not np.isfinite(found).all():
        return None
    tried: list[list[float]] = []
    for digits in (1, 2, 3, 4):
        short = np.round(found, digits)
        if np.allclose(short, found, rtol=0, atol=2e-3):
            narrow = rounded(short.astype("<f4"), FORMATS[dtype])
            tried += [some for some in (narrow.tolist(), short.tolist()) if some not in tried]
    return [*tried, found.tolist()]
