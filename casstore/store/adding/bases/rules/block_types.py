"""Tensors in the block-quantised types of GGUF that were made of tensors of floats."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta import SAME, Extent, Order, Piece, Residual, Step, cast_step, gguf_step, scales_of
from casstore.codecs.delta.fit import estimate
from casstore.codecs.delta.operations.gguf import BLOCKS
from casstore.codecs.delta.predict import predict
from casstore.store.adding.bases.tensors.sketch import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.store.adding.bases.tensors.base_tensors import BaseTensor, FrameBases
    from casstore.tensors import TensorSpan

    ReadBase = Callable[[BaseTensor, int, int], bytes]

SOURCES = frozenset({"F32", "F16", "BF16"})
"""Types of which blocks are made."""

_ROUNDED: dict[str, tuple[str | None, ...]] = {"F32": (None, "F16", "BF16"), "BF16": (None, "F16")}
"""What floats may have been before they became blocks: converters write F16 first, whatever a model is trained in."""

_TRIED = 16 << 10
"""Bytes of a tensor for which a rule is tried, at its start and in its middle."""

_STRANGE = 0.6
"""What is left of blocks of other floats."""

_SCALES_LEFT = 0.9
"""The share of the bytes of scales that is left of them: they hardly compress."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The operation that makes blocks of type `target` of floats; scales come from the target itself where they are `given`.

    The floats are `rounded` to that type first, unless it is None.
    """

    tensor: BaseTensor
    target: str
    given: bool
    rounded: str | None = None

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
        given, following = (1, 2) if self.given else (None, 1)
        types = [self.tensor.span.dtype, "F32"]
        if self.rounded is not None:
            types = [*dict.fromkeys((types[0], "F32")), self.rounded, "F32"]
        steps: list[Step] = []
        value = 0
        for source, target in pairwise(types):
            if source != target:
                steps.append(cast_step(value, source=source, target=target))
                value, following = following, following + 1
        return (*steps, gguf_step(value, given, target=self.target))


@dataclass(frozen=True, slots=True)
class SameBlocks:
    """The operation that takes blocks for others of their type as they are: those of a model that was trained further."""

    tensor: BaseTensor

    @property
    def inputs(self) -> tuple[BaseTensor, ...]:
        """The tensor of blocks."""
        return (self.tensor,)

    def piece(self, begin: int, end: int, at: int, bases: FrameBases, residual: Residual | None) -> Piece:
        """Return the prediction of a part (`Operation.piece`)."""
        extents = bases.extents(self.tensor, begin, end)
        return Piece(at, at + end - begin, (extents,), (Step(SAME, 1, (0,)),), residual)


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
    for rounded in _ROUNDED.get(tensor.span.dtype, (None,)):
        for given in (False, True) if block.has_rule else (True,):
            operation = Blocks(tensor, span.dtype, given, rounded)
            share = _tried(operation, span, read, read_base)
            if share is None:
                return None
            if best is None or share < best[0]:
                best = share, operation
            if share <= _scales_left(operation):
                return best
        if best is not None and best[0] > _STRANGE:
            return best  # Rounding first moves few quants, and those not far.
    return best


def same_type(
    span: TensorSpan, tensor: BaseTensor, *, read: Callable[[int, int], bytes], read_base: ReadBase
) -> tuple[float, SameBlocks] | None:
    """Return what takes blocks for others of their type, and the share that is left; None if they are not of one type and shape."""
    if tensor.span.dtype != span.dtype or tensor.span.shape != span.shape:
        return None
    shares = []
    for begin, end in _samples(span):
        actual, other = read(span.begin + begin, end - begin), read_base(tensor, begin, end)
        if len(actual) < end - begin or not other:
            return None
        shares.append(estimate(actual, other, Residual(Order.INTEGER, 1)))
    return max(shares), SameBlocks(tensor)


def _samples(span: TensorSpan) -> list[tuple[int, int]]:
    """Return the bytes of two parts of a tensor of blocks, by which rules are judged."""
    size = BLOCKS[span.dtype].size
    count = (span.end - span.begin) // size
    some = min(count, max(1, _TRIED // size))
    return [(first * size, (first + some) * size) for first in sorted({0, (count - some) // 2})]


def _tried(
    operation: Blocks, span: TensorSpan, read: Callable[[int, int], bytes], read_base: ReadBase
) -> float | None:
    """Return about what share is left, judged by two parts of the tensor."""
    shares = []
    for begin, end in _samples(span):
        actual = read(span.begin + begin, end - begin)
        source = read_base(operation.tensor, *operation.source_range(begin, end))
        if len(actual) < end - begin or not source:
            return None
        shares.append(_left(operation, actual, source))
    return max(shares)


def _left(operation: Blocks, actual: bytes, source: bytes) -> float:
    buffers = [np.frombuffer(source, np.uint8)]
    if operation.given:
        buffers.append(scales_of(np.frombuffer(actual, np.uint8), target=operation.target))
    extents = tuple((Extent(number, 0, len(data)),) for number, data in enumerate(buffers))
    made = predict(Piece(0, len(actual), extents, operation.steps), buffers, np.zeros(0, np.uint8))
    return _scales_left(operation) + estimate(actual, made, Residual(Order.INTEGER, 1))


def _scales_left(operation: Blocks) -> float:
    """Return what share of blocks their scales are, as they are stored."""
    block = BLOCKS[operation.target]
    return _SCALES_LEFT * block.scale_bytes / block.size if operation.given else 0.0
