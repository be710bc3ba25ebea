"""In which steps an adapter was merged, and with which scale."""

from __future__ import annotations

from itertools import product as product_of
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.delta.fit.estimate import estimate, residual_for
from casstore.codecs.delta.fit.sums import as_floats
from casstore.codecs.delta.operations.lora import Merge
from casstore.codecs.delta.piece import Extent, Residual
from casstore.codecs.delta.predict import predict
from casstore.codecs.delta.programs import lora

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

_RULES = (
    Merge.PLAIN,
    Merge.ROUND_SCALED,
    Merge.ROUND_PRODUCT | Merge.ROUND_SCALED,
    Merge.SCALE_FIRST,
    Merge.SCALE_FIRST | Merge.ROUND_PRODUCT,
    Merge.FUSED,
    Merge.FUSED | Merge.ROUND_PRODUCT,
)


class LoraFit(NamedTuple):
    """The scale, the rule and the blocks of *lora*, the residual, and the share of the bytes that is left."""

    share: float
    scale: float
    rule: Merge
    block: int
    residual: Residual


def fit_lora(
    target: Buffer,
    weights: Buffer,
    a: Buffer,
    b: Buffer,
    *,
    rank: int,
    dtype: str,
    adapter: str | None = None,
) -> LoraFit | None:
    """Return how an adapter was merged into some whole rows of weights; None if it was not.

    `a` is all of A, `b` the rows of B for these rows. Types are F32, F16 or BF16; the adapter's is `dtype` by default. The
    scale is found by least squares; those that people write come first.
    """
    source = adapter or dtype
    first, second = as_floats(a, source).reshape(rank, -1), as_floats(b, source).reshape(-1, rank)
    columns = first.shape[1]
    product = (second @ first).reshape(-1)
    moved = as_floats(target, dtype) - as_floats(weights, dtype)
    energy = float(product @ product)
    if energy == 0 or float(moved @ product) ** 2 <= 0.5 * energy * float(moved @ moved):
        return None
    buffers = [np.frombuffer(data, np.uint8) for data in (weights, a, b)]
    extents = [[Extent(at, 0, len(data))] for at, data in enumerate(buffers)]
    residual, best = residual_for(dtype), None
    for scale in _scales(float(moved @ product) / energy):
        for rule, block in product_of(_RULES, _blocks(rank)):
            piece = lora(
                0,
                *extents,
                rank=rank,
                columns=columns,
                scale=scale,
                block=block,
                rule=rule,
                element=dtype,
                adapter=source,
            )
            share = estimate(target, predict(piece, buffers, buffers[0][:0]), residual)
            if best is None or share < best.share:
                best = LoraFit(share, scale, rule, block, residual)
            if share == 0:
                return best
    return best


def _blocks(rank: int) -> list[int]:
    """Return the blocks in which libraries add up terms: all of them, mostly; halves and blocks of 192 are MKL's."""
    return [rank, *(block for block in (-(-rank // 2), 192, 256, 384) if 64 <= block < rank)]


def _scales(found: float) -> Iterator[float]:
    """Yield scales near the one that was found: alpha / r of small numbers, few digits, and itself."""
    seen = set()
    for unit in (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48, 10, 100, 1000):
        near = round(found * unit) / unit
        if near and abs(near - found) <= 0.02 * abs(found) and near not in seen:
            seen.add(near)
            yield near
    if found not in seen:
        yield found
