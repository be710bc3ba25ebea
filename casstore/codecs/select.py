"""The writer's policy: which encoding a chunk gets, by probing a sample of it.

The choice is a function of the chunk's bytes and its hint alone, so the same chunk is stored the same way
whatever its neighbours. A probe compresses the columns of about 8 KiB spread over the chunk: a real compressor
sees skew and repeats alike, and on noise it gives up at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.encoding import MAX_STRIDE, ElementHint
from casstore.codecs.planes import Plan, RunPlan
from casstore.codecs.zstd import Method, compress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]

__all__ = ["choose"]

_SMALL = 512
_SAMPLE = 8 << 10
_PIECES = 8
# Up to this stride every column is probed on its own; larger ones are blocks whose fields are listed below.
_MAX_COLUMNS = 16
# Under this, a run is not worth a zstd frame: what one saves is paid again when it is decoded.
_NOISE = 1 - 1 / 64

# Runs of the block-quantised types of ggml, by block size: the scales' bytes differ from one another and from
# the quants, which are alike. A run that is not worth it costs nothing: the probe stores it raw.
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


class _Choice(NamedTuple):
    """What to do, and the share of the bytes that the sample says is left."""

    share: float
    plan: Plan | Method | None


def choose(chunk: U8, hint: ElementHint | None) -> Plan | Method | None:
    """Return a plan for planes, a method for one zstd frame, or None for raw."""
    if len(chunk) < _SMALL:
        return Method.MATCH
    sample = _sample(chunk, 1, 0).ravel()
    if bool((sample == sample[0]).all()) and bool((chunk == chunk[0]).all()):
        return Method.HUFFMAN
    if hint is None or not 1 <= hint.width <= MAX_STRIDE:
        return _guess(chunk, sample).plan
    if hint.width == 1:
        return _probe_whole(sample).plan
    best = _probe_hint(chunk, hint)
    if best.share < 0.6:
        # Even the bytes that are noise in trained weights compress: repeats may do better than skew.
        best = _better(best, _probe_whole(sample))
    elif best.share > 0.9:
        # The hint may be wrong, or there is nothing to gain.
        best = _better(best, _guess(chunk, sample))
    return best.plan


def _better(first: _Choice, second: _Choice) -> _Choice:
    """Return `second` when it is clearly smaller; `first` is the cheaper one to decode, or the safer guess."""
    return second if second.share < 0.98 * first.share else first


def _sample(chunk: U8, stride: int, phase: int) -> U8:
    """Copy whole elements spread evenly over the chunk, contiguous in pieces, as rows of `stride` bytes."""
    elements = (len(chunk) - phase) // stride
    wanted = max(_SAMPLE // stride // _PIECES, 1)
    if elements <= wanted * _PIECES:
        return chunk[phase : phase + elements * stride].reshape(elements, stride)
    step = (elements - wanted) // (_PIECES - 1) * stride
    pieces: U8 = np.ndarray((_PIECES, wanted * stride), np.uint8, chunk, phase, (step, 1))
    return pieces.reshape(-1, stride)


def _probe_whole(sample: U8) -> _Choice:
    """Judge one zstd frame over the bytes as they are."""
    size = len(sample)
    quick = len(compress(sample, Method.QUICK)) / size
    skew = len(compress(sample, Method.HUFFMAN)) / size
    if min(quick, skew) > _NOISE:
        return _Choice(1.0, None)
    if skew <= 1.02 * quick:
        return _Choice(skew, Method.HUFFMAN)
    # The highest levels that keep to 60 MB/s: what repeats a lot is fast, what hardly does gains nothing.
    return _Choice(quick, Method.DENSE if 0.02 < quick < 0.8 else Method.MATCH)


def _probe_hint(chunk: U8, hint: ElementHint) -> _Choice:
    stride = hint.width
    phase = hint.phase % stride
    if len(chunk) < 8 * stride + phase:
        return _Choice(1.0, None)
    if stride in _BLOCK_FIELDS:
        return _probe_columns(chunk, stride, phase, _BLOCK_FIELDS[stride])
    if stride <= _MAX_COLUMNS:
        return _probe_columns(chunk, stride, phase, (1,) * stride)
    return _Choice(1.0, None)


def _probe_columns(chunk: U8, stride: int, phase: int, fields: tuple[int, ...]) -> _Choice:
    """Judge planes with one run per field; adjacent columns of noise end in one raw run."""
    rows = _sample(chunk, stride, phase)
    count = len(rows)
    columns = []
    start = 0
    for width in fields:
        columns.append(np.ascontiguousarray(rows[:, start : start + width]).reshape(-1))
        start += width
    sizes = [_probed(column) for column in columns]
    sign = False
    if stride in {2, 4} and sizes[-1] < len(columns[-1]):
        below, top = columns[-2:]
        exponents: U8 = np.bitwise_or(np.left_shift(top, 1), np.right_shift(below, 7))
        mantissas: U8 = np.bitwise_or(np.bitwise_and(below, 0x7F), np.bitwise_and(top, 0x80))
        moved = [_probed(mantissas), _probed(exponents)]
        if sum(moved) < sum(sizes[-2:]) - 0.002 * stride * count:
            sign = True
            sizes[-2:] = moved
    runs = [
        RunPlan(width, Method.HUFFMAN if size < len(column) else None)
        for width, size, column in zip(fields, sizes, columns, strict=True)
    ]
    if all(run.method is None for run in runs):
        return _Choice(1.0, None)
    return _Choice(sum(sizes) / (count * stride), Plan(stride, phase, sign, _joined(runs)))


def _probed(column: U8) -> int:
    size = len(compress(column, Method.HUFFMAN))
    return size if size < _NOISE * len(column) else len(column)


def _joined(runs: list[RunPlan]) -> tuple[RunPlan, ...]:
    """Join raw columns at the start in pairs, which are moved as integers, and much faster, both ways."""
    head = 0
    while head < len(runs) and runs[head] == RunPlan(1, None):
        head += 1
    pairs = head // 2
    return (RunPlan(2, None),) * pairs + tuple(runs[2 * pairs :])


def _guess(chunk: U8, sample: U8) -> _Choice:
    """Choose without knowing the element width: one frame, or elements of 2, 4 or 8 bytes."""
    best = _probe_whole(sample)
    if len(sample) < 2048:
        return best
    usable = sample[: len(sample) // 8 * 8]
    finest = usable.reshape(-1, 8)
    # Noise in each eighth byte is noise in each fourth and second: nothing else needs a look.
    if best.plan is None and all(
        _probed(np.ascontiguousarray(finest[:, k])) == len(finest) for k in range(8)
    ):
        return best
    for width in (4, 2, 8):
        best = _better(best, _probe_columns(chunk, width, _guess_phase(usable, width), (1,) * width))
    return best


def _guess_phase(sample: U8, width: int) -> int:
    """Guess where elements start: their last byte, sign and exponent, is the most skewed one."""
    sizes = [len(compress(np.ascontiguousarray(sample[k::width]), Method.HUFFMAN)) for k in range(width)]
    return (sizes.index(min(sizes)) + 1) % width
