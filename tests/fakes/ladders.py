"""Ladders of quants in GGUF: floats, and blocks of them with scales that fit, as a plain quantiser chooses them."""

from __future__ import annotations

import numpy as np
from fakes.model_files import gguf_bytes

from casstore.codecs.delta.operations.gguf_blocks import BLOCKS, quantise_blocks

_FLOATS = {"F32": "<f4", "F16": "<f2"}


def blocks_of(kind, array):
    """Return blocks of type `kind` of an array, as `gguf_bytes` takes them."""
    rows = array.astype("<f4").reshape(-1, BLOCKS[kind].elements)
    scales = None if BLOCKS[kind].has_rule else _SCALES[kind](rows)
    return kind, array.shape, quantise_blocks(kind, rows, scales).tobytes()


def write_ladder(folder, tensors, kinds):
    """Write floats as GGUF, as floats of another type and as blocks, each kind in a folder of its own."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        found = {
            name: array.astype(_FLOATS[kind]) if kind in _FLOATS else blocks_of(kind, array)
            for name, array in tensors.items()
        }
        (folder / kind / "model.gguf").write_bytes(gguf_bytes(found))


def _ranges(rows, parts, levels):
    """Return for each part of a block what one quant more adds, and what is taken off."""
    split = rows.reshape(len(rows), parts, -1)
    least = np.minimum(split.min(axis=2), 0)
    return (split.max(axis=2) - least) / levels, -least


def _whole(values, largest):
    """Return a scale for each row, as F16, and values as integers of it up to `largest`."""
    unit = (np.abs(values).max(axis=1, keepdims=True) / largest).astype("<f2")
    return unit.view(np.uint8).reshape(-1, 2), np.rint(values / unit.astype("<f4")).astype(np.int32)


def _four_or_five(levels):
    def scales(rows):
        steps, offsets = _ranges(rows, 8, levels)
        unit, factors = _whole(steps, 63)
        other, minimums = _whole(offsets, 63)
        low = factors[:, :4] | factors[:, 4:] >> 4 << 6
        middle = minimums[:, :4] | minimums[:, 4:] >> 4 << 6
        high = (factors[:, 4:] & 15) | (minimums[:, 4:] & 15) << 4
        return np.concatenate([unit, other, low, middle, high], axis=1).astype(np.uint8)

    return scales


def _q6_k(rows):
    parts = rows.reshape(len(rows), 16, -1)
    unit, factors = _whole(np.abs(parts).max(axis=2) / 31, 127)
    return np.concatenate([factors.astype(np.int8).view(np.uint8), unit], axis=1)


def _q2_k(rows):
    steps, offsets = _ranges(rows, 16, 3)
    unit, factors = _whole(steps, 15)
    other, minimums = _whole(offsets, 15)
    return np.concatenate([(factors | minimums << 4).astype(np.uint8), unit, other], axis=1)


def _iq4_nl(rows):
    return (np.abs(rows).max(axis=1, keepdims=True) / 113).astype("<f2").view(np.uint8)


_SCALES = {
    "Q4_K": _four_or_five(15),
    "Q5_K": _four_or_five(31),
    "Q6_K": _q6_k,
    "Q2_K": _q2_k,
    "IQ4_NL": _iq4_nl,
}
