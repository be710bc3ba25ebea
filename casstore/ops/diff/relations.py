"""How one tensor may follow from another, found from some of their elements, and what that gives for any part of it."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta import Extent, Piece, cast_step, scales_of
from casstore.codecs.delta.fit import fit_cast
from casstore.codecs.delta.operations.floats import FORMATS
from casstore.codecs.delta.operations.gguf import BLOCKS
from casstore.codecs.delta.predict import predict
from casstore.ops.diff.reading import SMALL
from casstore.ops.diff.zero_points import with_zero_points
from casstore.store.adding.bases.rules.block_types import Blocks, made_of
from casstore.store.adding.bases.rules.quantising import QUANTISED, Quantised, quantised
from casstore.store.adding.bases.rules.target import TargetTensor
from casstore.store.adding.bases.tensors.sketch import (
    RUN,
    WIDTHS,
    are_strangers,
    differences,
    order_of,
    share_left,
)
from casstore.tensors import TensorSpan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from casstore.codecs.delta import Step
    from casstore.ops.diff.reading import TensorReader
    from casstore.ops.diff.sides import Side
    from casstore.store.adding.bases.tensors.base_tensors import BaseTensor
    from casstore.store.adding.bases.tensors.sketch import Words

    U8 = NDArray[np.uint8]

__all__ = ["WHOLE", "Relation", "opened", "relation_of"]

WHOLE = 256 << 20
"""Bytes of the largest tensor that is held in memory, to be compared with its transpose."""

_BLOCKS_FIT = 0.5
_WORTH = 0.9
"""What may be left of a tensor, as a share of what is left of it alone, if another one is to explain it."""


@dataclass(frozen=True, slots=True)
class Relation:
    """What makes B's tensor out of A's: perhaps a transposition, then a cast (`steps`), or a quantisation."""

    transposed: bool = False
    steps: tuple[Step, ...] = ()
    quantisation: Quantised | Blocks | None = None

    def predict(self, source: U8, actual: U8, first: int) -> U8:
        """Return what it makes of elements of A, which lie in the order of B's; `actual` are B's, from number `first` on.

        Of blocks, only scales come from `actual`, if they follow from nothing else.
        """
        how = self.quantisation
        inputs = [source]
        steps = self.steps
        if isinstance(how, Blocks):
            steps = how.steps
            if how.given:
                inputs.append(scales_of(actual, target=how.target))
        elif how is not None:
            inputs.append(np.frombuffer(how.scales.scales, np.uint8))
            zeros = None
            if how.scales.zeros is not None:
                zeros = 2
                inputs.append(np.frombuffer(how.scales.zeros, np.uint8))
            dtype, value = how.tensor.span.dtype, 0
            if dtype != "F32":
                steps, value = (cast_step(0, source=dtype, target="F32"),), len(inputs)
            steps = (*steps, how.step(value, zeros, first))
        if not steps:
            return source
        extents = tuple((Extent(number, 0, len(data)),) for number, data in enumerate(inputs))
        return predict(Piece(0, len(actual), extents, steps), inputs, np.zeros(0, np.uint8))


def opened(side: Side, reader: TensorReader) -> TargetTensor:
    """Return a tensor of a type with sketches, of which some elements are to be looked at."""
    span = TensorSpan(*astuple(side.span))

    def read(begin: int, length: int) -> bytes:
        return bytes(reader.read_file(side.file, begin, begin + length))

    def read_small(name: str, dtype: str) -> bytes | None:
        other = side.file.by_name.get(name)
        if other is None or other.dtype != dtype or other.end - other.begin > SMALL:
            return None
        return read(other.begin, other.end - other.begin)

    data = None
    if side.size < SMALL:
        data = reader.read_file(side.file, span.begin, span.end)
    return TargetTensor(span, data, read=read, read_small=read_small)


def relation_of(a: Side, b: Side, readers: tuple[TensorReader, TensorReader]) -> Relation | None:
    """Return how a tensor follows from another one of as many elements, None if that is not seen from a sample of them."""
    if b.span.dtype in BLOCKS:
        return _of_blocks(a, b, readers)
    if a.span.dtype not in WIDTHS or b.span.dtype not in WIDTHS or a.tensor.elements < RUN:
        return None
    one, other = opened(a, readers[0]), opened(b, readers[1])
    if b.span.dtype in QUANTISED and a.span.dtype in FORMATS:
        for found, _, _ in quantised(other, a.tensor, one.sketch, whole=WHOLE):
            return Relation(found.transposed, quantisation=found)
        if other.scales is not None:
            made = with_zero_points(a, b, other.scales, _views(a, b), readers)
            if made is not None:
                return Relation(made.transposed, quantisation=made)
        return None
    plain = share_left(other.sketch)
    best: tuple[float, Relation] | None = None
    for transposed in _views(a, b):
        actual = other.transpose if transposed else other.sketch
        for steps, predicted in _values(one.sketch, actual, a.span.dtype, b.span.dtype):
            residuals = differences(actual, predicted, order_of(b.span.dtype))
            if are_strangers(residuals, b.span.dtype):
                continue
            share = share_left(residuals) if residuals.any() else 0.0
            if share <= _WORTH * plain and (best is None or share < best[0]):
                best = share, Relation(transposed, steps)
    return None if best is None else best[1]


def _views(a: Side, b: Side) -> Iterator[bool]:
    """Yield whether B's is taken for A's transposed, for each way that fits the shapes."""
    shape = a.span.shape
    reversed_shape = shape[::-1]
    matrix = len(shape) == 2 and 1 not in shape
    if not matrix or b.span.shape != reversed_shape or shape == reversed_shape:
        yield False
    if matrix and b.span.shape == reversed_shape and a.size <= WHOLE:
        yield True


def _values(
    words: Words, actual: Words, source: str, target: str
) -> Iterator[tuple[tuple[Step, ...], Words]]:
    """Yield the cast that fits best, no steps for tensors of one type, and what it makes of elements of A."""
    if source == target:
        yield (), words
    elif source in FORMATS and target in FORMATS:
        data = np.ascontiguousarray(words).view(np.uint8)
        wanted = np.ascontiguousarray(actual).view(np.uint8)
        steps = fit_cast(wanted, data, source=source, dtype=target).steps
        made = Relation(steps=steps).predict(data, wanted, 0)
        yield steps, made.view(f"<u{FORMATS[target].width}")


def _of_blocks(a: Side, b: Side, readers: tuple[TensorReader, TensorReader]) -> Relation | None:
    def read(begin: int, length: int) -> bytes:
        return bytes(readers[1].read_file(b.file, begin, begin + length))

    def read_base(tensor: BaseTensor, begin: int, end: int) -> bytes:
        origin = tensor.span.begin
        return bytes(readers[0].read_file(a.file, origin + begin, origin + end))

    found = made_of(TensorSpan(*astuple(b.span)), a.tensor, read=read, read_base=read_base)
    if found is None or found[0] > _BLOCKS_FIT:
        return None
    return Relation(quantisation=found[1])
