"""Adding a whole corpus, to an empty store and to one that has it.

The first run of every peer is restored and compared with its source before anything counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.harness import Harness, Measurement, Metric
from benchmarks.scenarios.speed import sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.datasets import Corpus
    from benchmarks.harness import Sample

STORED = Metric("stored share", "of plain bytes", "lower")


def cold(harness: Harness) -> list[Measurement]:
    """Add all models, one after another, to an empty store."""
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        trials = {peer: _cold_trial(harness, peer, corpus) for peer in harness.peers}
        measurements += harness.interleave("add", name, trials)
    return measurements


def again(harness: Harness) -> list[Measurement]:
    """Add all models once more, to the store that has them; files are read, whatever a stat cache knows."""
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        stores = {peer: harness.work / f"again-{peer}-{corpus.root.name}" for peer in harness.peers}
        for peer, store in stores.items():
            harness.filled_store(peer, store, corpus)
        trials = {peer: _again_trial(harness, peer, store, corpus) for peer, store in stores.items()}
        measurements += harness.interleave("add-again", name, trials)
    return measurements


def _cold_trial(harness: Harness, peer: str, corpus: Corpus) -> Callable[[], Sample]:
    verified = False

    def trial() -> Sample:
        nonlocal verified
        with harness.scratch("store") as store:
            harness.fresh("benchmarks.worker:prepare", peer=peer, store=str(store))
            harness.settle(corpus.paths())
            answer = harness.add(peer, store, corpus)
            if not verified:
                harness.restore(peer, store, answer["receipt"], corpus)
                verified = True
        return {**sample(corpus.size, answer), STORED: answer["stored_bytes"] / corpus.size}

    return trial


def _again_trial(harness: Harness, peer: str, store: Path, corpus: Corpus) -> Callable[[], Sample]:
    def trial() -> Sample:
        harness.settle(corpus.paths())
        return sample(corpus.size, harness.add(peer, store, corpus))

    return trial
