"""How one tensor follows from others: the program that predicts any part of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from casstore.codecs.delta import SAME, Extent, Piece, Step, transpose_step
from casstore.codecs.delta.fit import residual_for
from casstore.codecs.delta.predict import predict
from casstore.store.adding.bases.tensors.sketch import WIDTHS
from casstore.tensors.dtypes import element_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.codecs.delta import Residual
    from casstore.store.adding.bases.tensors.base_tensors import BaseTensor, FrameBases
    from casstore.store.adding.bases.tensors.sketch import Words
    from casstore.tensors import TensorSpan


class Operation(Protocol):
    """What makes a tensor out of others."""

    @property
    def inputs(self) -> tuple[BaseTensor, ...]:
        """The tensors that it is made of."""

    def piece(self, begin: int, end: int, at: int, bases: FrameBases, residual: Residual | None) -> Piece:
        """Return the prediction of bytes [`begin`, `end`) of the tensor, whole elements, from byte `at` of a chunk on."""


@dataclass(frozen=True, slots=True)
class Elementwise:
    """An operation that makes each element out of the elements at the same place; `width` is the result's in bytes."""

    inputs: tuple[BaseTensor, ...]
    steps: tuple[Step, ...]
    width: int

    def piece(self, begin: int, end: int, at: int, bases: FrameBases, residual: Residual | None) -> Piece:
        """Return the prediction of a part (`Operation.piece`)."""
        extents = []
        for tensor in self.inputs:
            width = WIDTHS[tensor.span.dtype]
            extents.append(bases.extents(tensor, begin // self.width * width, end // self.width * width))
        return Piece(at, at + end - begin, tuple(extents), self.steps, residual)

    def of(self, inputs: Sequence[Words]) -> Words:
        """Return what the operation makes of some elements."""
        buffers = [np.ascontiguousarray(words).view(np.uint8) for words in inputs]
        extents = tuple((Extent(number, 0, len(data)),) for number, data in enumerate(buffers))
        piece = Piece(0, len(inputs[0]) * self.width, extents, self.steps)
        made: Words = predict(piece, buffers, np.zeros(0, np.uint8)).view(f"<u{self.width}")
        return made


@dataclass(frozen=True, slots=True)
class Transposed:
    """An operation that takes a matrix for the transpose of another one, and then goes element by element.

    `steps` are those of an Elementwise that makes elements of `width` bytes of this tensor's.
    """

    tensor: BaseTensor
    steps: tuple[Step, ...]
    width: int

    @property
    def inputs(self) -> tuple[BaseTensor, ...]:
        """The matrix."""
        return (self.tensor,)

    def piece(self, begin: int, end: int, at: int, bases: FrameBases, residual: Residual | None) -> Piece:
        """Return the prediction of a part (`Operation.piece`)."""
        span = self.tensor.span
        extents = bases.extents(self.tensor, 0, self.tensor.size)
        moved = transpose_step(
            0,
            width=WIDTHS[span.dtype],
            shape=span.shape,
            permutation=(1, 0),
            first=begin // self.width,
            count=(end - begin) // self.width,
        )
        # The first value is the input, the second what the transposition makes of it: all others are one further on.
        others = [
            step._replace(operands=tuple(operand + 1 for operand in step.operands)) for step in self.steps
        ]
        return Piece(at, at + end - begin, (extents,), (moved, *others), residual)


def same(tensor: BaseTensor) -> Elementwise:
    """Return the operation that takes a tensor for another one as it is."""
    return Elementwise((tensor,), (Step(SAME, 1, (0,)),), WIDTHS[tensor.span.dtype])


@dataclass(frozen=True, slots=True)
class Relation:
    """A tensor of a file that is added, and what predicts it.

    `plain_share` is an estimate of what is left of it without a base, None where nobody knows.
    """

    span: TensorSpan
    operation: Operation
    plain_share: float | None = None

    @property
    def width(self) -> int:
        """The bytes of an element or block."""
        return element_width(self.span.dtype)

    @property
    def residual(self) -> Residual:
        """How differences are stored."""
        return residual_for(self.span.dtype)
