"""Which bytes of which packs hold the frames that are wanted, in few reads; and batches of bounded size. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.format.frame import header_sizes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.objects.index.located import Located

MAX_FETCH = 8 << 20
"""Stored bytes that one read of a pack takes, at most, unless one frame is larger."""

MAX_GAP = 64 << 10
"""Unwanted bytes between two frames that are read along to save a second read, at most."""


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


def frame_sizes(located: Located, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bytes that the frames at positions `wanted` take in their packs."""
    rows = located.rows[wanted]
    counts = np.zeros(len(rows), np.int64)
    for at in np.flatnonzero(rows["bases"]).tolist():
        counts[at] = len(located.bases(int(wanted[at])))
    sizes: NDArray[np.int64] = header_sizes(counts) + rows["stored"]
    return sizes


def plan_ranges(
    located: Located,
    wanted: Sequence[int] | NDArray[np.int64],
    *,
    max_stored: int = MAX_FETCH,
    max_plain: int | None = None,
    waste: float | None = None,
) -> list[Range]:
    """Divide the frames at positions `wanted` into reads, pack by pack, each in the order of the pack.

    A range has at most `max_stored` bytes of the pack and `max_plain` decoded ones, or one frame. `waste` is the share of
    the wanted bytes that may be read along in gaps, all together: the smallest gaps are closed first.
    """
    wanted = np.asarray(wanted, np.int64)
    rows = located.rows[wanted]
    order = np.lexsort((rows["offset"], rows["pack"]))
    wanted, rows = wanted[order], rows[order]
    sizes = frame_sizes(located, wanted)
    begins = rows["offset"].astype(np.int64)
    ends = begins + sizes
    gaps = begins[1:] - ends[:-1]
    # One object may be wanted several times; other frames that overlap are damage, and are read apart.
    overlap = (gaps < 0) & (begins[1:] != begins[:-1])
    apart = (rows["pack"][1:] != rows["pack"][:-1]) | (gaps > MAX_GAP) | overlap
    if waste is not None:
        open_ = np.flatnonzero(~apart & (gaps > 0))
        open_ = open_[np.argsort(gaps[open_], kind="stable")]
        apart[open_[np.cumsum(gaps[open_]) > waste * int(sizes.sum())]] = True
    positions, packs, lengths = wanted.tolist(), rows["pack"].tolist(), sizes.tolist()
    starts, stops, cut = begins.tolist(), ends.tolist(), apart.tolist()
    plain = rows["raw"].tolist() if max_plain is not None else [0] * len(positions)
    ranges: list[Range] = []
    first = decoded = 0
    for at in range(len(positions)):
        decoded += plain[at]
        following = at + 1
        if (
            following < len(positions)
            and not cut[at]
            and stops[following] - starts[first] <= max_stored
            and (max_plain is None or decoded + plain[following] <= max_plain)
        ):
            continue
        begin, end = starts[first], stops[at]
        dense = end - begin == sum(lengths[first:following])
        ranges.append(Range(packs[first], begin, end, tuple(positions[first:following]), dense))
        first, decoded = following, 0
    return ranges


def batches(sizes: Iterable[int], limit: int) -> Iterator[range]:
    """Divide items of these sizes, in order, into runs of at most `limit` together, or of one item."""
    first = count = total = 0
    for size in sizes:
        if count > first and total + size > limit:
            yield range(first, count)
            first, total = count, 0
        total += size
        count += 1
    if count > first:
        yield range(first, count)
