"""*combine*: means, weighted sums and task arithmetic of several tensors, in the order of steps that their makers have."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from casstore import _build
from casstore.codecs.delta.operations.floats import CODES, FORMATS, Rounding, narrow, widen
from casstore.codecs.delta.operations.operation import Operation, blocks, joined, reject
from casstore.codecs.delta.piece import COMBINE, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.operations.floats import Float
    from casstore.codecs.delta.operations.operation import Parts

    U8 = NDArray[np.uint8]

__all__ = ["OPERATION", "Combination", "combine_floats", "combine_step", "rounded", "without_nans"]

_HEAD = struct.Struct("<BBBB")
_ROUNDED = {"F64": {"F64"}, "F32": {"F32", "F16", "BF16"}}


class Combination(IntEnum):
    """In which order a combination is computed. r rounds to the format; w are the weights, d is the divisor."""

    SUM = 1
    """t = r(w0·x0), then t = r(t + r(wk·xk)) for each further operand, and r(t / d)."""
    FUSED_SUM = 2
    """The same with t = r(t + wk·xk), the product not rounded."""
    TASKS = 3
    """t = x0, then t = r(t + r(w·r(a - b))) for each pair of further operands."""
    FUSED_TASKS = 4
    """The same with t = r(t + w·r(a - b)), the product not rounded."""
    JOINT_TASKS = 5
    """t = 0, then as TASKS, and r(t + x0) at the end."""


class _Combine(NamedTuple):
    element: Float
    rounding: Float
    combination: Combination
    weights: tuple[float, ...]


def combine_step(
    operands: Sequence[int],
    *,
    weights: Sequence[float],
    divisor: float = 1,
    combination: Combination = Combination.SUM,
    element: str = "F32",
    rounding: str | None = None,
) -> Step:
    """Return the step that combines floats; operands are numbers of values, of type `element`, F32 or F64.

    Sums have a weight for each operand; a mean has weights 1, and their number as divisor. Tasks have one for each pair after
    the first operand. With `rounding` F16 or BF16, each step rounds to that, as arithmetic on such tensors does; a
    cast on either side does the rest. Weights are rounded to `element` first.
    """
    sums = combination in {Combination.SUM, Combination.FUSED_SUM}
    every = [*weights, divisor] if sums else list(weights)
    head = _HEAD.pack(FORMATS[element].code, FORMATS[rounding or element].code, combination, 0)
    return Step(COMBINE, 1, tuple(operands), head + np.array(every, _type(FORMATS[element])).tobytes())


def _type(element: Float) -> str:
    return f"<f{element.width}"


def _read(parameters: bytes, operands: int) -> _Combine:
    if len(parameters) < _HEAD.size:
        raise reject("combine", f"{len(parameters)} bytes of parameters")
    element, rounding, combination, spare = _HEAD.unpack_from(parameters)
    names = [CODES[code].name if code in CODES else "" for code in (element, rounding)]
    if names[1] not in _ROUNDED.get(names[0], ()) or combination not in list(Combination) or spare:
        raise reject("combine", f"parameters {element}, {rounding}, {combination}")
    fused = combination in {Combination.FUSED_SUM, Combination.FUSED_TASKS}
    if fused and names[0] == "F64":
        raise reject("combine", "a fused order for F64")
    sums = combination in {Combination.SUM, Combination.FUSED_SUM}
    width = CODES[element].width
    count = operands + 1 if sums else operands // 2
    if len(parameters) != _HEAD.size + width * count or not (sums or operands % 2):
        raise reject("combine", f"{len(parameters)} bytes of parameters for {operands} operands")
    weights = np.frombuffer(parameters, _type(CODES[element]), offset=_HEAD.size).tolist()
    return _Combine(CODES[element], CODES[rounding], Combination(combination), tuple(weights))


def _size(parameters: bytes, sizes: Sequence[int]) -> int:
    step = _read(parameters, len(sizes))
    if len(set(sizes)) != 1 or sizes[0] % step.element.width:
        raise reject("combine", f"operands of {list(sizes)} bytes")
    return sizes[0]


def _apply(parameters: bytes, operands: Sequence[Parts]) -> U8:
    out: U8 = np.empty(sum(map(len, operands[0])), np.uint8)
    _fill(parameters, operands, out)
    return out


def _fill(parameters: bytes, operands: Sequence[Parts], out: U8) -> None:
    step = _read(parameters, len(operands))
    arrays = [joined(operand) for operand in operands]
    if _build.kernels is not None:
        weights = np.array(step.weights, np.float64)
        codes = step.element.code, step.rounding.code, int(step.combination)
        _build.kernels.combine(tuple(arrays), out, *codes, weights)
        return
    floats = [array.view(_type(step.element)) for array in arrays]
    found = out.view(step.element.words)
    for block in blocks(len(found)):
        found[block] = without_nans(combine_floats([array[block] for array in floats], step), step.element)


def rounded(values: NDArray[Any], form: Float) -> NDArray[Any]:
    """Return F32 values rounded to F16 or BF16, as F32; others as they are."""
    if form.width != 2:
        return values
    single = FORMATS["F32"]
    words = narrow(values.view(single.words), single, form, Rounding.NEAREST_EVEN, saturate=False)
    return widen(words, form, single).view("<f4")


def without_nans(values: NDArray[Any], element: Float) -> NDArray[Any]:
    """Return bit patterns with one pattern for all NaNs: what arithmetic makes of one differs between machines."""
    words: NDArray[Any] = np.where(
        np.isnan(values), element.beyond | 1 << element.mantissa - 1, values.view(element.words)
    ).astype(element.words)
    return words


def combine_floats(operands: Sequence[NDArray[Any]], step: _Combine) -> NDArray[Any]:
    """Return the combination: the specification in numpy."""
    first, *others = operands
    weights = np.array(step.weights, first.dtype)
    form = step.rounding
    with np.errstate(all="ignore"):
        if step.combination in {Combination.SUM, Combination.FUSED_SUM}:
            total = rounded(weights[0] * first, form)
            terms = zip(weights[1:-1], others, strict=True)
        else:
            total = np.zeros_like(first) if step.combination is Combination.JOINT_TASKS else first
            pairs = zip(others[::2], others[1::2], strict=True)
            terms = zip(weights, (rounded(one - other, form) for one, other in pairs), strict=True)
        for weight, term in terms:
            if step.combination in {Combination.FUSED_SUM, Combination.FUSED_TASKS}:
                product = np.float64(weight) * term.astype(np.float64)
                total = rounded((total.astype(np.float64) + product).astype(np.float32), form)
            else:
                total = rounded(total + rounded(weight * term, form), form)
        if step.combination in {Combination.SUM, Combination.FUSED_SUM}:
            return rounded(total / weights[-1], form)
        return rounded(total + first, form) if step.combination is Combination.JOINT_TASKS else total


OPERATION = Operation("combine", _size, _apply, fill=_fill)
