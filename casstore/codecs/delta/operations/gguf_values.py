"""The floats for which blocks of GGUF stand, about: what a quant was made of is half a step away at most.

For finding floats that are like blocks, not for decoding: no delta rests on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta.operations.gguf_blocks import BLOCKS, LEVELS, block_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]
    Floats = NDArray[np.float32]

__all__ = ["block_values"]

_WIDEST_LEVEL = 24.0
"""The largest distance between neighbouring levels of the IQ4 types."""


def block_values(name: str, rows: U8) -> tuple[Floats, Floats]:
    """Return the values of whole blocks, those of one in a row, and how far apart neighbouring values are there."""
    block = BLOCKS[name]
    scales = np.concatenate([rows[:, begin:end] for begin, end in block.scales], axis=1)
    with np.errstate(all="ignore"):
        steps, offsets = block_steps(name, scales)
        quants, zero = _UNPACKED[name](rows)
        parts = quants.reshape(len(rows), steps.shape[1], -1)
        is_levels = name.startswith("IQ4")
        levels = LEVELS[parts] if is_levels else (parts - zero).astype(np.float32)
        values = levels * steps[:, :, None]
        if offsets is not None:
            values -= offsets[:, :, None]
        apart = np.abs(steps) * np.float32(_WIDEST_LEVEL if is_levels else 1)
    return (
        values.reshape(len(rows), block.elements),
        np.repeat(apart, block.elements // steps.shape[1], axis=1),
    )


def _nibbles(data: U8, half: int) -> NDArray[np.int32]:
    """Return quants of four bits: of every two halves, the first in the lower bits, the second in the upper ones."""
    bytes_ = data.astype(np.int32).reshape(len(data), -1, 1, half)
    return np.concatenate([bytes_ & 15, bytes_ >> 4], axis=2).reshape(len(data), -1)


def _pairs(data: U8) -> NDArray[np.int32]:
    """Return quants of two bits: of every 128, four groups of 32 share the same bytes."""
    bytes_ = data.astype(np.int32).reshape(len(data), -1, 1, 32)
    return np.concatenate([bytes_ >> 2 * group & 3 for group in range(4)], axis=2).reshape(len(data), -1)


def _columns(data: U8) -> NDArray[np.int32]:
    """Return single bits: bit k of byte n is that of quant 32 k + n."""
    bits = np.unpackbits(data.reshape(len(data), 32, 1), axis=2, bitorder="little")
    return bits.transpose(0, 2, 1).reshape(len(data), 256).astype(np.int32)


def _q8_0(rows: U8) -> tuple[NDArray[np.int32], int]:
    return np.ascontiguousarray(rows[:, 2:]).view(np.int8).astype(np.int32), 0


def _four(begin: int, half: int, zero: int) -> Callable[[U8], tuple[NDArray[np.int32], int]]:
    def unpack(rows: U8) -> tuple[NDArray[np.int32], int]:
        return _nibbles(np.ascontiguousarray(rows[:, begin:]), half), zero

    return unpack


def _five(begin: int, zero: int) -> Callable[[U8], tuple[NDArray[np.int32], int]]:
    def unpack(rows: U8) -> tuple[NDArray[np.int32], int]:
        high = np.unpackbits(rows[:, begin : begin + 4], axis=1, bitorder="little").astype(np.int32)
        return _nibbles(np.ascontiguousarray(rows[:, begin + 4 :]), 16) | high << 4, zero

    return unpack


def _q5_k(rows: U8) -> tuple[NDArray[np.int32], int]:
    high = _columns(np.ascontiguousarray(rows[:, 16:48]))
    return _nibbles(np.ascontiguousarray(rows[:, 48:]), 32) | high << 4, 0


def _q6_k(rows: U8) -> tuple[NDArray[np.int32], int]:
    high = _pairs(np.ascontiguousarray(rows[:, 128:192]))
    return _nibbles(np.ascontiguousarray(rows[:, :128]), 64) | high << 4, 32


def _q3_k(rows: U8) -> tuple[NDArray[np.int32], int]:
    high = _columns(np.ascontiguousarray(rows[:, :32]))
    return _pairs(np.ascontiguousarray(rows[:, 32:96])) | high << 2, 4


def _q2_k(rows: U8) -> tuple[NDArray[np.int32], int]:
    return _pairs(np.ascontiguousarray(rows[:, 16:80])), 0


_UNPACKED = {
    "Q4_0": _four(2, 16, 8),
    "Q4_1": _four(4, 16, 0),
    "Q5_0": _five(2, 16),
    "Q5_1": _five(4, 0),
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _four(16, 32, 0),
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _four(2, 16, 0),
    "IQ4_XS": _four(8, 16, 0),
}
