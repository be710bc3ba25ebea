"""Floats of 1 to 8 bytes: their formats, and narrowing and widening in integer arithmetic, so that all machines agree.

What is here in numpy is the specification of the compiled kernels, and their replacement where there are none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[Any]

__all__ = ["CODES", "FORMATS", "Float", "Rounding", "narrow", "widen"]


class Rounding(IntEnum):
    """Which of two neighbours a value between them becomes."""

    NEAREST_EVEN = 0
    TOWARD_ZERO = 1
    NEAREST_AWAY = 2
    """The nearest; the one of greater magnitude, if both are."""


@dataclass(frozen=True, slots=True)
class Float:
    """A format: sign, exponent with `bias`, `mantissa` bits. `beyond` is the pattern of infinity, or of NaN where there is none.

    `nan` is the only NaN's pattern without sign, or None where an exponent of ones makes NaNs as in IEEE 754. With
    `one_zero` there is no negative zero, and its pattern is the NaN.
    """

    name: str
    code: int
    width: int
    mantissa: int
    bias: int
    largest: int
    beyond: int
    nan: int | None = None
    one_zero: bool = False

    @property
    def words(self) -> str:
        """The numpy type of the bit patterns."""
        return f"<u{self.width}"


FORMATS = {
    item.name: item
    for item in (
        Float("F64", 1, 8, 52, 1023, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000),
        Float("F32", 2, 4, 23, 127, 0x7F7FFFFF, 0x7F800000),
        Float("F16", 3, 2, 10, 15, 0x7BFF, 0x7C00),
        Float("BF16", 4, 2, 7, 127, 0x7F7F, 0x7F80),
        Float("F8_E4M3", 5, 1, 3, 7, 0x7E, 0x7F, 0x7F),
        Float("F8_E5M2", 6, 1, 2, 15, 0x7B, 0x7C),
        Float("F8_E4M3FNUZ", 7, 1, 3, 8, 0x7F, 0x80, 0x80, one_zero=True),
        Float("F8_E5M2FNUZ", 8, 1, 2, 16, 0x7F, 0x80, 0x80, one_zero=True),
    )
}
"""Formats by the names that tensor spans use."""

CODES = {item.code: item for item in FORMATS.values()}
"""Formats by their numbers in parameters."""


def narrow(words: Words, source: Float, target: Float, rounding: Rounding, *, saturate: bool) -> Words:
    """Return the bit patterns of `target` nearest to those of `source`, F64 or F32, as format/README.md says."""
    number: Any = np.dtype(source.words).type
    drop = source.mantissa - target.mantissa
    hidden, normal = 1 << source.mantissa, source.bias - target.bias + 1
    magnitude = words & number((1 << 8 * source.width - 1) - 1)
    exponent = magnitude >> number(source.mantissa)
    kept: Words = magnitude.copy()
    shift: Any = number(drop)
    below = exponent < normal
    if normal > 1 and below.any():
        # A value below the normal numbers of the target loses more bits: as many as its exponent lacks. Two bits more than
        # there are leave nothing, not even half a unit.
        low = (magnitude & number(hidden - 1)) | (np.minimum(exponent, number(1)) << number(source.mantissa))
        lacking = number(normal) - np.minimum(np.maximum(exponent, number(1)), number(normal))
        shift = np.minimum(lacking + number(drop), number(source.mantissa + 2))
        np.copyto(kept, low, where=below)
    if rounding is not Rounding.TOWARD_ZERO:
        up = number(1) << (shift - number(1))
        if rounding is Rounding.NEAREST_EVEN:
            up = up - number(1) + ((kept >> shift) & number(1))
        kept += up
    result = kept >> shift
    if normal > 1:
        np.subtract(result, number((normal - 1) << target.mantissa), out=result, where=~below)
    limited = saturate or rounding is Rounding.TOWARD_ZERO
    result[result > target.largest] = target.largest if limited else target.beyond
    infinity = (2 * source.bias + 1) << source.mantissa
    result[magnitude >= infinity] = target.largest if saturate else target.beyond
    nans = magnitude > infinity
    if target.nan is not None:
        result[nans] = target.nan
    elif nans.any():
        payload = (magnitude[nans] & number(hidden - 1)) >> number(drop)
        result[nans] = payload | number(target.beyond | 1 << target.mantissa - 1)
    sign = (words >> number(8 * source.width - 1)) << number(8 * target.width - 1)
    if target.one_zero:
        sign[result == 0] = 0
    found: Words = (result | sign).astype(target.words)
    return found


def widen(words: Words, source: Float, target: Float) -> Words:
    """Return the bit patterns of the same values in `target`: F32 for narrower ones, F64 for F32."""
    if source.width < target.width < 8:
        return _widened(source.name)[words]
    magnitude = words & np.uint32(0x7FFFFFFF)
    special = magnitude >= np.uint32(source.beyond)
    # A processor makes NaNs quiet when it widens them; their bits stay as they are here.
    finite = np.where(special, np.uint32(0), magnitude).astype("<u4", copy=False)
    wide: Words = finite.view("<f4").astype("<f8").view("<u8")
    wide[special] = (magnitude[special].astype("<u8") << np.uint64(29)) | np.uint64(target.beyond)
    wide |= (words.astype("<u8") >> np.uint64(31)) << np.uint64(63)
    return wide


@lru_cache(maxsize=8)
def _widened(name: str) -> NDArray[np.uint32]:
    """Return the F32 patterns of all patterns of a format of one or two bytes."""
    form = FORMATS[name]
    bits = 8 * form.width
    words = np.arange(1 << bits, dtype=np.uint32)
    sign, magnitude = words >> (bits - 1) << 31, words & ((1 << bits - 1) - 1)
    low, exponent = magnitude & ((1 << form.mantissa) - 1), (magnitude >> form.mantissa).astype(np.int32)
    whole = low + np.where(exponent > 0, 1 << form.mantissa, 0)
    scale = np.maximum(exponent, 1) - (form.bias + form.mantissa)
    # The exponent of ones of IEEE 754 is no value, and is put in below; here it only must not overflow.
    scale = np.where((form.nan is None) & (magnitude > form.largest), 0, scale)
    patterns: NDArray[np.uint32] = np.ldexp(whole.astype(np.float64), scale).astype("<f4").view("<u4")
    if form.nan is None:
        special = magnitude > form.largest
        patterns[special] = 0x7F800000 | low[special] << (23 - form.mantissa)
    else:
        patterns[(words if form.one_zero else magnitude) == form.nan] = 0x7FC00000
    patterns |= sign.astype("<u4")
    return patterns
