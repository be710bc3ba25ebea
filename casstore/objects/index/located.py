"""Where objects lie: what a look-up returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import DIGEST_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.format.pack import Footer
    from casstore.format.rows import BaseLists, Rows

NOT_FOUND = np.uint32(0xFFFFFFFF)
"""In the `pack` field of a located row: no usable frame of this object is known."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where objects lie: one row for each id asked for, in order.

    `rows["pack"]` is the number of a pack in the index, or NOT_FOUND; `lists[sources[i]]` are the base lists
    that the `bases` field of row i means.
    """

    rows: Rows
    sources: NDArray[np.int32]
    lists: tuple[BaseLists, ...]

    @classmethod
    def of_footer(cls, footer: Footer, number: int) -> Located:
        """Return the rows of a pack's footer; `number` is the pack's."""
        rows = footer.rows.copy()
        rows["pack"] = number
        return cls(rows, np.zeros(len(rows), np.int32), (footer.bases,))

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which of the ids have a frame."""
        mask: NDArray[np.bool_] = self.rows["pack"] != NOT_FOUND
        return mask

    def bases(self, at: int) -> tuple[bytes, ...]:
        """Return the base ids of row `at`."""
        number = int(self.rows["bases"][at])
        return self.lists[self.sources[at]].get(number) if number else ()

    def ids(self, positions: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """Return the object ids of the rows at these positions, which must be found."""
        joined = self.rows["id"][np.asarray(positions, np.int64)].tobytes()
        return [joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)]

    def by_pack(self, which: NDArray[np.bool_] | None = None) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield the number of each pack that holds some of the objects, all that are found or `which`, and their positions."""
        present = np.flatnonzero(self.found if which is None else which)
        present = present[np.argsort(self.rows["pack"][present], kind="stable")]
        packs = self.rows["pack"][present]
        for positions in np.split(present, np.flatnonzero(packs[1:] != packs[:-1]) + 1):
            if positions.size:
                yield int(self.rows["pack"][positions[0]]), positions

    def replaced(self, positions: Sequence[int], rows: Located) -> Located:
        """Return this with `rows` at these positions. Takes over the arrays: this object is not used afterwards."""
        self.rows[positions] = rows.rows
        self.sources[positions] = rows.sources + len(self.lists)
        return Located(self.rows, self.sources, self.lists + rows.lists)
