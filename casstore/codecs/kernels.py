"""The functions that touch every byte: compiled where `casstore._kernels` was built, else numpy's.

`regroup.py` and `literals.py` are the specification; tests check that both give the same bytes on every input.
CASSTORE_KERNELS=numpy turns the compiled ones off.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore import _build
from casstore.codecs import literals, regroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.codecs.sample import Sample

    U8 = NDArray[np.uint8]

__all__ = [
    "ColumnProbes",
    "LiteralsProbe",
    "RunData",
    "column_bits",
    "equal",
    "literal_frames",
    "merge_runs",
    "merges_to",
    "probe_columns",
    "probe_literals",
    "repeats",
    "split_runs",
    "write_planes",
]


class RunData(NamedTuple):
    """One run's plain bytes, `columns` of each element; a constant run has one item for all elements."""

    columns: int
    data: U8
    constant: bool


def split_runs(body: U8, *, stride: int, sign: bool, columns: Sequence[int], out: U8) -> None:
    """Take whole elements apart into runs of adjacent columns, written to `out` one run after the other.

    `columns` are the widths of the runs, which cover `stride`. With `sign` the elements, of 2 or 4 bytes, are
    sign-transformed first (see regroup.py), and the last two runs are single columns. `body` is only read; `out` has its
    length or more.
    """
    if _build.kernels is not None:
        _build.kernels.split(body, out, stride, sign, tuple(columns))
        return
    elements = len(body) // stride
    taken = regroup.Columns(body, stride=stride, sign=sign)
    start = 0
    for count in columns:
        taken.take(start, count, out[elements * start : elements * (start + count)])
        start += count


def write_planes(
    stretch: U8,
    edges: Sequence[int],
    out: U8,
    *,
    stride: int,
    phase: int,
    sign: bool,
    runs: Sequence[tuple[int, bool]],
    lead: int,
) -> list[int] | None:
    """Write the payloads of planes of adjacent chunks, as `planes.compose` makes them; None without compiled kernels.

    `runs` are columns, and whether they become frames of literals. Returns the sizes of the payloads, negative for a chunk that
    is stored as it is. `lead` bytes before each are left alone; the rest is as for `planes.encode_planes`.
    """
    kernels = _build.kernels
    if kernels is None:
        return None
    longest = max(end - begin for begin, end in pairwise(edges))
    memory = regroup.scratch("planes", len(stretch) + kernels.literals_room(longest))
    return kernels.planes(stretch, memory, out, tuple(edges), phase, stride, sign, tuple(runs), lead)


def merge_runs(runs: Sequence[RunData], *, stride: int, sign: bool, out: U8) -> None:
    """Put elements together from all of their runs: the inverse of `split_runs`; `out` is whole elements."""
    if _build.kernels is not None:
        _build.kernels.merge(out, stride, sign, tuple(runs))
        return
    regroup.merge_runs(_placed(runs), stride=stride, sign=sign, out=out)


def merges_to(runs: Sequence[RunData], *, stride: int, sign: bool, expected: U8) -> bool:
    """Say whether `merge_runs` would write `expected`, which is only read; the elements are compared a few at a time."""
    if _build.kernels is not None:
        return _build.kernels.merges_to(expected, stride, sign, tuple(runs))
    return regroup.merges_to(_placed(runs), stride=stride, sign=sign, expected=expected)


def _placed(runs: Sequence[RunData]) -> list[regroup.PlacedRun]:
    placed = []
    start = 0
    for run in runs:
        placed.append(regroup.PlacedRun(start, *run))
        start += run.columns
    return placed


def equal(one: memoryview, other: memoryview) -> bool:
    """Say whether two buffers hold the same bytes."""
    if _build.kernels is not None:
        return _build.kernels.equal(one, other)
    return regroup.equal(one, other)


def repeats(data: U8, period: int) -> bool:
    """Say whether the first `period` bytes, over and over, are all of `data`, which is a multiple of them."""
    if _build.kernels is not None:
        return _build.kernels.repeats(data, period)
    return regroup.repeats(data, period)


def column_bits(sample: U8) -> list[int]:
    """Return the entropy of a sample's columns, in 65536ths of a bit: of elements of 1 byte, then of 2, of 4 and of 8.

    A sample has less than 16 MiB.
    """
    return literals.column_bits(sample) if _build.kernels is None else _build.kernels.column_bits(sample)


def literal_frames(parts: Sequence[U8]) -> list[U8]:
    """Return one zstd frame of literals alone for each part, or the part itself if its frame would not be smaller."""
    kernels = _build.kernels
    if kernels is None:
        written = map(literals.write_frame, parts)
        return [part if frame is None else frame for part, frame in zip(parts, written, strict=True)]
    out: U8 = np.empty(sum(kernels.literals_room(len(part)) for part in parts), np.uint8)
    frames = []
    at = 0
    for part, size in zip(parts, kernels.literals(tuple(parts), out), strict=True):
        frames.append(out[at : at + size] if size else part)
        at += size
    return frames


class LiteralsProbe(NamedTuple):
    """About the size of a sample's frame of literals, 0 if it would not be smaller, and how many repeats the sample has."""

    size: int
    repeats: int


def probe_literals(sample: U8) -> LiteralsProbe:
    """Say what a frame of literals would leave of a sample."""
    if _build.kernels is None:
        return LiteralsProbe(literals.frame_size(sample), literals.count_repeats(sample))
    return LiteralsProbe(*_build.kernels.probe_literals(sample))


class ColumnProbes(NamedTuple):
    """What frames of literals would leave of each field of a sample; of elements of 2 bytes also with their sign moved."""

    columns: Sequence[LiteralsProbe]
    moved: Sequence[LiteralsProbe]


def probe_columns(sample: Sample, fields: tuple[int, ...]) -> ColumnProbes:
    """Probe each field of a sample's elements, which the fields cover."""
    has_moved = sample.stride == 2
    if _build.kernels is None:
        begins = accumulate(fields, initial=0)
        columns = [sample.column(begin, width) for begin, width in zip(begins, fields, strict=False)]
        moved = [sample.moved_column(at) for at in range(2 * has_moved)]
        return ColumnProbes([*map(probe_literals, columns)], [*map(probe_literals, moved)])
    found = _build.kernels.probe_columns(
        sample.stretch,
        sample.stride,
        sample.phase,
        sample.step,
        sample.pieces,
        sample.rows,
        fields,
        has_moved,
    )
    probes = [LiteralsProbe(*item) for item in found]
    return ColumnProbes(probes[: len(fields)], probes[len(fields) :])
