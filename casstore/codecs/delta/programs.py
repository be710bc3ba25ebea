"""Pieces with one operation each. Those with several are made with `piece_of` from steps: transpose, then cast, then quantise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.codecs.delta.operations.cast import cast_step
from casstore.codecs.delta.operations.floats import Rounding
from casstore.codecs.delta.operations.quantise import PER_TENSOR, Axis, Rule, quantise_step
from casstore.codecs.delta.operations.transpose import transpose_step
from casstore.codecs.delta.predict import piece_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.codecs.delta.piece import Extent, Piece, Residual

__all__ = ["cast", "quantise", "transpose"]


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
