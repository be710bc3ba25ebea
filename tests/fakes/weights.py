"""Tensors as training and quantising leave them, from a seed: bytes and the size of an element or block."""

from __future__ import annotations

from functools import cache

import numpy as np

WEIGHTS = ("fp32", "bf16", "fp16", "fp64", "int8", "int64", "fp32_from_fp16", "q4_0", "q8_0", "q6_k")
_COUNT = 1 << 17


@cache
def weights(kind, seed):
    """Return (bytes, element width): 128 Ki values, normally distributed with a scale per row of 256."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.005, 0.05, (_COUNT // 256, 1))
    values = (rng.normal(0, 1, (_COUNT // 256, 256)) * scales).astype("<f4").ravel()
    make = {
        "fp32": lambda: (values, 4),
        "bf16": lambda: ((values.view("<u4") >> 16).astype("<u2"), 2),
        "fp16": lambda: (values.astype("<f2"), 2),
        "fp64": lambda: (values.astype("<f8") * np.pi, 8),
        "int8": lambda: (np.rint(values / 0.0015).clip(-128, 127).astype(np.int8), 1),
        "int64": lambda: (rng.integers(0, 30_000, _COUNT).astype("<i8"), 8),
        "fp32_from_fp16": lambda: (values.astype("<f2").astype("<f4"), 4),
        "q4_0": lambda: (_q4_0(values), 18),
        "q8_0": lambda: (_q8_0(values), 34),
        "q6_k": lambda: (_q6_k(rng), 210),
    }
    array, width = make[kind]()
    return array.tobytes(), width


def _q4_0(values):
    """ggml's Q4_0: per 32 values a float16 scale and 16 bytes of two 4-bit quants."""
    blocks = values.reshape(-1, 32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = (extreme / -8).astype("<f4")
    quants = np.clip(blocks / scale + 8.5, 0, 15).astype(np.uint8)
    packed = quants[:, :16] | (quants[:, 16:] << 4)
    return np.concatenate([scale.astype("<f2").view(np.uint8).reshape(-1, 2), packed], 1)


def _q8_0(values):
    """ggml's Q8_0: per 32 values a float16 scale and 32 signed bytes."""
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    quants = np.rint(blocks / scale).astype(np.int8).view(np.uint8)
    return np.concatenate([scale.astype("<f2").view(np.uint8).reshape(-1, 2), quants], 1)


def _q6_k(rng):
    """The shape of ggml's Q6_K, 210 bytes per 256 values: low bits, high bits, signed scales, a float16."""
    count = _COUNT // 256
    quants = rng.normal(32, 9, (count, 256)).clip(0, 63).astype(np.uint8)
    low = (quants[:, :128] & 15) | (quants[:, 128:] << 4)
    high = (
        quants[:, 0::4] >> 4
        | quants[:, 1::4] >> 4 << 2
        | quants[:, 2::4] >> 4 << 4
        | quants[:, 3::4] >> 4 << 6
    )
    scales = rng.normal(0, 40, (count, 16)).clip(-128, 127).astype(np.int8).view(np.uint8)
    delta = rng.uniform(1e-4, 5e-4, (count, 1)).astype("<f2").view(np.uint8).reshape(-1, 2)
    return np.concatenate([low, high, scales, delta], 1)
