"""*cast*: floats in another format, with rounding and saturation as parameters."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from casstore import _build
from casstore.codecs.delta.operations.floats import CODES, FORMATS, Rounding, narrow, widen
from casstore.codecs.delta.operations.operation import (
    Operation,
    Source,
    blocks,
    in_units,
    read_parameters,
    reject,
)
from casstore.codecs.delta.piece import CAST, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.operations.floats import Float
    from casstore.codecs.delta.operations.operation import Parts

    U8 = NDArray[np.uint8]

_PARAMETERS = struct.Struct("<BBBB")
_SATURATE = 1


def cast_step(
    operand: int,
    *,
    source: str,
    target: str,
    rounding: Rounding = Rounding.NEAREST_EVEN,
    saturate: bool = False,
) -> Step:
    """Return the step that casts a value; the formats are dtypes as in tensor spans, such as F32, BF16, F8_E4M3.

    From F64 to all others, from F32 to all others, and from all others to F32. Widening has no rounding.
    """
    formats = FORMATS[source].code, FORMATS[target].code
    return Step(CAST, 1, (operand,), _PARAMETERS.pack(*formats, rounding, _SATURATE * saturate))


def _read(parameters: bytes) -> tuple[Float, Float, Rounding, bool]:
    source, target, rounding, flags = read_parameters("cast", _PARAMETERS, parameters)
    if source not in CODES or target not in CODES or rounding > max(Rounding) or flags > _SATURATE:
        raise reject("cast", f"parameters {source}, {target}, {rounding}, {flags}")
    one, other = CODES[source], CODES[target]
    down = one.width > other.width and one.name in {"F64", "F32"}
    up = other.width > one.width and "F32" in {one.name, other.name}
    if not down and (not up or rounding or flags):
        raise reject("cast", f"no rule from {one.name} to {other.name}")
    return one, other, Rounding(rounding), bool(flags)


def _size(parameters: bytes, sizes: Sequence[int]) -> int:
    source, target, *_ = _read(parameters)
    if len(sizes) != 1 or sizes[0] % source.width:
        raise reject("cast", f"operands of {list(sizes)} bytes")
    return sizes[0] // source.width * target.width


def _apply(parameters: bytes, operands: Sequence[Parts]) -> U8:
    source, target, *_ = _read(parameters)
    out: U8 = np.empty(sum(map(len, operands[0])) // source.width * target.width, np.uint8)
    _fill(parameters, operands, out)
    return out


def _fill(parameters: bytes, operands: Sequence[Parts], out: U8) -> None:
    source, target, rounding, saturate = _read(parameters)
    at = 0
    for part in in_units(operands[0], source.width):
        end = at + len(part) // source.width * target.width
        cast_floats(part, source, target, rounding=rounding, saturate=saturate, out=out[at:end])
        at = end


def cast_floats(
    values: U8,
    source: Float,
    target: Float,
    *,
    rounding: Rounding = Rounding.NEAREST_EVEN,
    saturate: bool = False,
    out: U8,
) -> None:
    """Write floats, whole elements, to `out` in another format; the formats are a pair that `cast_step` allows."""
    count = len(values) // source.width
    if _build.kernels is not None:
        _build.kernels.cast(values, out, source.code, target.code, int(rounding), saturate)
        return
    words, found = values.view(source.words), out.view(target.words)
    for block in blocks(count):
        if target.width < source.width:
            found[block] = narrow(words[block], source, target, rounding, saturate=saturate)
        else:
            found[block] = widen(words[block], source, target)


def _source(parameters: bytes, operands: Sequence[Parts]) -> Source:
    source, target, rounding, saturate = _read(parameters)
    parts = in_units(operands[0], source.width)
    made = 0 if parts is operands[0] else len(parts[0])
    return Source(parts, (source.code, target.code, int(rounding), saturate), made)


OPERATION = Operation("cast", _size, _apply, fill=_fill, source=_source)
