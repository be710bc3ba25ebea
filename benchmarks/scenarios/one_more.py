"""Adding one more variant to a store that holds all other models, as every step of a pipeline does.

Left out of the store are the variant and whatever was made from it. The store is filled once for each peer and put
back from a copy before each run, at the same place. The first run of every peer is restored and compared
with its source. The variants, see `STEPS`, stand for typical steps.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.harness import Metric
from benchmarks.scenarios.speed import sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.datasets import Corpus, CorpusModel
    from benchmarks.harness import Harness, Measurement, Sample

SECONDS = Metric("time", "s", "lower")
NEW = Metric("new stored", "MB", "lower")

STEPS = ("step-120", "step-120-bf16", "bf16", "last-layer-retrained", "last-block-retrained")
"""Variants to add: a fine-tuned checkpoint, a cast, a part trained again. A corpus with none of them: its last model."""


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        for model in steps(corpus):
            with harness.scratch("one-more") as root:
                trials = {peer: _trial(harness, peer, root / peer, corpus, model) for peer in harness.peers}
                measurements += harness.interleave("one-more", f"{name}, {model.name}", trials)
    return measurements


def steps(corpus: Corpus) -> tuple[CorpusModel, ...]:
    """Return the variants of a corpus to add to all others."""
    return tuple(model for model in corpus.models if model.name in STEPS) or corpus.models[-1:]


def _trial(
    harness: Harness, peer: str, folder: Path, corpus: Corpus, model: CorpusModel
) -> Callable[[], Sample]:
    folder.mkdir(parents=True)
    store, kept = folder / "store", folder / "kept"
    gone = made_from(corpus, model)
    others = tuple(item for item in corpus.models if item.name not in gone)
    before = harness.filled_store(peer, store, replace(corpus, models=others))["stored_bytes"]
    store.rename(kept)
    one = replace(corpus, models=(model,))
    verified = False

    def trial() -> Sample:
        nonlocal verified
        shutil.copytree(kept, store, symlinks=True)
        harness.settle([*one.paths(), *(path for path in store.rglob("*") if path.is_file())])
        answer = harness.add(peer, store, one)
        if not verified:
            harness.restore(peer, store, answer["receipt"], one)
            verified = True
        shutil.rmtree(store)
        new = (answer["stored_bytes"] - before) / 1e6
        return {SECONDS: answer["seconds"], **sample(one.size, answer), NEW: new}

    return trial


def made_from(corpus: Corpus, model: CorpusModel) -> set[str]:
    """Return the names of a model and of all that were made from it, directly or not."""
    found = {model.name}
    for item in corpus.models:  # in the order in which they were made
        if {item.base, item.second_parent} & found:
            found.add(item.name)
    return found
