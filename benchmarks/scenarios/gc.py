"""Removing every other model of a full store, and freeing what only those needed.

The store is filled once for each peer and put back from a copy before each run, at the same place. `remove` drops the names,
`collect` frees; both are fresh processes. What is left is compared with a store to which only the models that stay were
added (`over ideal`). After the first run of every peer, the models that stay are restored and compared with their source.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Metric
from benchmarks.peers import COLLECTORS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.datasets import Corpus
    from benchmarks.harness import Harness, Measurement, Sample

REMOVE = Metric("remove", "s", "lower")
COLLECT = Metric("collect", "s", "lower")
BOTH = Metric("both", "s", "lower")
CPU = Metric("processor", "s", "lower")
PEAK = Metric("peak RSS", "MB", "lower")
FREED = Metric("freed", "MB", None)
LEFT = Metric("left", "MB", "lower")
OVER = Metric("over ideal", "%", None)


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        with harness.scratch("gc") as root:
            trials = {
                peer: _trial(harness, peer, root / peer, corpus)
                for peer in harness.peers
                if peer in COLLECTORS
            }
            measurements += harness.interleave("gc", name, trials)
    return measurements


def removed_from(corpus: Corpus) -> tuple[int, ...]:
    """Return the positions of the models that are removed: every other one."""
    return tuple(range(1, len(corpus.models), 2))


def _trial(harness: Harness, peer: str, folder: Path, corpus: Corpus) -> Callable[[], Sample]:
    folder.mkdir(parents=True)
    store, full = folder / "store", folder / "full"
    gone = removed_from(corpus)
    stay = [at for at in range(len(corpus.models)) if at not in gone]
    kept = _only(corpus, stay)
    with harness.scratch("ideal") as ideal:
        least = harness.filled_store(peer, ideal, kept)["stored_bytes"]
    answer = harness.filled_store(peer, store, corpus)
    receipt, before = answer["receipt"], answer["stored_bytes"]
    store.rename(full)
    verified = False

    def trial() -> Sample:
        nonlocal verified
        shutil.copytree(full, store, symlinks=True)
        harness.settle([path for path in store.rglob("*") if path.is_file()])
        where = {"peer": peer, "store": str(store)}
        removed = harness.fresh("benchmarks.worker:remove", **where, receipt=receipt, models=gone)
        collected = harness.fresh("benchmarks.worker:collect", **where)
        if not verified:
            harness.restore(peer, store, _part(receipt, stay), kept)
            verified = True
        shutil.rmtree(store)
        left = collected["stored_bytes"]
        return {
            REMOVE: removed["seconds"],
            COLLECT: collected["seconds"],
            BOTH: removed["seconds"] + collected["seconds"],
            CPU: removed["cpu_seconds"] + collected["cpu_seconds"],
            PEAK: max(removed["rss_peak"], collected["rss_peak"]) / 1e6,
            FREED: (before - left) / 1e6,
            LEFT: left / 1e6,
            OVER: 100 * (left / least - 1),
        }

    return trial


def _only(corpus: Corpus, positions: Sequence[int]) -> Corpus:
    """Return a corpus of some of the models; what was made of another one stands for itself."""
    names = {corpus.models[at].name for at in positions}
    models = tuple(
        model if model.base in names else replace(model, base=None)
        for model in (corpus.models[at] for at in positions)
    )
    return replace(corpus, models=models)


def _part(receipt: dict[str, Any], positions: Sequence[int]) -> dict[str, Any]:
    """Return the receipt of some of the models: what it lists, it lists in their order."""
    return {what: [found[at] for at in positions] for what, found in receipt.items()}
