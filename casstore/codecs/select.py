"""The writer's policy: which encoding chunks get, by probing a sample of them.

The choice is made for a stretch of chunks of one tensor: it costs as much as encoding a tenth of a chunk, and
holds the GIL for most of that. If the choice does not suit one of the chunks, little is lost: a run or chunk
that does not shrink is stored raw. A probe compresses the columns of a few KiB spread over the stretch: a real
compressor sees skew and repeats alike, and on noise it gives up at once.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from casstore.codecs.encoding import MAX_STRIDE, ElementHint
from casstore.codecs.kernels import column_bits, probe_columns, probe_literals, repeats
from casstore.codecs.planes import Plan, RunPlan
from casstore.codecs.sample import Sample
from casstore.codecs.zstd import Method, compress

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from casstore.codecs.kernels import LiteralsProbe

    U8 = NDArray[np.uint8]

__all__ = ["Choice", "choose"]

_SMALL = 512
# Up to this stride every column is probed on its own; larger ones are blocks whose fields are listed below.
_MAX_COLUMNS = 16
# A smaller gain is not worth a zstd frame: decoding costs more than it saves.
_NOISE = 1 - 1 / 64
# Repeats in less than this part of a sample save nothing; in a sample of fewer bytes they are not looked for.
_RARE = 64
_SHORT = 1 << 8
_LITERAL = 9
# Widths of elements that bytes of unknown type may have; columns that save less than this share of entropy are not worth it.
_WIDTHS = (1, 2, 4, 8)
_FLAT = 0.98
# A guess is kept while it does at most this much worse than before.
_ALIKE = 1.03

# Runs of the block-quantised types of ggml, by block size: the scales' bytes differ from one another and from
# the quants, which are alike. A run that does not shrink is stored raw.
_BLOCK_FIELDS = {
    17: (1, 16),  # MXFP4
    18: (1, 1, 16),  # Q4_0, IQ4_NL
    20: (1, 1, 1, 1, 16),  # Q4_1
    22: (1, 1, 4, 16),  # Q5_0
    24: (1, 1, 1, 1, 4, 16),  # Q5_1
    34: (1, 1, 32),  # Q8_0
    36: (1, 1, 1, 1, 32),  # Q8_1
    66: (1, 1, 64),  # IQ2_XXS
    84: (16, 64, 1, 1, 1, 1),  # Q2_K
    110: (32, 64, 12, 1, 1),  # Q3_K
    136: (1, 1, 2, 4, 128),  # IQ4_XS
    144: (1, 1, 1, 1, 12, 128),  # Q4_K
    176: (1, 1, 1, 1, 12, 32, 128),  # Q5_K
    210: (128, 64, 16, 1, 1),  # Q6_K
    292: (1, 1, 1, 1, 256, 32),  # Q8_K
}


class Choice(NamedTuple):
    """What to do (planes, one zstd frame, or None for raw), and the share of the bytes that this leaves.

    `phase` is where the first element starts; with a hint it is the hint's.
    """

    share: float
    plan: Plan | Method | None
    phase: int = 0


_RAW = Choice(1.0, None)


def choose(stretch: U8, hint: ElementHint | None, expected: Choice | None = None) -> Choice:
    """Return what to do with the chunks that make up `stretch`, adjacent bytes of one tensor or one chunk.

    `expected` is the choice for preceding bytes of unknown type: if it suits these, nothing
    else is tried.
    """
    if len(stretch) < _SMALL:
        return Choice(1.0, Method.MATCH)
    if stretch[0] == stretch[len(stretch) // 2] == stretch[-1] and repeats(stretch, 1):
        return Choice(0.0, Method.HUFFMAN)
    if hint is None or not 1 <= hint.width <= MAX_STRIDE:
        if expected is not None and isinstance(expected.plan, Plan):
            found = _probe_hint(stretch, ElementHint(expected.plan.stride, expected.phase))
            if found.share < _ALIKE * expected.share:
                return found
        return _guess(stretch)
    if hint.width == 1:
        return _probe_whole(_bytes_of(stretch))
    best = _probe_hint(stretch, hint)
    if best.share < 0.6:
        # Even the bytes that are noise in trained weights compress here, so repeats may do better than skew.
        return _better(best, _probe_whole(_bytes_of(stretch)))
    if best.share > 0.9:
        # The hint may be wrong, or nothing compresses.
        return _better(best, _guess(stretch))
    return best


def _bytes_of(stretch: U8) -> U8:
    return Sample.of(stretch, 8, 0).elements().ravel()


def _better(first: Choice, second: Choice) -> Choice:
    """Return `second` when it is clearly smaller; `first` is the cheaper one to decode, or the safer guess."""
    return second if second.share < 0.98 * first.share else first


def _probe_whole(sample: U8) -> Choice:
    """Judge one zstd frame over the bytes as they are."""
    size = len(sample)
    literals = probe_literals(sample)
    left, method = _probed(literals, size, lambda: sample)
    skew = left / size
    # Without repeats, a search for them only takes time.
    quick = len(compress(sample, Method.QUICK)) / size if _may_repeat(literals, size) else 1.0
    if min(quick, skew) > _NOISE:
        return _RAW
    if skew <= 1.02 * quick:
        return Choice(skew, method)
    # The highest levels that reach 60 MB/s: bytes with many repeats are fast, and bytes with few gain nothing.
    return Choice(quick, Method.DENSE if 0.02 < quick < 0.8 else Method.MATCH)


def _probe_hint(stretch: U8, hint: ElementHint) -> Choice:
    stride = hint.width
    phase = hint.phase % stride
    if len(stretch) < 8 * stride + phase:
        return _RAW
    if stride in _BLOCK_FIELDS:
        return _probe_columns(stretch, stride, phase, _BLOCK_FIELDS[stride])
    if stride <= _MAX_COLUMNS:
        return _probe_columns(stretch, stride, phase, (1,) * stride)
    return _RAW


def _probe_columns(stretch: U8, stride: int, phase: int, fields: tuple[int, ...]) -> Choice:
    """Judge planes with one run per field; adjacent columns of noise end in one raw run."""
    sample = Sample.of(stretch, stride, phase)
    found = probe_columns(sample, fields)
    probes = [
        _probed(probe, sample.count * width, partial(sample.column, start, width))
        for start, width, probe in zip(accumulate(fields, initial=0), fields, found.columns, strict=False)
    ]
    left = sum(size for size, _ in probes)
    sign = False
    if stride == 2 and probes[-1][0] < sample.count:
        moved = [
            _probed(probe, sample.count, partial(sample.moved_column, at))
            for at, probe in enumerate(found.moved)
        ]
        left_moved = sum(size for size, _ in moved)
        # It saves 0.5 to 0.7% of bfloat16, which is worth it; 0.3% of float32 and nothing of float16, which is not.
        if left_moved < left - 0.004 * stride * sample.count:
            sign, probes, left = True, moved, left_moved
    runs = [RunPlan(width, method) for width, (_, method) in zip(fields, probes, strict=True)]
    if all(run.method is None for run in runs):
        return _RAW
    return Choice(left / (sample.count * stride), Plan(stride, sign, _joined(runs)), phase)


def _probed(literals: LiteralsProbe, size: int, column: Callable[[], U8]) -> tuple[int, Method | None]:
    """Return what is left of `size` skewed bytes, and how: None stands for raw bytes.

    `literals` says what a frame of literals would leave; `column` gives the bytes, where more has to be known.
    """
    left, method = size, Method.LITERALS
    # A literal takes a bit or more: what is smaller was one value, and the next bytes may hold runs.
    if literals.size * _LITERAL > size:
        left = literals.size
    if _may_repeat(literals, size):
        # Some repeats are there by chance, where few values occur: then a search for them makes frames longer.
        searched = len(compress(column(), Method.HUFFMAN))
        if searched < left:
            left, method = searched, Method.HUFFMAN
    return (left, method) if left < _NOISE * size else (size, None)


def _may_repeat(literals: LiteralsProbe, size: int) -> bool:
    """Say whether repeats may save something."""
    return literals.repeats * _RARE >= size or size < _SHORT


def _joined(runs: list[RunPlan]) -> tuple[RunPlan, ...]:
    """Join raw columns at the start in pairs, which are moved as integers, much faster in both directions."""
    head = 0
    while head < len(runs) and runs[head] == RunPlan(1, None):
        head += 1
    pairs = head // 2
    return (RunPlan(2, None),) * pairs + tuple(runs[2 * pairs :])


def _guess(stretch: U8) -> Choice:
    """Choose without knowing the element width: one frame, or elements of 2, 4 or 8 bytes."""
    sample = _bytes_of(stretch)
    best = _probe_whole(sample)
    width, phase = _likely_elements(sample)
    if width == 1:
        return best
    return _better(best, _probe_columns(stretch, width, phase, (1,) * width))


def _likely_elements(sample: U8) -> tuple[int, int]:
    """Return the width of elements whose columns are the most skewed, 1 if none are, and where elements start.

    Their last byte, with sign and exponent, is the most skewed one.
    """
    if len(sample) < 2048:
        return 1, 0
    bits = column_bits(sample)
    columns = [bits[width - 1 : 2 * width - 1] for width in _WIDTHS]
    left = [sum(column) for column in columns]
    if min(left) > _FLAT * left[0]:
        return 1, 0
    chosen = next(at for at, size in enumerate(left) if size <= _ALIKE * min(left))
    width = _WIDTHS[chosen]
    return width, (columns[chosen].index(min(columns[chosen])) + 1) % width
