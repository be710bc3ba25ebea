"""Tensors that are sums of others: averages, weighted sums, and what task arithmetic makes. Pure, on sketches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.delta.fit import fit_combine, fit_tasks
from casstore.store.adding.bases.rules.relation import Elementwise
from casstore.store.adding.bases.tensors.sketch import FLOATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.fit import Fit
    from casstore.store.adding.bases.tensors.base_tensors import BaseTensor
    from casstore.store.adding.bases.tensors.sketch import Words

MAX_BASES = 5
"""Tensors of which sums are tried, the nearest ones."""

_PRECISION = {"F64": 2.0**-50, "F32": 2.0**-21, "F16": 2.0**-9, "BF16": 2.0**-6}
"""How far from a sum, as a share of the largest element, what is that sum may be: a few roundings."""

_NOTHING = 0.02
"""A weight below which a base is not part of a sum."""


class Near(NamedTuple):
    """A tensor of the target's type and size that is like it, with its sketch."""

    tensor: BaseTensor
    words: Words


def combined(target: Words, dtype: str, near: Sequence[Near]) -> tuple[float, Elementwise] | None:
    """Return what makes the target out of two or more of these tensors, and the share that is left; None if nothing does."""
    if len(near) < 2 or dtype not in FLOATS:
        return None
    parts = _parts(target, dtype, near)
    if len(parts) < 2:
        return None
    fit = _fit(target, dtype, parts)
    return fit.share, Elementwise(tuple(item.tensor for item, _ in parts), fit.steps, FLOATS[dtype])


def _parts(target: Words, dtype: str, near: Sequence[Near]) -> list[tuple[Near, float]]:
    """Return the tensors of which the target is a sum, to within rounding, each with about its weight."""
    values = np.stack([floats(item.words, dtype) for item in near], axis=1)
    wanted = floats(target, dtype)
    with np.errstate(all="ignore"):
        largest = float(np.abs(wanted).max())
        if not (np.isfinite(values).all() and 0 < largest < np.inf):
            return []
        weights, _, rank, _ = np.linalg.lstsq(values, wanted, rcond=None)
        missed = float(np.abs(values @ weights - wanted).max())
    if rank < len(near) or missed > _PRECISION[dtype] * largest:
        return []
    return [
        (item, weight) for item, weight in zip(near, weights.tolist(), strict=True) if abs(weight) > _NOTHING
    ]


def _fit(target: Words, dtype: str, parts: list[tuple[Near, float]]) -> Fit:
    """Return the best rule, and put the parts in its order."""
    if len(parts) == 3 and abs(sum(weight for _, weight in parts) - 1) < _NOTHING:
        # Task arithmetic, perhaps: one base, and a multiple of the difference of the others.
        parts.sort(key=lambda part: abs(part[1] - 1))
        one, other = parts[1:]
        if abs(one[1] + other[1]) < _NOTHING:
            parts[1:] = [one, other] if one[1] > 0 else [other, one]
            return _of(fit_tasks, target, dtype, parts)
    if len(parts) != 3:
        return _of(fit_combine, target, dtype, parts)
    # Sums of three differ with the order, and those of two differences with the base that they have in common: with that one,
    # task vectors mostly have equal weights.
    first, second, third = parts
    sums = [
        (fit_combine, order)
        for order in ([first, second, third], [first, third, second], [second, third, first])
    ]
    bases = sorted(parts, key=lambda base: _unlike(part[1] for part in parts if part is not base))
    tasks = [(fit_tasks, [base, *_against(base, parts)]) for base in bases]
    # Only one of the two has a negative weight, as a rule, and a few elements may follow from both.
    is_sum = min(weight for _, weight in parts) > 0
    best = None
    for rule, order in [*sums, *tasks] if is_sum else [*tasks, *sums]:
        fit = _of(rule, target, dtype, order)
        if best is None or fit.share < best.share:
            best, parts[:] = fit, order
        if best.share == 0:
            break
    assert best is not None
    return best


def _unlike(weights: Iterable[float]) -> float:
    one, other = weights
    return abs(one - other)


def _against(base: tuple[Near, float], parts: list[tuple[Near, float]]) -> Iterator[tuple[Near, float]]:
    """Yield all other parts, each followed by the base."""
    for part in parts:
        if part is not base:
            yield part
            yield base


def _of(rule: Callable[..., Fit], target: Words, dtype: str, parts: Sequence[tuple[Near, float]]) -> Fit:
    return rule(target.tobytes(), [item.words.tobytes() for item, _ in parts], dtype=dtype)


def floats(words: Words, dtype: str) -> NDArray[np.float64]:
    """Return the values of bit patterns of floats."""
    if dtype == "BF16":
        return (words.astype("<u4") << 16).view("<f4").astype(np.float64)
    return words.view(f"<f{FLOATS[dtype]}").astype(np.float64)
