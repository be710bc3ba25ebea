"""*quantise*: floats to integers by scales and zero points, as onnxruntime, ONNX and PyTorch do it."""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from casstore import _build
from casstore.codecs.delta.operations.operation import (
    Operation,
    blocks,
    in_units,
    joined,
    read_parameters,
    reject,
)
from casstore.codecs.delta.piece import QUANTISE, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.operations.operation import Parts

    U8 = NDArray[np.uint8]
    Floats = NDArray[np.float32]

__all__ = ["INTEGERS", "OPERATION", "PER_TENSOR", "Axis", "Rule", "quantise_floats", "quantise_step"]

_PARAMETERS = struct.Struct("<BBHiiIQQQ")
_MAX_FIRST = 1 << 62


class Rule(IntFlag):
    """How elements are scaled and rounded. A set of what differs from DIVIDE."""

    DIVIDE = 0
    """round(x / scale) + zero point, to nearest even, as onnxruntime has it."""
    RECIPROCAL = 1
    """Multiply by 1 / scale instead, which is rounded first, as PyTorch does."""
    ZERO_FIRST = 2
    """Add the zero point before rounding."""
    HALF_AWAY = 4
    """Round halves away from zero."""


class Integer(NamedTuple):
    """An element type: its number in parameters, bits, whether it is signed."""

    code: int
    bits: int
    signed: bool

    @property
    def range(self) -> tuple[int, int]:
        """Its least and its greatest value."""
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.signed else (0, (1 << self.bits) - 1)

    def packed(self, count: int) -> int:
        """Return the bytes of so many elements."""
        return (count * self.bits + 7) // 8


INTEGERS = {
    "I8": Integer(1, 8, signed=True),
    "U8": Integer(2, 8, signed=False),
    "I4": Integer(3, 4, signed=True),
    "U4": Integer(4, 4, signed=False),
    "I16": Integer(5, 16, signed=True),
    "U16": Integer(6, 16, signed=False),
}
"""Element types by the names that tensor spans use."""

_CODES = {item.code: item for item in INTEGERS.values()}


class Axis(NamedTuple):
    """Which scale element e of a tensor has: (e // inner) % channels, and channels * (e // outer) more unless `outer` is 0.

    One for the tensor: 1, 1. One for each row: columns, rows. One for each column: 1, columns. One for each block of n
    in a row: n, blocks of the tensor. One for each block of n in a column: 1, columns, n * columns.
    """

    inner: int = 1
    channels: int = 1
    outer: int = 0


PER_TENSOR = Axis()


class Quantise(NamedTuple):
    """The parameters of a step."""

    target: Integer
    rule: Rule
    low: int
    high: int
    first: int
    axis: Axis


def quantise_step(
    values: int,
    scales: int,
    zeros: int | None = None,
    *,
    target: str,
    axis: Axis = PER_TENSOR,
    first: int = 0,
    rule: Rule = Rule.DIVIDE,
    limits: tuple[int, int] | None = None,
) -> Step:
    """Return the step that quantises floats. Values, scales and zero points are numbers of values.

    Floats and scales are F32, zero points are of type `target`, 0 without any. `first` is the place of the first float in its
    tensor, from which scales are counted. Results are cut off at `limits`, all that the type has by default. Elements of four
    bits are packed, the first one in the lower half.
    """
    kind = INTEGERS[target]
    low, high = limits or kind.range
    operands = (values, scales) if zeros is None else (values, scales, zeros)
    parameters = _PARAMETERS.pack(kind.code, rule, 0, low, high, axis.channels, first, axis.inner, axis.outer)
    return Step(QUANTISE, 1, operands, parameters)


def read_step(parameters: bytes) -> Quantise:
    """Return what the parameters of a step say; raise FormatError for others than a reader takes."""
    code, rule, spare, low, high, channels, first, inner, outer = read_parameters(
        "quantise", _PARAMETERS, parameters
    )
    if code not in _CODES or rule > sum(Rule) or spare:
        raise reject("quantise", f"type {code} and rule {rule}")
    target = _CODES[code]
    if not target.range[0] <= low <= high <= target.range[1]:
        raise reject("quantise", f"limits {low} and {high}")
    if not channels or not inner or first > _MAX_FIRST:
        raise reject("quantise", f"{channels} channels of {inner} elements")
    return Quantise(target, Rule(rule), low, high, first, Axis(inner, channels, outer))


def _size(parameters: bytes, sizes: Sequence[int]) -> int:
    step = read_step(parameters)
    if len(sizes) not in {2, 3} or sizes[0] % 4 or sizes[1] % 4 or not sizes[0]:
        raise reject("quantise", f"operands of {list(sizes)} bytes")
    count, scales = sizes[0] // 4, sizes[1] // 4
    groups = (step.first + count - 1) // step.axis.outer + 1 if step.axis.outer else 1
    if step.axis.channels * groups > scales or (len(sizes) == 3 and sizes[2] != step.target.packed(scales)):
        raise reject(
            "quantise", f"operands of {list(sizes)} bytes for {groups} times {step.axis.channels} scales"
        )
    return step.target.packed(count)


def _apply(parameters: bytes, operands: Sequence[Parts]) -> U8:
    step = read_step(parameters)
    scales: Floats = joined(operands[1]).view("<f4").astype(np.float32)
    zeros: Floats = np.zeros(len(scales), np.float32)
    if len(operands) == 3:
        zeros = _unpacked(joined(operands[2]), step.target, len(scales))
    # Parts of which each fills whole bytes.
    parts = in_units(operands[0], 8 if step.target.bits == 4 and len(operands[0]) > 1 else 4)
    out: U8 = np.empty(step.target.packed(sum(map(len, parts)) // 4), np.uint8)
    at = 0
    for part in parts:
        begin, at = at, at + len(part) // 4
        some = step._replace(first=step.first + begin)
        _quantise(part, scales, zeros, some, out[step.target.packed(begin) : step.target.packed(at)])
    return out


def _quantise(values: U8, scales: Floats, zeros: Floats, step: Quantise, out: U8) -> None:
    if _build.kernels is not None:
        bounds = step.target.bits, step.low, step.high, int(step.rule)
        channels = step.first, step.axis.inner, step.axis.channels, step.axis.outer
        _build.kernels.quantise(values, out, scales, zeros, *bounds, *channels)
        return
    floats = values.view("<f4")
    for block in blocks(len(floats)):
        found = quantise_floats(floats[block], *_channels(step, block, scales, zeros), step)
        _pack(found, step.target, out[step.target.packed(block.start) : step.target.packed(block.stop)])


def _channels(step: Quantise, block: slice, scales: Floats, zeros: Floats) -> tuple[Any, Any]:
    """Return scale and zero point of each element of a block, or one of each for all."""
    inner, channels, outer = step.axis
    if channels == 1 and not outer:
        return scales[0], zeros[0]
    places = np.arange(step.first + block.start, step.first + block.stop, dtype=np.uint64)
    numbers = places // np.uint64(inner) % np.uint64(channels)
    if outer:
        numbers += places // np.uint64(outer) * np.uint64(channels)
    index = numbers.astype(np.intp)
    return scales[index], zeros[index]


def quantise_floats(values: Floats, scales: Any, zeros: Any, step: Quantise) -> NDArray[np.int32]:
    """Return integers: the specification in numpy. Scales and zero points are F32, one for each value or one for all."""
    with np.errstate(all="ignore"):
        reciprocal = step.rule & Rule.RECIPROCAL
        scaled = values * (np.float32(1) / scales) if reciprocal else values / scales
    scaled = np.where(scales == 0, np.float32(0), scaled)
    after = zeros
    if step.rule & Rule.ZERO_FIRST:
        scaled, after = scaled + zeros, np.float32(0)
    # A NaN becomes the lower limit.
    scaled = np.fmin(np.fmax(scaled, np.float32(step.low) - after), np.float32(step.high) - after)
    if step.rule & Rule.HALF_AWAY:
        whole = np.trunc(scaled)
        scaled = whole + np.where(
            np.abs(scaled - whole) >= 0.5, np.copysign(np.float32(1), scaled), np.float32(0)
        )
    else:
        scaled = np.rint(scaled)
    found: NDArray[np.int32] = (scaled + after).astype(np.int32)
    return found


def _pack(found: NDArray[np.int32], target: Integer, out: U8) -> None:
    if target.bits == 4:
        nibbles = (found & 15).astype(np.uint8)
        out[:] = nibbles[::2]
        out[: len(nibbles) // 2] |= nibbles[1::2] << 4
    else:
        out.view(f"<u{target.bits // 8}")[:] = found.astype(f"<u{target.bits // 8}")


def _unpacked(data: U8, target: Integer, count: int) -> Floats:
    """Return packed integers as F32."""
    if target.bits == 4:
        nibbles = np.stack([data & 15, data >> 4], axis=1).reshape(-1)[:count].astype(np.int32)
        found = np.where(nibbles >= 8, nibbles - 16, nibbles) if target.signed else nibbles
    else:
        found = data.view(f"<{'i' if target.signed else 'u'}{target.bits // 8}")
    return found.astype(np.float32)


OPERATION = Operation("quantise", _size, _apply)
