"""Binary logarithms as integers, so that every machine comes to the same numbers; `native/logarithms.h` does the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MILLER", "ONE", "logs"]

ONE = 1 << 16
"""One bit, in the unit of logarithms."""

# fmt: off
_PARTS = np.array((
    0, 1466, 2909, 4331, 5732, 7112, 8473, 9814, 11136, 12440, 13727, 14996, 16248,
    17484, 18704, 19909, 21098, 22272, 23433, 24579, 25711, 26830, 27936, 29029, 30109, 31178,
    32234, 33279, 34312, 35334, 36346, 37346, 38336, 39316, 40286, 41246, 42196, 43137, 44068,
    44990, 45904, 46809, 47705, 48593, 49472, 50344, 51207, 52063, 52911, 53751, 54584, 55410,
    56229, 57040, 57845, 58643, 59434, 60219, 60997, 61769, 62534, 63294, 64047, 64794, 65536,
), np.uint64)
# fmt: on
"""log2(1 + k / 64): between them lines are at most 1/20000 too low."""

MILLER = 47274
"""Half of 1 / ln 2: what a value more among those seen adds to the entropy, times the count.

Few samples see too few values (Miller 1955, "Note on the bias of information estimates").
"""


def logs(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the binary logarithms of numbers other than 0, in 65536ths."""
    whole, rest = np.zeros(values.shape, np.uint64), values
    for step in (32, 16, 8, 4, 2, 1):
        move = np.where(rest >> np.uint64(step) > 0, np.uint64(step), np.uint64(0))
        whole, rest = whole + move, rest >> move
    mantissa = values << (np.uint64(63) - whole) << np.uint64(1)
    part = (mantissa >> np.uint64(58)).astype(np.intp)
    fraction = mantissa >> np.uint64(42) & np.uint64(ONE - 1)
    rise = (_PARTS[part + 1] - _PARTS[part]) * fraction >> np.uint64(16)
    found: NDArray[np.uint64] = (whole << np.uint64(16)) + _PARTS[part] + rise
    return found
