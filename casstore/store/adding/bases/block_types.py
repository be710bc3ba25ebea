"""Tensors in the block-quantised types of GGUF that were made of tensors of floats."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta import Extent, Order, Piece, Residual, cast_step, gguf_step, scales_of
from casstore.codecs.delta.fit import estimate
from casstore.codecs.delta.operations.gguf import BLOCKS
from casstore.codecs.delta.predict import predict
from casstore.store.adding.bases.sketch import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.codecs.delta import Step
    from casstore.store.adding.bases.base_tensors import BaseTensor, FrameBases
    from casstore.tensors import TensorSpan

    ReadBase = Callable[[BaseTensor, int, int], bytes]

SOURCES = frozenset({"F32", "F16", "BF16"})
"""Types of which blocks are made."""

_TRIED = 16 << 10
"""Bytes of a tensor for which a rule is tried, at its start and in its middle."""

_SCALES_LEFT = 0.9
"""The share of the bytes of scales that is left of them: they hardly compress."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The operation that makes blocks of type `target` of floats; scales come from the target itself where they are `given`."""

    tensor: BaseTensor
    target: str
    given: bool

    @property
    def inputs(self) -> tuple[BaseTensor, ...]:
        """The tensor of floats."""
        return (self.tensor,)

    def piece(self, begin: int, end: int, at: int, bases: FrameBases, residual: Residual | None) -> Piece:
        """Return the prediction of a part (`Operation.piece`)."""
        low, high = self.source_range(begin, end)
        inputs = [bases.extents(self.tensor, low, high)]
        if self.given:
            own = np.frombuffer(bases.plain[at : at + end - begin], np.uint8)
            inputs.append((bases.side(scales_of(own, target=self.target).tobytes()),))
        return Piece(at, at + end - begin, tuple(inputs), self.steps, residual)

    def source_range(self, begin: int, end: int) -> tuple[int, int]:
        """Return which bytes of the floats make whole blocks, bytes `begin` to `end` of the target."""
        block = BLOCKS[self.target]
        width = WIDTHS[self.tensor.span.dtype] * block.elements
        return begin // block.size * width, end // block.size * width

    @property
    def steps(self) -> tuple[Step, ...]:
        """The program."""
        given, inputs = (1, 2) if self.given else (None, 1)
        dtype = self.tensor.span.dtype
        if dtype == "F32":
            return (gguf_step(0, given, target=self.target),)
        return (
            cast_step(0, source=dtype, target="F32"),
            gguf_step(inputs, given, target=self.target),
        )


def made_of(
    span: TensorSpan, tensor: BaseTensor, *, read: Callable[[int, int], bytes], read_base: ReadBase
) -> tuple[float, Blocks] | None:
    """Return what makes blocks out of a tensor of floats, and the share that is left; None if it is of another size or type.

    `read` returns bytes of the blocks' file, `read_base` bytes of a tensor in the store, none where they cannot be read.
    """
    block = BLOCKS.get(span.dtype)
    if block is None or tensor.span.dtype not in SOURCES or tensor.elements != prod(span.shape):
        return None
    best: tuple[float, Blocks] | None = None
    for given in (False, True) if block.has_rule else (True,):
        operation = Blocks(tensor, span.dtype, given)
        share = _tried(operation, span, read, read_base)
        if share is not None and (best is None or share < best[0]):
            best = share, operation
        if share == 0:
            break
    return best


def _tried(
    operation: Blocks, span: TensorSpan, read: Callable[[int, int], bytes], read_base: ReadBase
) -> float | None:
    """Return about what share is left, judged by two parts of the tensor."""
    size = BLOCKS[operation.target].size
    count = (span.end - span.begin) // size
    some = min(count, max(1, _TRIED // size))
    shares = []
    for first in sorted({0, (count - some) // 2}):
        actual = read(span.begin + first * size, some * size)
        source = read_base(operation.tensor, *operation.source_range(first * size, (first + some) * size))
        if len(actual) < some * size or not source:
            return None
        shares.append(_left(operation, actual, source))
    return max(shares)


def _left(operation: Blocks, actual: bytes, source: bytes) -> float:
    buffers = [np.frombuffer(source, np.uint8)]
    extra = 0.0
    if operation.given:
        block = BLOCKS[operation.target]
        buffers.append(scales_of(np.frombuffer(actual, np.uint8), target=operation.target))
        extra = _SCALES_LEFT * block.scale_bytes / block.size
    extents = tuple((Extent(number, 0, len(data)),) for number, data in enumerate(buffers))
    made = predict(Piece(0, len(actual), extents, operation.steps), buffers, np.zeros(0, np.uint8))
    return extra + estimate(actual, made, Residual(Order.INTEGER, 1))
