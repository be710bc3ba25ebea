"""The numbers that a tensor's bytes stand for, and how far two runs of numbers are apart. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.codecs.delta.operations.floats import FORMATS, widen
from casstore.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[Any]
    U8 = NDArray[np.uint8]

__all__ = ["Difference", "difference", "numbers", "unequal_words"]

_BLOCK = 64 << 10
"""Elements that are compared at once: what is made of them stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far elements are apart. `total` is the sum of the absolute differences, `largest` the largest of them.

    Both leave out the `not_finite` elements of which the difference is no finite number.
    """

    elements: int = 0
    differing: int = 0
    not_finite: int = 0
    largest: float = 0.0
    total: float = 0.0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.elements + other.elements,
            self.differing + other.differing,
            self.not_finite + other.not_finite,
            max(self.largest, other.largest),
            self.total + other.total,
        )

    @property
    def mean(self) -> float:
        """The mean of the absolute differences."""
        finite = self.elements - self.not_finite
        return self.total / finite if finite else 0.0


def numbers(data: U8, dtype: str) -> Numbers | None:
    """Return the values of whole elements, or blocks, of a type; None for types without a rule here.

    Floats of one and two bytes come as F32 where numpy has no type of them, and so do blocks of GGUF. The result may be a view.
    """
    if dtype in FORMATS and FORMATS[dtype].width < 4 and dtype != "F16":
        form = FORMATS[dtype]
        return widen(data.view(form.words), form, FORMATS["F32"]).view("<f4")
    if dtype == "F8_E8M0":
        # The format of scales in the OCP Microscaling specification: an exponent alone, and 255 is no number.
        with np.errstate(over="ignore"):
            powers = np.ldexp(np.float32(1), data.astype(np.int32) - 127)
        return np.where(data == 255, np.float32(np.nan), powers)
    if dtype == "BOOL":
        return data
    if dtype in _BLOCKS:
        return _BLOCKS[dtype](data.reshape(-1, DTYPES[dtype].block_bytes))
    known = DTYPES.get(dtype)
    if known is None or known.numpy is None or dtype == "C32":
        return None
    return data.view(known.numpy)


def difference(one: Numbers, other: Numbers) -> Difference:
    """Return how far two arrays of as many numbers are apart, element by element. NaNs do not differ from NaNs."""
    found = Difference()
    for begin in range(0, len(one), _BLOCK):
        found += _difference(one[begin : begin + _BLOCK], other[begin : begin + _BLOCK])
    return found


def unequal_words(one: U8, other: U8, width: int) -> int:
    """Return how many elements of so many bytes differ in any bit."""
    if width in {1, 2, 4, 8}:
        return int(np.count_nonzero(one.view(f"<u{width}") != other.view(f"<u{width}")))
    return int(np.count_nonzero((one != other).reshape(-1, width).any(axis=1)))


def _difference(one: Numbers, other: Numbers) -> Difference:
    # Numbers that differ by more than a float holds differ by infinity, and so does their sum.
    with np.errstate(all="ignore"):
        if one.dtype == other.dtype and one.dtype.kind in "iu":
            # Distances of integers may need all bits of their unsigned type.
            words = f"<u{one.dtype.itemsize}"
            up, down = one.view(words) - other.view(words), other.view(words) - one.view(words)
            gaps = np.where(one > other, up, down).astype(np.float64)
            return Difference(len(one), int(np.count_nonzero(gaps)), 0, float(gaps.max()), float(gaps.sum()))
        kind = np.complex128 if "c" in {one.dtype.kind, other.dtype.kind} else np.float64
        gaps = np.abs(np.subtract(one, other, dtype=kind, casting="unsafe"))
        finite = np.isfinite(gaps)
        if finite.all():
            return Difference(len(one), int(np.count_nonzero(gaps)), 0, float(gaps.max()), float(gaps.sum()))
        odd = ~finite
        apart = (one[odd] != other[odd]) & ~(np.isnan(one[odd]) & np.isnan(other[odd]))
        gaps = gaps[finite]
        largest = float(gaps.max()) if gaps.size else 0.0
        differing = int(np.count_nonzero(gaps)) + int(np.count_nonzero(apart))
        return Difference(len(one), differing, int(apart.sum()), largest, float(gaps.sum()))


# ---- blocks of GGUF (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h)


def _half(blocks: U8, begin: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view("<f2").astype(np.float32)


def _nibbles(data: U8) -> NDArray[np.float32]:
    """Return the low halves of the bytes, then the high ones."""
    return np.concatenate([data & 15, data >> 4], axis=1).astype(np.float32)


def _fifth_bits(data: U8) -> NDArray[np.float32]:
    """Return 16 for each bit that is set of four bytes, 0 for each other."""
    return np.unpackbits(data, axis=1, bitorder="little").astype(np.float32) * np.float32(16)


def _q8_0(blocks: U8) -> Numbers:
    return (_half(blocks, 0) * blocks[:, 2:].view(np.int8)).ravel()


def _q4_0(blocks: U8) -> Numbers:
    return (_half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)).ravel()


def _q4_1(blocks: U8) -> Numbers:
    return (_half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)).ravel()


def _q5_0(blocks: U8) -> Numbers:
    quants = _nibbles(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6]) - 16
    return (_half(blocks, 0) * quants).ravel()


def _q5_1(blocks: U8) -> Numbers:
    quants = _nibbles(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8])
    return (_half(blocks, 0) * quants + _half(blocks, 2)).ravel()


_BLOCKS = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1}
