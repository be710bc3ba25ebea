"""Zero points that a file does not tell, or not as a tensor: one for each channel, from all elements of both tensors."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta import Axis
from casstore.ops.diff.values import numbers
from casstore.store.adding.bases.rules.quantising import QUANTISED, Quantised, fitted_zeros

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casstore.ops.diff.reading import TensorReader
    from casstore.ops.diff.sides import Side
    from casstore.store.adding.bases.rules.quantising import Scales

__all__ = ["with_zero_points"]

_LARGEST = 64 << 20
"""Bytes of the largest tensor of which all elements are looked at."""


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
            found = fitted_zeros(values, actual, steps, across, dtype)
            if found is not None:
                zeros, rule, limits = found
                axis = Axis(1, count) if across == 0 else Axis(prod(shape) // count, count)
                known = scales._replace(zeros=zeros.tobytes())
                return Quantised(a.tensor, transposed, dtype, known, axis, rule, limits)
    return None
