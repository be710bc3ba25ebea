"""Zero points that a file does not tell, or not as a tensor: one for each channel, from all elements of both tensors."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta import Axis
from casstore.codecs.delta.fit import fit_quantise
from casstore.ops.diff.values import numbers
from casstore.store.adding.bases.quantising import QUANTISED, Quantised

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from casstore.codecs.delta import Rule
    from casstore.ops.diff.reading import TensorReader
    from casstore.ops.diff.sides import Side
    from casstore.store.adding.bases.quantising import Scales

__all__ = ["with_zero_points"]

_LARGEST = 64 << 20
"""Bytes of the largest tensor of which all elements are looked at."""

_TRIED = 4096
_NEAR = 0.5
"""Steps between integers and what follows from the zero points that were found, on average, if it is this quantisation."""


def with_zero_points(
    a: Side, b: Side, scales: Scales, views: Iterable[bool], readers: tuple[TensorReader, TensorReader]
) -> Quantised | None:
    """Return how integers follow from floats with these scales, one for each row or column; None if they do not.

    `views` say whether A's tensor is tried as it is, or transposed.
    """
    shape, dtype = b.span.shape, b.span.dtype
    count = scales.channels
    if scales.zeros is not None or len(shape) != 2 or count not in shape or a.size > _LARGEST:
        return None
    source = numbers(readers[0].read(a, 0, a.size), a.span.dtype)
    if source is None:
        return None
    actual = readers[1].read(b, 0, b.size).view(QUANTISED[dtype]).reshape(shape).astype(np.int32)
    own = np.frombuffer(scales.scales, "<f4")
    for transposed in views:
        matrix = source.reshape(a.span.shape).T if transposed else source.reshape(shape)
        values = matrix.astype(np.float32)
        for across in (0, 1):
            if count != shape[1 - across]:
                continue
            steps = own[None, :] if across == 0 else own[:, None]
            found = _fitted(values, actual, steps, across, dtype)
            if found is not None:
                zeros, rule, limits = found
                axis = Axis(1, count) if across == 0 else Axis(prod(shape) // count, count)
                known = scales._replace(zeros=zeros.tobytes())
                return Quantised(a.tensor, transposed, dtype, known, axis, rule, limits)
    return None


def _fitted(
    values: NDArray[np.float32],
    actual: NDArray[np.int32],
    steps: NDArray[np.float32],
    across: int,
    dtype: str,
) -> tuple[NDArray[np.integer], Rule, tuple[int, int]] | None:
    with np.errstate(all="ignore"):
        offsets = actual - np.nan_to_num(np.rint(values / steps), posinf=0, neginf=0)
    limits = np.iinfo(QUANTISED[dtype])
    zeros = np.clip(np.rint(np.median(offsets, axis=across, keepdims=True)), limits.min, limits.max)
    if np.abs(offsets - zeros).mean() > _NEAR:
        return None
    wide = np.broadcast_to(steps, values.shape).ravel()[:_TRIED]
    offset = np.broadcast_to(zeros, values.shape).ravel()[:_TRIED].astype(np.float32)
    fit = fit_quantise(actual.ravel()[:_TRIED], values.ravel()[:_TRIED], wide, offset, target=dtype)
    return zeros.ravel().astype(QUANTISED[dtype]), fit.rule, fit.limits
