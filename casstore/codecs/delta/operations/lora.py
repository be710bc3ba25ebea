"""*lora*: weights with a low-rank product added, W + s·B·A, in the steps of those who merge adapters."""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore import _build
from casstore.codecs.delta.operations.combine import rounded, without_nans
from casstore.codecs.delta.operations.floats import CODES, FORMATS
from casstore.codecs.delta.operations.operation import Operation, blocks, joined, read_parameters, reject
from casstore.codecs.delta.piece import LORA, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.operations.floats import Float
    from casstore.codecs.delta.operations.operation import Parts

    U8 = NDArray[np.uint8]
    Floats = NDArray[np.float32]

__all__ = ["MAX_RANK", "OPERATION", "Merge", "lora_step"]

_PARAMETERS = struct.Struct("<BBHIIfHH")
MAX_RANK = 512
"""Limit of the rank, which bounds the work for each byte."""

_AT_ONCE = 1 << 15


class Merge(IntFlag):
    """How a product is scaled and added. A set of what differs from PLAIN; without `rounding` the first two do nothing."""

    PLAIN = 0
    """r(W + s·product)."""
    ROUND_PRODUCT = 1
    """The product is rounded, too."""
    ROUND_SCALED = 2
    """The scaled product is rounded, too."""
    SCALE_FIRST = 4
    """B is scaled, and rounded, before it is multiplied; the product is not."""
    FUSED = 8
    """W + s·product is rounded once, as in torch.add with alpha."""


class _Lora(NamedTuple):
    rounding: Float
    rule: Merge
    rank: int
    block: int
    columns: int
    first: int
    scale: float

    def rows(self, count: int) -> int:
        """Return in how many rows so many elements lie."""
        return -(-(self.first + count) // self.columns)


def lora_step(
    weights: int,
    a: int,
    b: int,
    *,
    rank: int,
    columns: int,
    scale: float,
    block: int | None = None,
    first: int = 0,
    rule: Merge = Merge.PLAIN,
    rounding: str = "F32",
) -> Step:
    """Return the step that merges an adapter; weights, a and b are numbers of values, all F32, and so is the result.

    The weights are any range of a matrix of so many `columns`, and begin in column `first`; `a` is the whole matrix of
    rank by columns; `b` are just the rows, of `rank` elements, of those in which the weights lie. With `rounding` F16 or BF16,
    results are rounded to that; a cast does the rest. The scale is rounded to F32 first. `block` is after how many of its
    terms a sum is added to that of the terms before; all of them by default. Libraries differ there, for large ranks.
    """
    parameters = _PARAMETERS.pack(FORMATS[rounding].code, rule, rank, columns, first, scale, block or rank, 0)
    return Step(LORA, 1, (weights, a, b), parameters)


def _read(parameters: bytes) -> _Lora:
    code, rule, rank, columns, first, scale, block, spare = read_parameters("lora", _PARAMETERS, parameters)
    if code not in CODES or CODES[code].name not in {"F32", "F16", "BF16"} or rule > sum(Merge) or spare:
        raise reject("lora", f"rounding {code} and rule {rule}")
    if not 1 <= block <= rank <= MAX_RANK or first >= columns:
        raise reject(
            "lora", f"rank {rank} in blocks of {block}, {columns} columns, and begins in column {first}"
        )
    return _Lora(CODES[code], Merge(rule), rank, block, columns, first, scale)


def _size(parameters: bytes, sizes: Sequence[int]) -> int:
    step = _read(parameters)
    count = sizes[0] // 4
    matrices = [count, step.rank * step.columns, step.rank * step.rows(count)]
    if not count or list(sizes) != [4 * size for size in matrices]:
        raise reject(
            "lora", f"operands of {list(sizes)} bytes for rank {step.rank} and {step.columns} columns"
        )
    return sizes[0]


def _apply(parameters: bytes, operands: Sequence[Parts]) -> U8:
    step = _read(parameters)
    weights, a, b = (joined(operand) for operand in operands)
    out: U8 = np.empty(len(weights), np.uint8)
    if _build.kernels is not None:
        codes = step.rounding.code, int(step.rule)
        _build.kernels.lora(weights, a, b, out, *codes, *step[2:])
        return out
    plain, found = weights.view("<f4"), out.view("<u4")
    one, other = a.view("<f4").reshape(step.rank, step.columns), b.view("<f4").reshape(-1, step.rank)
    for columns in blocks(step.columns, _AT_ONCE):
        width = columns.stop - columns.start
        for rows in blocks(len(other), _AT_ONCE // width):
            # Of the product, only what belongs to the range is put in place; of most tiles that is all or nothing.
            places = np.arange(rows.start, rows.stop)[:, None] * step.columns + np.arange(
                columns.start, columns.stop
            )
            places -= step.first
            wanted = (places >= 0) & (places < len(plain))
            if wanted.any():
                product = _product(one[:, columns], other[rows], step)[wanted]
                index = places[wanted]
                found[index] = without_nans(_merged(plain[index], product, step), FORMATS["F32"])
    return out


def _product(a: Floats, b: Floats, step: _Lora) -> Floats:
    """Return rows of the product: the specification in numpy. Each addition rounds to F64 and then to F32."""
    sums: list[Floats] = []
    with np.errstate(all="ignore"):
        if step.rule & Merge.SCALE_FIRST:
            b = rounded(np.float32(step.scale) * b, step.rounding)
        for begin in range(0, step.rank, step.block):
            part = np.zeros((len(b), a.shape[1]), np.float32)
            for k in range(begin, min(begin + step.block, step.rank)):
                term = b[:, k : k + 1].astype(np.float64) * a[k].astype(np.float64)
                term += part
                part = term.astype(np.float32)
            sums = [sums[0] + part] if sums else [part]
    return sums[0]


def _merged(weights: Floats, product: Floats, step: _Lora) -> Floats:
    scale = np.float32(1 if step.rule & Merge.SCALE_FIRST else step.scale)
    with np.errstate(all="ignore"):
        if step.rule & Merge.ROUND_PRODUCT:
            product = rounded(product, step.rounding)
        if step.rule & Merge.FUSED:
            wide = weights.astype(np.float64) + product.astype(np.float64) * np.float64(scale)
            return rounded(wide.astype("<f4"), step.rounding)
        scaled = product * scale
        if step.rule & Merge.ROUND_SCALED:
            scaled = rounded(scaled, step.rounding)
        return rounded(weights + scaled, step.rounding)


OPERATION = Operation("lora", _size, _apply)
