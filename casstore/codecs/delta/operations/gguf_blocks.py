"""The blocks of GGUF in numpy: where their bytes lie, how scales are made or read, how quants are rounded and packed.

The specification of the compiled kernel, and its replacement where there is none. The rules are those of ggml's reference
quantisers (ggml-quants.c). Everything is float32, each operation rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from casstore.codecs.delta.operations.floats import FORMATS, Rounding, narrow, widen

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]
    Floats = NDArray[np.float32]

__all__ = ["BLOCKS", "LEVELS", "Block", "block_steps", "quantise_blocks"]

_F32, _F16 = FORMATS["F32"], FORMATS["F16"]
_ZERO = np.float32(0)
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The values of the sixteen quants of the IQ4 types."""


class Block(NamedTuple):
    """A type of block. `scales` are the ranges of bytes that are no quants, in the order in which they are given as an operand."""

    code: int
    """The type's number in GGUF files."""
    elements: int
    size: int
    scales: tuple[tuple[int, int], ...]
    has_rule: bool = False
    """Whether scales can be computed from the floats."""

    @property
    def scale_bytes(self) -> int:
        """Return how many bytes of a block are no quants."""
        return sum(end - begin for begin, end in self.scales)


BLOCKS = {
    "Q4_0": Block(2, 32, 18, ((0, 2),), has_rule=True),
    "Q4_1": Block(3, 32, 20, ((0, 4),), has_rule=True),
    "Q5_0": Block(6, 32, 22, ((0, 2),), has_rule=True),
    "Q5_1": Block(7, 32, 24, ((0, 4),), has_rule=True),
    "Q8_0": Block(8, 32, 34, ((0, 2),), has_rule=True),
    "Q2_K": Block(10, 256, 84, ((0, 16), (80, 84))),
    "Q3_K": Block(11, 256, 110, ((96, 110),)),
    "Q4_K": Block(12, 256, 144, ((0, 16),)),
    "Q5_K": Block(13, 256, 176, ((0, 16),)),
    "Q6_K": Block(14, 256, 210, ((192, 210),)),
    "IQ4_NL": Block(20, 32, 18, ((0, 2),)),
    "IQ4_XS": Block(23, 256, 136, ((0, 8),)),
}
"""Types of blocks by the names that tensor spans use."""


def quantise_blocks(name: str, values: Floats, scales: U8 | None) -> U8:
    """Return the blocks, one in a row, of floats, those of one block in a row; `scales` has the scale bytes of each, or is None."""
    block = BLOCKS[name]
    floats = np.where(np.isnan(values), _ZERO, values)
    out: U8 = np.zeros((len(floats), block.size), np.uint8)
    with np.errstate(all="ignore"):
        quants = _LEGACY[name](floats, scales, out) if block.has_rule else _given(name, floats, scales)
    if scales is not None:
        at = 0
        for begin, end in block.scales:
            out[:, begin:end] = scales[:, at : at + end - begin]
            at += end - begin
    _PACKED[name](quants, out)
    return out


# ---- scales


def _single(data: U8) -> Floats:
    """Return F16 numbers, two bytes in a row, as a column of F32."""
    return widen(np.ascontiguousarray(data).view("<u2"), _F16, _F32).view("<f4").astype(np.float32)


def _half(column: Floats) -> U8:
    """Return a column of F32 as F16, two bytes in a row."""
    words = column.astype("<f4").view("<u4")
    return narrow(words, _F32, _F16, Rounding.NEAREST_EVEN, saturate=False).view(np.uint8)


def _inverse(scale: Floats) -> Floats:
    found: Floats = np.where(scale == 0, _ZERO, np.float32(1) / scale)
    return found


def _first(values: Floats, index: NDArray[np.intp]) -> Floats:
    return np.take_along_axis(values, index[:, None], axis=1)


def _cut(values: Floats, low: int, high: int) -> Floats:
    """Cut off at limits; what is no number becomes the lower one."""
    found: Floats = np.fmin(np.fmax(values, np.float32(low)), np.float32(high))
    return found


def _integers(values: NDArray[Any]) -> NDArray[np.int32]:
    return values.astype(np.int32)


def _nearest(values: Floats, low: int, high: int) -> NDArray[np.int32]:
    return _integers(np.rint(_cut(values, low, high)))


def _q8_0(values: Floats, scales: U8 | None, out: U8) -> NDArray[np.int32]:
    if scales is None:
        scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        out[:, :2] = _half(scale)
    else:
        scale = _single(scales)
    scaled = values * _inverse(scale)
    # A NaN is 0 here, in the middle.
    scaled = _cut(np.where(np.isnan(scaled), _ZERO, scaled), -128, 127)
    whole = np.trunc(scaled)
    away = np.where(np.abs(scaled - whole) >= 0.5, np.copysign(np.float32(1), scaled), _ZERO)
    return _integers(whole + away)


def _signed(levels: int) -> Callable[[Floats, U8 | None, U8], NDArray[np.int32]]:
    """Return the rule of Q4_0 and Q5_0: the number of greatest magnitude, the first of several, becomes 0."""

    def rule(values: Floats, scales: U8 | None, out: U8) -> NDArray[np.int32]:
        if scales is None:
            greatest = _first(values, np.abs(values).argmax(axis=1))
            zeros: Floats = np.where(greatest == 0, _ZERO, greatest)
            scale = zeros / np.float32(-levels // 2)
            out[:, :2] = _half(scale)
        else:
            scale = _single(scales)
        scaled = values * _inverse(scale) + np.float32(levels // 2 + 0.5)
        return _integers(np.trunc(_cut(scaled, 0, levels - 1)))

    return rule


def _ranged(levels: int) -> Callable[[Floats, U8 | None, U8], NDArray[np.int32]]:
    """Return the rule of Q4_1 and Q5_1: the least number becomes 0, the greatest one the last quant."""

    def rule(values: Floats, scales: U8 | None, out: U8) -> NDArray[np.int32]:
        if scales is None:
            least = _first(values, values.argmin(axis=1))
            scale = (_first(values, values.argmax(axis=1)) - least) / np.float32(levels - 1)
            out[:, :2], out[:, 2:4] = _half(scale), _half(least)
        else:
            scale, least = _single(scales[:, :2]), _single(scales[:, 2:4])
        scaled = (values - least) * _inverse(scale) + np.float32(0.5)
        return _integers(np.trunc(_cut(scaled, 0, levels - 1)))

    return rule


_LEGACY = {
    "Q8_0": _q8_0,
    "Q4_0": _signed(16),
    "Q5_0": _signed(32),
    "Q4_1": _ranged(16),
    "Q5_1": _ranged(32),
}


def _packed_pairs(data: U8) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the eight scales and eight minimums of six bits of Q4_K and Q5_K, of twelve bytes in a row."""
    bytes_ = data.astype(np.int32)
    low, middle, high = bytes_[:, :4], bytes_[:, 4:8], bytes_[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | low >> 6 << 4], axis=1)
    return scales, np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=1)


def _packed_signed(data: U8) -> NDArray[np.int32]:
    """Return the sixteen scales of six bits of Q3_K, of twelve bytes in a row."""
    bytes_ = data.astype(np.int32)
    low = np.concatenate([bytes_[:, :8] & 15, bytes_[:, :8] >> 4], axis=1)
    high = np.concatenate([bytes_[:, 8:12] >> 2 * part & 3 for part in range(4)], axis=1)
    return _integers((low | high << 4) - 32)


def _split(data: U8) -> NDArray[np.int32]:
    """Return the eight scales of six bits of IQ4_XS, of two and four bytes in a row."""
    bytes_ = data.astype(np.int32)
    high = bytes_[:, :1] | bytes_[:, 1:2] << 8
    low = np.stack([bytes_[:, 2:6] & 15, bytes_[:, 2:6] >> 4], axis=2).reshape(-1, 8)
    return _integers((low | (high >> 2 * np.arange(8) & 3) << 4) - 32)


def block_steps(name: str, scales: U8) -> tuple[Floats, Floats | None]:
    """Return what one quant more adds, for each part of blocks, and what is taken off then, None for nothing.

    `scales` has the bytes of blocks that are no quants, those of one in a row.
    """
    offsets = None
    if name in {"Q4_1", "Q5_1"}:
        steps, offsets = _single(scales[:, :2]), -_single(scales[:, 2:4])
    elif BLOCKS[name].scale_bytes == 2:
        steps = _single(scales)
    elif name == "IQ4_XS":
        steps = _single(scales[:, :2]) * _split(scales[:, 2:]).astype(np.float32)
    elif name == "Q6_K":
        steps = _single(scales[:, 16:]) * np.ascontiguousarray(scales[:, :16]).view(np.int8).astype(
            np.float32
        )
    elif name == "Q3_K":
        steps = _single(scales[:, 12:]) * _packed_signed(scales[:, :12]).astype(np.float32)
    elif name == "Q2_K":
        steps = _single(scales[:, 16:18]) * (scales[:, :16] & 15).astype(np.float32)
        offsets = _single(scales[:, 18:]) * (scales[:, :16] >> 4).astype(np.float32)
    else:
        factors, minimums = _packed_pairs(scales[:, 4:])
        steps = _single(scales[:, :2]) * factors.astype(np.float32)
        offsets = _single(scales[:, 2:4]) * minimums.astype(np.float32)
    return steps, offsets


def _given(name: str, values: Floats, scales: U8 | None) -> NDArray[np.int32]:
    """Return the quants of a type whose scales are given."""
    assert scales is not None
    steps, offsets = block_steps(name, scales)
    parts = values.reshape(len(values), steps.shape[1], -1)
    if name.startswith("IQ4"):
        return _level(parts * _inverse(steps)[:, :, None]).reshape(len(values), -1)
    if offsets is not None:
        parts = parts + offsets[:, :, None]
    low, high = {"Q6_K": (-32, 31), "Q3_K": (-4, 3), "Q2_K": (0, 3), "Q4_K": (0, 15), "Q5_K": (0, 31)}[name]
    quants = _nearest(parts / steps[:, :, None], low, high) - low
    # A part without a step keeps what ggml began with.
    return np.where(steps[:, :, None] == 0, 0, quants).reshape(len(values), -1)


def _level(scaled: Floats) -> NDArray[np.int32]:
    """Return the numbers of the nearest levels, the upper one of two equally near ones."""
    above = np.searchsorted(LEVELS, scaled, side="right").clip(1, 15)
    nearer = scaled - LEVELS[above - 1] < LEVELS[above] - scaled
    return _integers(above - nearer)


# ---- packing


def _nibbles(quants: NDArray[Any], half: int) -> U8:
    """Return quants of four bits: of every two halves, the first in the lower bits, the second in the upper ones."""
    pairs: NDArray[Any] = (quants & 15).astype(np.uint8).reshape(len(quants), -1, 2, half)
    found: U8 = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(quants), -1)
    return found


def _pairs(bits: NDArray[Any]) -> U8:
    """Return quants of two bits: of every 128, four groups of 32 share the same bytes."""
    parts: NDArray[Any] = (bits & 3).astype(np.uint8).reshape(len(bits), 2, 4, 32)
    found: U8 = parts[:, :, 0] | parts[:, :, 1] << 2 | parts[:, :, 2] << 4 | parts[:, :, 3] << 6
    return found.reshape(len(bits), 64)


def _columns(bits: NDArray[Any]) -> U8:
    """Return single bits: bit k of byte n is that of quant 32 k + n."""
    return np.packbits(bits.astype(np.uint8).reshape(len(bits), 8, 32), axis=1, bitorder="little").reshape(
        -1, 32
    )


def _pack_q8_0(quants: NDArray[np.int32], out: U8) -> None:
    out[:, 2:] = quants.astype(np.int8).view(np.uint8)


def _pack_4(begin: int, half: int) -> Callable[[NDArray[np.int32], U8], None]:
    def pack(quants: NDArray[np.int32], out: U8) -> None:
        out[:, begin:] = _nibbles(quants, half)

    return pack


def _pack_5(begin: int) -> Callable[[NDArray[np.int32], U8], None]:
    def pack(quants: NDArray[np.int32], out: U8) -> None:
        out[:, begin : begin + 4] = np.packbits((quants >> 4).astype(np.uint8), axis=1, bitorder="little")
        out[:, begin + 4 :] = _nibbles(quants, 16)

    return pack


def _pack_q5_k(quants: NDArray[np.int32], out: U8) -> None:
    out[:, 16:48] = _columns(quants >> 4)
    out[:, 48:] = _nibbles(quants, 32)


def _pack_q6_k(quants: NDArray[np.int32], out: U8) -> None:
    out[:, :128] = _nibbles(quants, 64)
    out[:, 128:192] = _pairs(quants >> 4)


def _pack_q3_k(quants: NDArray[np.int32], out: U8) -> None:
    out[:, :32] = _columns(quants >> 2)
    out[:, 32:96] = _pairs(quants)


def _pack_q2_k(quants: NDArray[np.int32], out: U8) -> None:
    out[:, 16:80] = _pairs(quants)


_PACKED = {
    "Q4_0": _pack_4(2, 16),
    "Q4_1": _pack_4(4, 16),
    "Q5_0": _pack_5(2),
    "Q5_1": _pack_5(4),
    "Q8_0": _pack_q8_0,
    "Q2_K": _pack_q2_k,
    "Q3_K": _pack_q3_k,
    "Q4_K": _pack_4(16, 32),
    "Q5_K": _pack_q5_k,
    "Q6_K": _pack_q6_k,
    "IQ4_NL": _pack_4(2, 16),
    "IQ4_XS": _pack_4(8, 16),
}
