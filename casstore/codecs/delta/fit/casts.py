"""Which cast made a tensor from another one, or whether it is that one with some changes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from casstore.codecs.delta.fit.estimate import Fit, best_of, residual_for
from casstore.codecs.delta.operations.cast import cast_step
from casstore.codecs.delta.operations.floats import FORMATS, Rounding
from casstore.codecs.delta.piece import SAME, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer


def fit_same(target: Buffer, base: Buffer, *, dtype: str) -> Fit:
    """Return what is left of elements that are predicted as those of the base, of the same type."""
    return best_of(target, [base], [(Step(SAME, 1, (0,)),)], residual_for(dtype))


def fit_cast(target: Buffer, base: Buffer, *, source: str, dtype: str) -> Fit:
    """Return the best cast from elements of type `source` to those of type `dtype`, directly or by way of F32.

    Raises ValueError if one of them is no float that can be cast, or both are the same.
    """
    if source not in FORMATS or dtype not in FORMATS or source == dtype:
        raise ValueError(f"There is no cast from {source} to {dtype}.")
    return best_of(target, [base], _casts(source, dtype), residual_for(dtype))


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
