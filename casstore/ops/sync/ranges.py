"""Which bytes of which packs hold the frames that are wanted, in few reads. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.buffers import BLOCK
from casstore.digest import DIGEST_SIZE
from casstore.format.frame import HEADER_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casstore.objects.index.index import Located

MAX_GAP = 64 << 10
"""Unwanted bytes between two wanted frames that are read along, at most."""

WASTE = 0.01
"""Share of the wanted bytes that may be read along in gaps, all together, to save requests."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes [`begin`, `end`) of the pack with number `pack`, and the positions of the frames in them, in order.

    `dense` says that the frames are all that there is in it.
    """

    pack: int
    begin: int
    end: int
    frames: tuple[int, ...]
    dense: bool


def frame_sizes(located: Located) -> NDArray[np.int64]:
    """Return the bytes that each located frame takes in its pack."""
    bases = np.zeros(len(located.rows), np.int64)
    for at in np.flatnonzero(located.rows["bases"]).tolist():
        bases[at] = len(located.bases(at))
    sizes: NDArray[np.int64] = HEADER_SIZE + DIGEST_SIZE * bases + located.rows["stored"]
    return sizes


def plan_ranges(located: Located, wanted: NDArray[np.int64]) -> list[Range]:
    """Divide the frames at positions `wanted` into ranges of up to a block, or one frame.

    The smallest gaps are closed first, as long as they stay within WASTE of what is wanted.
    """
    rows = located.rows[wanted]
    order = np.lexsort((rows["offset"], rows["pack"]))
    wanted, rows = wanted[order], rows[order]
    sizes = frame_sizes(located)[wanted]
    begins = rows["offset"].astype(np.int64)
    ends = begins + sizes
    gaps = begins[1:] - ends[:-1]
    apart = (rows["pack"][1:] != rows["pack"][:-1]) | (gaps > MAX_GAP) | (gaps < 0)
    open_ = np.flatnonzero(~apart & (gaps > 0))
    open_ = open_[np.argsort(gaps[open_], kind="stable")]
    apart[open_[np.cumsum(gaps[open_]) > WASTE * int(sizes.sum())]] = True
    positions, packs = wanted.tolist(), rows["pack"].tolist()
    starts, stops, cut = begins.tolist(), ends.tolist(), [True, *apart.tolist()]
    ranges: list[Range] = []
    first = 0
    for at in range(1, len(positions) + 1):
        if at < len(positions) and not cut[at] and stops[at] - starts[first] <= BLOCK:
            continue
        if at > first:
            size = stops[at - 1] - starts[first]
            dense = size == int(sizes[first:at].sum())
            ranges.append(
                Range(packs[first], starts[first], stops[at - 1], tuple(positions[first:at]), dense)
            )
        first = at
    return ranges
