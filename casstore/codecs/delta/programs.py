"""Pieces with one operation each. Those with several are made with `piece_of` from steps: transpose, then cast, then quantise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.codecs.delta.operations.cast import cast_step
from casstore.codecs.delta.operations.combine import Combination, combine_step
from casstore.codecs.delta.operations.floats import Rounding
from casstore.codecs.delta.operations.gguf import gguf_step
from casstore.codecs.delta.operations.lora import Merge, lora_step
from casstore.codecs.delta.operations.quantise import PER_TENSOR, Axis, Rule, quantise_step
from casstore.codecs.delta.operations.transpose import transpose_step
from casstore.codecs.delta.predict import piece_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.codecs.delta.piece import Extent, Piece, Residual, Step

__all__ = ["cast", "combine", "combine_steps", "gguf", "lora", "mean", "quantise", "transpose", "widened"]


def cast(
    begin: int,
    extents: Sequence[Extent],
    *,
    source: str,
    target: str,
    rounding: Rounding = Rounding.NEAREST_EVEN,
    saturate: bool = False,
    residual: Residual | None = None,
) -> Piece:
    """Return the piece that predicts from `begin` on what these extents hold, in another format; see `cast_step`."""
    step = cast_step(0, source=source, target=target, rounding=rounding, saturate=saturate)
    return piece_of(begin, [extents], [step], residual)


def transpose(
    begin: int,
    extents: Sequence[Extent],
    *,
    width: int,
    shape: Sequence[int],
    permutation: Sequence[int],
    first: int,
    count: int,
    residual: Residual | None = None,
) -> Piece:
    """Return the piece that predicts from `begin` on a range of a permuted tensor, which the extents hold whole.

    See `transpose_step`.
    """
    step = transpose_step(0, width=width, shape=shape, permutation=permutation, first=first, count=count)
    return piece_of(begin, [extents], [step], residual)


def quantise(
    begin: int,
    extents: Sequence[Extent],
    scales: Sequence[Extent],
    zeros: Sequence[Extent] | None = None,
    *,
    target: str,
    axis: Axis = PER_TENSOR,
    first: int = 0,
    rule: Rule = Rule.DIVIDE,
    limits: tuple[int, int] | None = None,
    residual: Residual | None = None,
) -> Piece:
    """Return the piece that predicts from `begin` on what these F32 extents hold as integers; see `quantise_step`."""
    inputs = [extents, scales] if zeros is None else [extents, scales, zeros]
    step = quantise_step(
        0, 1, None if zeros is None else 2, target=target, axis=axis, first=first, rule=rule, limits=limits
    )
    return piece_of(begin, inputs, [step], residual)


def combine(
    begin: int,
    operands: Sequence[Sequence[Extent]],
    *,
    weights: Sequence[float],
    divisor: float = 1,
    combination: Combination = Combination.SUM,
    element: str = "F32",
    wide: bool = False,
    residual: Residual | None = None,
) -> Piece:
    """Return the piece that predicts from `begin` on a combination of tensors, each in extents of its own.

    See `combine_steps`.
    """
    steps = combine_steps(
        range(len(operands)),
        inputs=len(operands),
        weights=weights,
        divisor=divisor,
        combination=combination,
        element=element,
        wide=wide,
    )
    return piece_of(begin, operands, steps, residual)


def combine_steps(
    operands: Sequence[int],
    *,
    inputs: int,
    weights: Sequence[float],
    divisor: float = 1,
    combination: Combination = Combination.SUM,
    element: str = "F32",
    wide: bool = False,
) -> tuple[Step, ...]:
    """Return the steps that combine some of a piece's inputs, in this order, an input as often as it is named.

    All `inputs` are of type `element`, F64, F32, F16 or BF16, and so is the result; see `combine_step`. Arithmetic on F16 and
    BF16 rounds each step to that, or with `wide` only the result.
    """
    if element in {"F64", "F32"}:
        only = combine_step(
            operands, weights=weights, divisor=divisor, combination=combination, element=element
        )
        return (only,)
    combined = combine_step(
        [inputs + number for number in operands],
        weights=weights,
        divisor=divisor,
        combination=combination,
        rounding="F32" if wide else element,
    )
    return (*widened(inputs, element), combined, cast_step(2 * inputs, source="F32", target=element))


def widened(inputs: int, element: str) -> tuple[Step, ...]:
    """Return the steps that cast all inputs to F32: the result of the first one is value number `inputs`."""
    return tuple(cast_step(number, source=element, target="F32") for number in range(inputs))


def mean(
    begin: int,
    operands: Sequence[Sequence[Extent]],
    *,
    element: str = "F32",
    residual: Residual | None = None,
) -> Piece:
    """Return the piece that predicts the mean of tensors: their sum, one after the other, by their number."""
    weights = [1.0] * len(operands)
    return combine(
        begin, operands, weights=weights, divisor=len(operands), element=element, residual=residual
    )


def lora(
    begin: int,
    weights: Sequence[Extent],
    a: Sequence[Extent],
    b: Sequence[Extent],
    *,
    rank: int,
    columns: int,
    scale: float,
    block: int | None = None,
    first: int = 0,
    rule: Merge = Merge.PLAIN,
    element: str = "F32",
    adapter: str | None = None,
    residual: Residual | None = None,
) -> Piece:
    """Return the piece that predicts from `begin` on weights with an adapter merged; see `lora_step`.

    Weights and result are of type `element`, the adapter's matrices of type `adapter`, the same by default: F32, F16 or BF16.
    """
    sources = [element, adapter or element, adapter or element]
    steps: list[Step] = []
    operands = []
    for number, source in enumerate(sources):
        if source == "F32":
            operands.append(number)
        else:
            operands.append(len(sources) + len(steps))
            steps.append(cast_step(number, source=source, target="F32"))
    merged = lora_step(
        *operands,
        rank=rank,
        columns=columns,
        scale=scale,
        block=block,
        first=first,
        rule=rule,
        rounding=element,
    )
    steps.append(merged)
    if element != "F32":
        steps.append(cast_step(len(sources) + len(steps) - 1, source="F32", target=element))
    return piece_of(begin, [weights, a, b], steps, residual)


def gguf(
    begin: int,
    values: Sequence[Extent],
    scales: Sequence[Extent] | None = None,
    *,
    target: str,
    source: str = "F32",
    residual: Residual | None = None,
) -> Piece:
    """Return the piece that predicts from `begin` on whole blocks of type `target`; see `gguf_step`.

    The values are of type `source`, F32, or another float that is cast to it first.
    """
    inputs = [values] if scales is None else [values, scales]
    given = None if scales is None else 1
    if source == "F32":
        return piece_of(begin, inputs, [gguf_step(0, given, target=target)], residual)
    widened = cast_step(0, source=source, target="F32")
    return piece_of(begin, inputs, [widened, gguf_step(len(inputs), given, target=target)], residual)
