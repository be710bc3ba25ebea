"""Several processes that add overlapping models to one store at the same time, against one that adds them all.

The models of a corpus are dealt out in turn to the writers, all of which begin together on an empty store, so that those
that share chunks meet. Time is from the first that begins until the last that is done, opening the store
included. A model's base is named where the same writer added it before.

After every run each model is restored and compared with its source, and `check` reads every byte; anything wrong
is an error. `stored twice` are bytes of frames whose object has another frame: nobody waits for another writer, so
what two of them bring at the same moment is stored by both.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import BenchmarkError, Metric
from benchmarks.peers.base import tree_bytes
from casstore import Store
from casstore.format import frame
from casstore.format.rows import row_ids
from casstore.objects import PACK_PREFIX, pack_id_of
from casstore.ops.check import check

if TYPE_CHECKING:
    from benchmarks.datasets import Corpus
    from benchmarks.harness import Harness, Measurement, Sample

SECONDS = Metric("time", "s", "lower")
SPEED = Metric("throughput", "MB/s", "higher")
STORED = Metric("stored", "MB", "lower")
TWICE = Metric("stored twice", "MB", "lower")

_MODULE = "benchmarks.scenarios.concurrent"


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        writers = min(harness.options.writers, len(corpus.models))
        trials = {
            "casstore": partial(_trial, harness, corpus, writers),
            "one writer": partial(_trial, harness, corpus, 1),
        }
        measurements += harness.interleave("concurrent", f"{name}, {writers} writers", trials)
    return measurements


def _trial(harness: Harness, corpus: Corpus, writers: int) -> Sample:
    models = [[model.name, str(corpus.path(model)), model.base] for model in corpus.models]
    with harness.scratch("store") as store:
        harness.fresh("benchmarks.worker:prepare", peer="casstore", store=str(store))
        gate = store.parent / "gate"
        gate.mkdir()
        harness.settle(corpus.paths())
        calls = [
            {
                "store": str(store),
                "models": models[at::writers],
                "gate": str(gate),
                "number": at,
                "writers": writers,
            }
            for at in range(writers)
        ]
        answers = harness.fresh_together(f"{_MODULE}:write", calls)
        stored = tree_bytes(store)
        harness.restore("casstore", store, {"models": [name for name, _, _ in models]}, corpus)
        found = harness.fresh(f"{_MODULE}:inspect", store=str(store))
    if found["problems"] or found["models"] != len(models):
        raise BenchmarkError(
            f"After {writers} writers, the store holds {found['models']} of {len(models)} models: {found['problems']}"
        )
    seconds = max(answer["ended"] for answer in answers) - min(answer["began"] for answer in answers)
    return {
        SECONDS: seconds,
        SPEED: corpus.size / 1e6 / seconds,
        STORED: stored / 1e6,
        TWICE: found["twice"] / 1e6,
    }


def write(
    store: str, models: list[list[Any]], gate: str, number: int, writers: int, *, patience: float = 60.0
) -> dict[str, float]:
    """Wait until all writers are here, then add models, given as [name, folder, name of the base or None].

    Raises BenchmarkError if some are not here after `patience` seconds.
    """
    (Path(gate) / str(number)).touch()
    deadline = time.monotonic() + patience
    while len(list(Path(gate).iterdir())) < writers:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"Not all of {writers} writers began within {patience:g} s.")
        time.sleep(0.001)
    began = time.monotonic()  # One clock for all processes of a machine.
    added: set[str] = set()
    with Store(store, durability="full") as opened:
        for name, folder, base in models:
            known = f"models/{base}" if base in added else None
            opened.add(folder, ref=f"models/{name}", base=known, stat_cache=False)
            added.add(name)
    return {"began": began, "ended": time.monotonic()}


def inspect(store: str) -> dict[str, Any]:
    """Check every byte of a store; return problems, the number of refs, and the bytes of superfluous frames."""
    with Store(store) as opened:
        report = check(opened, read_data=True)
        # Of several frames, readers take the one that rests on the fewest others.
        chosen: dict[bytes, tuple[int, int]] = {}
        total = 0
        for entry in opened.backend.list(PACK_PREFIX):
            rows = opened.objects.footer(pack_id_of(entry.key)).rows
            sizes = (rows["stored"].astype(np.int64) + frame.HEADER_SIZE).tolist()
            total += sum(sizes)
            for object_id, rank, size in zip(row_ids(rows), rows["rank"].tolist(), sizes, strict=True):
                chosen[object_id] = min((rank, size), chosen.get(object_id, (rank, size)))
        return {
            "problems": [f"{problem.key}: {problem.message}" for problem in report.problems],
            "models": len(opened.refs()),
            "twice": total - sum(size for _, size in chosen.values()),
        }
