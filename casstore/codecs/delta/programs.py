"""Pieces with one operation each. Those with several are made with `piece_of` from steps: transpose, then cast, then quantise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.codecs.delta.operations.cast import cast_step
from casstore.codecs.delta.operations.floats import Rounding
from casstore.codecs.delta.operations.transpose import transpose_step
from casstore.codecs.delta.predict import piece_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.codecs.delta.piece import Extent, Piece, Residual

__all__ = ["cast", "transpose"]


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
