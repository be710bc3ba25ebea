"""*gguf*: floats to blocks of GGUF, with scales by their own rule or as they are given."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from casstore import _build
from casstore.codecs.delta.operations.gguf_blocks import BLOCKS, Block, quantise_blocks
from casstore.codecs.delta.operations.operation import (
    Operation,
    blocks,
    in_units,
    joined,
    read_parameters,
    reject,
)
from casstore.codecs.delta.piece import GGUF, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.operations.operation import Parts

    U8 = NDArray[np.uint8]

__all__ = ["BLOCKS", "OPERATION", "Block", "gguf_step", "scales_of"]

_PARAMETERS = struct.Struct("<BBH")
_NAMES = {block.code: name for name, block in BLOCKS.items()}
_AT_ONCE = 1 << 15


def gguf_step(values: int, scales: int | None = None, *, target: str) -> Step:
    """Return the step that makes whole blocks of type `target` of F32 values; operands are numbers of values.

    `scales` has for each block the bytes that are no quants, as `scales_of` returns them. Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0
    also do without: then scales are computed as ggml does.
    """
    operands = (values,) if scales is None else (values, scales)
    return Step(GGUF, 1, operands, _PARAMETERS.pack(BLOCKS[target].code, scales is not None, 0))


def scales_of(data: U8, *, target: str) -> U8:
    """Return the bytes of whole blocks that are no quants, block by block: what a step takes as scales."""
    block = BLOCKS[target]
    rows = data.reshape(-1, block.size)
    return np.concatenate([rows[:, begin:end] for begin, end in block.scales], axis=1).reshape(-1)


def _read(parameters: bytes) -> tuple[str, bool]:
    code, given, spare = read_parameters("gguf", _PARAMETERS, parameters)
    if code not in _NAMES or given > 1 or spare or not (given or BLOCKS[_NAMES[code]].has_rule):
        raise reject("gguf", f"type {code}, with {given} operands for scales")
    return _NAMES[code], bool(given)


def _size(parameters: bytes, sizes: Sequence[int]) -> int:
    name, given = _read(parameters)
    block = BLOCKS[name]
    count, rest = divmod(sizes[0], 4 * block.elements)
    if rest or not count or list(sizes[1:]) != [count * block.scale_bytes] * given:
        raise reject("gguf", f"operands of {list(sizes)} bytes for {name}")
    return count * block.size


def _apply(parameters: bytes, operands: Sequence[Parts]) -> U8:
    name, given = _read(parameters)
    block = BLOCKS[name]
    scales = joined(operands[1]) if given else None
    parts = in_units(operands[0], 4 * block.elements)
    out: U8 = np.empty(sum(map(len, parts)) // (4 * block.elements) * block.size, np.uint8)
    at = 0
    for part in parts:
        begin, at = at, at + len(part) // (4 * block.elements)
        some = None if scales is None else scales[begin * block.scale_bytes : at * block.scale_bytes]
        _quantise(name, part, some, out[begin * block.size : at * block.size])
    return out


def _quantise(name: str, values: U8, scales: U8 | None, out: U8) -> None:
    block = BLOCKS[name]
    if _build.kernels is not None:
        _build.kernels.gguf(values, out, scales, block.code)
        return
    floats = values.view("<f4").reshape(-1, block.elements)
    rows = None if scales is None else scales.reshape(-1, block.scale_bytes)
    for some in blocks(len(floats), _AT_ONCE // block.elements):
        found = quantise_blocks(name, floats[some].astype(np.float32), None if rows is None else rows[some])
        out.reshape(-1, block.size)[some] = found


def _strides(parameters: bytes) -> tuple[int, ...]:
    block = BLOCKS[_read(parameters)[0]]
    return block.size, 4, block.scale_bytes


OPERATION = Operation("gguf", _size, _apply, _strides)
