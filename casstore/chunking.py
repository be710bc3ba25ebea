"""Where files are cut into chunks: layout version 1.

A tensor span of 64 KiB and more is a fixed region, cut every 512 KiB from its start, so that the same tensor
gives the same chunks in every container. All other bytes, with the small spans among them, form opaque
regions, cut by FastCDC, which goes by their content. A cut depends on the bytes of its own region and on nothing
else; every constant here is part of the layout version, and changing one needs a new version.

Source of FastCDC: Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based
Storage Systems", IEEE TPDS 31(9), 2020, in the form that rolls two bytes at a time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pyfastcdc import FastCDC

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "FIXED_CHUNK",
    "LAYOUT_VERSION",
    "MAX_CHUNK",
    "MIN_SPAN",
    "Chunker",
    "Region",
    "offsets",
    "plan_regions",
]

LAYOUT_VERSION = 1
MAX_CHUNK = 1 << 20
"""No chunk is longer, in bytes; a caller that streams carries over less than this from block to block."""

MIN_SPAN = 64 << 10
"""Spans of this many bytes and more are fixed regions."""

FIXED_CHUNK = 512 << 10
"""Bytes from cut to cut in a fixed region."""

_MIN_OPAQUE = 64 << 10
_AVERAGE_OPAQUE = 256 << 10
_NORMALIZATION: Literal[1] = 1
_SEED = 0


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes [begin, end) of a file that are cut by one rule: `fixed` from a tensor's start, else by content."""

    begin: int
    end: int
    fixed: bool


def plan_regions(span_ranges: Iterable[tuple[int, int]], size: int) -> tuple[Region, ...]:
    """Divide a file of `size` bytes into regions, in file order, each byte in exactly one.

    `span_ranges` are (begin, end) in bytes of tensors, in any order; equal ones (tied weights) and empty ones
    are fine. Raises ValueError for ranges outside the file, backwards or partly overlapping: tensor parsers
    refuse those, so they are the caller's bug.
    """
    regions: list[Region] = []
    done = 0
    previous_begin = previous_end = 0
    # What comes in the file's order, as parsers give it, is sorted at once.
    for begin, end in sorted(span_ranges):
        if not 0 <= begin <= end <= size:
            raise ValueError(f"The span [{begin}, {end}) is not inside a file of {size} bytes.")
        if begin == end:
            continue
        if begin < previous_end:
            if (begin, end) == (previous_begin, previous_end):
                continue
            raise ValueError(f"The span [{begin}, {end}) overlaps one that ends at {previous_end}.")
        previous_begin, previous_end = begin, end
        if end - begin < MIN_SPAN:
            continue
        if done < begin:
            regions.append(Region(done, begin, fixed=False))
        regions.append(Region(begin, end, fixed=True))
        done = end
    if done < size:
        regions.append(Region(done, size, fixed=False))
    return tuple(regions)


def offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where chunks of these lengths start, in bytes from the first."""
    starts = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts


class Chunker:
    """Cuts a file that is presented in consecutive buffers; the cuts do not depend on the buffers' sizes.

    One per file, for one thread at a time. Bytes after the planned regions, of a file that grew, count as one
    more opaque region.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = regions
        self._current = 0
        self._position = 0
        self._engine = FastCDC(
            _AVERAGE_OPAQUE,
            min_size=_MIN_OPAQUE,
            max_size=MAX_CHUNK,
            normalized_chunking=_NORMALIZATION,
            seed=_SEED,
        )
        _warn_if_slow(self._engine)

    def cut(self, buffer: memoryview, *, offset: int, final: bool) -> NDArray[np.int64]:
        """Return the lengths, in bytes, of the chunks that are final, one after another from buffer[0].

        `buffer`, contiguous bytes, is only read, and not kept; buffer[0] is byte `offset` of the file. The next
        buffer starts right after the last returned chunk: bytes that are not in one yet, fewer than MAX_CHUNK
        of them, must be presented again. `final` says that the file ends with this buffer: every byte is cut.
        Raises ValueError when `offset` is not where the last chunk ended. Large buffers are scanned without
        the GIL.
        """
        if offset != self._position:
            raise ValueError(f"The buffer starts at byte {offset} of the file instead of {self._position}.")
        lengths: list[int] = []
        done = 0
        while done < len(buffer):
            end, fixed = self._rule()
            available = min(len(buffer) - done, end - self._position)
            complete = self._position + available == end or (final and done + available == len(buffer))
            if fixed:
                cut = _cut_fixed(available, complete=complete)
            else:
                cut = self._cut_opaque(buffer[done : done + available], complete=complete)
            lengths += cut
            taken = sum(cut)
            done += taken
            self._position += taken
            if taken < available:
                break
        return np.array(lengths, np.int64)

    def _rule(self) -> tuple[int, bool]:
        """Return the end of the region that the position is in, and whether it is fixed."""
        while self._current < len(self._regions):
            region = self._regions[self._current]
            if self._position < region.end:
                return region.end, region.fixed
            self._current += 1
        return 1 << 63, False

    def _cut_opaque(self, data: memoryview, *, complete: bool) -> list[int]:
        if len(data) <= _MIN_OPAQUE:
            # One chunk: most gaps between tensors are such.
            return [len(data)] if complete else []
        lengths = [chunk.length for chunk in self._engine.cut_buf(data)]
        # A cut with bytes behind it was found by content, or at the maximum; one at the very end may only be
        # where the buffer stops, unless the region stops there too.
        if not complete and lengths[-1] < MAX_CHUNK:
            return lengths[:-1]
        return lengths


def _cut_fixed(available: int, *, complete: bool) -> list[int]:
    """Cut `available` bytes that start at a cut of their region."""
    whole, rest = divmod(available, FIXED_CHUNK)
    return [FIXED_CHUNK] * whole + ([rest] if rest and complete else [])


def _warn_if_slow(engine: FastCDC) -> None:
    global _slow_is_known  # noqa: PLW0603 - said once per process, however many files are cut
    if not _slow_is_known and type(engine).__module__.startswith("pyfastcdc.py"):
        _slow_is_known = True
        warnings.warn(
            "pyfastcdc runs without its native extension: files without tensors are cut hundreds of times slower. "
            "Install a pyfastcdc wheel for this platform, or build it with a C compiler.",
            RuntimeWarning,
            stacklevel=3,
        )


_slow_is_known = False
