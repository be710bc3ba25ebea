"""Restoring every model of a corpus from a store that holds them all; outputs are compared with the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.scenarios.speed import sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.datasets import Corpus
    from benchmarks.harness import Harness, Measurement, Sample


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        trials = {}
        for peer in harness.peers:
            store = harness.work / f"restore-{peer}-{corpus.root.name}"
            receipt = harness.filled_store(peer, store, corpus)["receipt"]
            trials[peer] = _trial(harness, peer, store, receipt, corpus)
        measurements += harness.interleave("restore", name, trials)
    return measurements


def _trial(
    harness: Harness, peer: str, store: Path, receipt: dict[str, Any], corpus: Corpus
) -> Callable[[], Sample]:
    def trial() -> Sample:
        harness.settle(path for path in store.rglob("*") if path.is_file())
        return sample(corpus.size, harness.restore(peer, store, receipt, corpus))

    return trial
