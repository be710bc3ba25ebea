"""The plan of one chunk: which pieces of it are predicted, from which chunks of the store. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from casstore.codecs.delta import LITERALS, Extent
from casstore.codecs.delta.payload import MAX_EXTENTS, MAX_PIECES
from casstore.store.adding.bases.tensors.base_tensors import FrameBases

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casstore.codecs.delta import Piece
    from casstore.store.adding.bases.rules.relation import Relation

_LITERALS = 0.5
"""The share of bytes between tensors, names and paddings, that plain encodings leave."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How a chunk is predicted: `bases` are chunks of the store, which `pieces` name by their places.

    `side` are bytes that pieces need beside the literals. `plain` is an estimate of the bytes that the chunk takes without them, None where nobody knows.
    """

    pieces: tuple[Piece, ...]
    bases: tuple[bytes, ...]
    plain: float | None
    side: bytes = b""


def plan_chunk(begin: int, plain: memoryview, relations: Iterable[Relation]) -> ChunkPlan | None:
    """Return the plan of a chunk, `plain` from byte `begin` of a file on; None if nothing predicts any of it.

    `relations` are of tensors in the order of the file; elements that are cut by the chunk's ends are left out.
    """
    end = begin + len(plain)
    bases = FrameBases(plain)
    pieces: list[Piece] = []
    estimate: float | None = 0.0
    at, extents, predicted = begin, 0, 0
    for relation in relations:
        span, width = relation.span, relation.width
        first = max(0, begin - span.begin + width - 1) // width * width
        last = (min(end, span.end) - span.begin) // width * width
        # Tied tensors have the same bytes: one of them predicts those.
        if first >= last or span.begin + first < at:
            continue
        if len(pieces) == MAX_PIECES:
            break
        piece = relation.operation.piece(first, last, span.begin + first - begin, bases, relation.residual)
        extents += sum(map(len, piece.inputs))
        if extents > MAX_EXTENTS:
            return None
        pieces.append(piece)
        share = relation.plain_share
        estimate = None if estimate is None or share is None else estimate + share * (last - first)
        predicted += last - first
        at = span.begin + last
    if not pieces:
        return None
    if estimate is not None:
        estimate += _LITERALS * (end - begin - predicted)
    left = end - begin - predicted
    moved = tuple(_after_literals(piece, left) for piece in pieces) if bases.sides else tuple(pieces)
    return ChunkPlan(moved, tuple(bases.ids), estimate, bases.sides)


def _after_literals(piece: Piece, left: int) -> Piece:
    """Return a piece whose sides come after the `left` literal bytes of its chunk."""
    inputs = tuple(
        tuple(
            Extent(base, begin + left, end + left) if base == LITERALS else Extent(base, begin, end)
            for base, begin, end in extents
        )
        for extents in piece.inputs
    )
    return replace(piece, inputs=inputs)
