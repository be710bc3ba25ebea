"""Seeded random tensors with the statistics of trained ones, of any size or with edits that are hard to cut for."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.datasets import weights
from benchmarks.datasets.corpus import CorpusError, Lineage, Recipe
from benchmarks.datasets.weights import Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.datasets.weights import Tensors

MB = 1_000_000


def transformer(megabytes: str) -> Recipe:
    """Return the recipe of `synthetic:MB`, 64 MB by default."""
    if not (megabytes or "64").isdecimal() or megabytes == "0":
        raise CorpusError(f"synthetic:{megabytes} names no size: synthetic:64 is 64 MB.")
    size = int(megabytes or 64)
    return Recipe(f"2 ({size} MB)", partial(_build_transformer, size=size * MB))


def mid_insert(_: str) -> Recipe:
    return Recipe("1", _build_mid_insert)


def fused(_: str) -> Recipe:
    return Recipe("1", _build_fused)


def _build_transformer(folder: Path, cache: Path, *, size: int) -> Lineage:
    """Build a transformer in fp32, a copy with its last block retrained, and one in bf16: about `size` bytes in all."""
    del cache
    rng = np.random.default_rng(21)
    hidden = 128 if size < 16 * MB else 256 if size < 64 * MB else 1024
    base = weights.random_transformer(rng, hidden=hidden, size=size * 2 // 5)
    last = max(name.rpartition(".")[0] for name in base if name.startswith("block."))
    retrained = dict(base)
    for name in base:
        if name.startswith(last):
            retrained[name] = weights.retrained(base[name], rng)
    models = {"base": base, "last-block-retrained": retrained, "bf16": weights.cast(base, "BF16")}
    for name, tensors in models.items():
        _write(folder / name, tensors)
        (folder / name / "config.json").write_text(json.dumps({"hidden_size": hidden}) + "\n")
    return {"base": (), "last-block-retrained": ("base",), "bf16": ("base",)}


def _build_mid_insert(folder: Path, cache: Path) -> Lineage:
    """Build an embedding and three copies of it with rows inserted early, in the middle and late."""
    del cache
    rng = np.random.default_rng(22)
    embedding = weights.random_weights(rng, (16_384, 384))
    other = weights.random_weights(rng, (4096, 384))
    _write(folder / "base", {"embedding": embedding, "other": other})
    lineage: Lineage = {"base": ()}
    for percent in (10, 50, 90):
        name = f"rows-at-{percent}-percent"
        at = len(embedding.array) * percent // 100
        added = weights.random_weights(rng, (64, 384)).array
        joined = np.concatenate([embedding.array[:at], added, embedding.array[at:]])
        _write(folder / name, {"embedding": Tensor("F32", joined), "other": other})
        lineage[name] = ("base",)
    return lineage


def _build_fused(folder: Path, cache: Path) -> Lineage:
    """Build attention blocks with separate q, k and v, and a copy with the three fused at odd offsets."""
    del cache
    rng = np.random.default_rng(23)
    separate: Tensors = {}
    joint: Tensors = {}
    for layer in range(4):
        parts = {part: weights.random_weights(rng, (768, 768)) for part in "qkv"}
        separate |= {f"layer.{layer}.{part}.weight": tensor for part, tensor in parts.items()}
        joined = np.concatenate([tensor.array for tensor in parts.values()])
        joint[f"layer.{layer}.qkv.weight"] = Tensor("F32", joined)
        for part, shape in {"out": (768, 768), "up": (3072, 768), "down": (768, 3072)}.items():
            name = f"layer.{layer}.{part}.weight"
            separate[name] = joint[name] = weights.random_weights(rng, shape)
    _write(folder / "separate", separate)
    _write(folder / "fused", joint)
    return {"separate": (), "fused": ("separate",)}


def _write(folder: Path, tensors: Tensors) -> None:
    folder.mkdir()
    weights.write_safetensors(folder / "model.safetensors", tensors)
