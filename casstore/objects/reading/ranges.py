"""Which bytes of which packs hold the frames that are wanted, in few reads; and batches of bounded size. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.format.frame import header_size, header_sizes
from casstore.format.rows import ROW_FIELDS

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
    frames = _frames(located, wanted.tolist() if isinstance(wanted, np.ndarray) else list(wanted))
    cut = [_is_apart(one, other) for one, other in pairwise(frames)]
    if waste is not None:
        _cut_wide_gaps(frames, cut, waste * sum(frame.end - frame.begin for frame in frames))
    ranges: list[Range] = []
    first = decoded = 0
    for at, frame in enumerate(frames):
        decoded += frame.raw
        following = at + 1
        if (
            following < len(frames)
            and not cut[at]
            and frames[following].end - frames[first].begin <= max_stored
            and (max_plain is None or decoded + frames[following].raw <= max_plain)
        ):
            continue
        members = frames[first:following]
        begin = members[0].begin
        dense = frame.end - begin == sum(member.end - member.begin for member in members)
        positions = tuple(member.position for member in members)
        ranges.append(Range(frame.pack, begin, frame.end, positions, dense))
        first, decoded = following, 0
    return ranges


class _Frame(NamedTuple):
    """Bytes [`begin`, `end`) of a pack, the position of the frame that lies there, and its plain bytes."""

    pack: int
    begin: int
    end: int
    position: int
    raw: int


def _frames(located: Located, wanted: Sequence[int]) -> list[_Frame]:
    """Return frames in the order of their packs. Most plans are of a few frames: numpy would take longer for those."""
    rows, sources = located.rows[wanted].tobytes(), located.sources[wanted].tolist()
    frames = []
    for position, source, row in zip(wanted, sources, ROW_FIELDS.iter_unpack(rows), strict=True):
        _, begin, stored, raw, pack, bases, *_ = row
        count = located.lists[source].length(bases) if bases else 0
        frames.append(_Frame(pack, begin, begin + header_size(count) + stored, position, raw))
    frames.sort(key=itemgetter(0, 1))
    return frames


def _is_apart(one: _Frame, other: _Frame) -> bool:
    """Say whether the next frame is not read along with one, however few they are."""
    gap = other.begin - one.end
    # One object may be wanted several times; other frames that overlap are damage, and are read apart.
    return other.pack != one.pack or gap > MAX_GAP or (gap < 0 and other.begin != one.begin)


def _cut_wide_gaps(frames: Sequence[_Frame], cut: list[bool], budget: float) -> None:
    """Cut where gaps are, from the smallest on, more bytes than the budget has."""
    gaps = [other.begin - one.end for one, other in pairwise(frames)]
    total = 0
    for at in sorted((at for at, gap in enumerate(gaps) if gap > 0 and not cut[at]), key=gaps.__getitem__):
        total += gaps[at]
        cut[at] = total > budget


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
