"""Where the time goes: every stage of adding and restoring on its own, on one core, and what bounds it.

Each repeat is a fresh process pinned to one core. Next to the stages stands what the machine does at best: copy
memory, hash, scan for cuts and write, and nothing else.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Measurement, Metric, say
from benchmarks.scenarios import stage_pipeline as pipeline
from casstore.chunking import Chunker
from casstore.concurrency.buffers import BLOCK
from casstore.digest import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.harness import Harness

SPEED = Metric("speed", "plain MB/s per core", "higher")
SHARE = Metric("share of time", "%", None)
PASSES = Metric("bytes that pass", "% of plain bytes", None)
LIMIT = Metric("physical limit", "plain MB/s", None)

ALL = "all, one after another"
COPY, HASH, SCAN, DISK = "copy memory", "BLAKE3", "FastCDC scan", "write and fsync a large file"
BOUNDS = {
    pipeline.READ: COPY,
    pipeline.FILE_HASH: HASH,
    pipeline.CUT: SCAN,
    pipeline.CHUNK_HASH: HASH,
    pipeline.CHOOSE: COPY,
    pipeline.ENCODE: COPY,
    pipeline.CHECK: COPY,
    pipeline.PACK_HASH: HASH,
    pipeline.WRITE_PACK: DISK,
    pipeline.DECODE: COPY,
    pipeline.WRITE: COPY,
}
"""What bounds each stage, whatever its code: encoding and decoding must at least move the bytes."""

_LARGE = 256 << 20
_ROUNDS = 3
_LEAST_TOUCHED = 0.05
"""A stage that looks at less of what passes is not bounded by the bytes."""


def run(harness: Harness) -> list[Measurement]:
    """Measure the corpora of the options; no peers take part."""
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        answers = []
        for turn in range(-harness.options.warmups, harness.options.repeats):
            say(f"stages · {name} · {'warm-up' if turn < 0 else f'repeat {turn + 1}'}")
            harness.settle(corpus.paths())
            with harness.scratch("stages") as work:
                work.mkdir()
                models = [str(corpus.path(model)) for model in corpus.models]
                answer = harness.fresh("benchmarks.scenarios.stages:measure", models=models, work=str(work))
            if turn >= 0:
                answers.append(answer)
        measurements += measured(name, corpus.size, answers)
    return measurements


def measure(models: list[str], work: str) -> dict[str, Any]:
    """Take models through all stages, in this process; return {"add", "restore"} by stage and {"limits"} in MB/s."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    adding = pipeline.Adding(Path(work))
    for model in models:
        adding.take(model)
    adding.close_pack()
    os.sync()
    restoring = pipeline.Restoring(adding)
    for file in adding.files:
        restoring.take(file)
    restoring.close()
    answer: dict[str, Any] = {
        direction: {name: asdict(stage) for name, stage in stages.items() if stage.plain}
        for direction, stages in (("add", adding.stages), ("restore", restoring.stages))
    }
    answer["limits"] = _limits(Path(work), min(_LARGE, adding.stages[pipeline.READ].plain))
    return answer


def measured(name: str, size: int, answers: Sequence[dict[str, Any]]) -> list[Measurement]:
    """Turn the answers of `measure`, about a corpus of `size` plain bytes, into measurements."""
    samples: dict[tuple[str, str, Metric], list[float]] = defaultdict(list)
    for answer in answers:
        limits = answer["limits"]
        for direction in ("add", "restore"):
            case, stages = f"{name}, {direction}", answer[direction]
            total = sum(stage["seconds"] for stage in stages.values())
            for subject, stage in stages.items():
                plain, touched = stage["plain"], stage["touched"]
                samples[case, subject, SPEED].append(plain / 1e6 / stage["seconds"])
                samples[case, subject, SHARE].append(100 * stage["seconds"] / total)
                samples[case, subject, PASSES].append(100 * plain / size)
                if touched >= _LEAST_TOUCHED * plain:
                    samples[case, subject, LIMIT].append(limits[BOUNDS[subject]] * plain / touched)
            samples[case, ALL, SPEED].append(size / 1e6 / total)
            samples[case, ALL, SHARE].append(100.0)
        for subject, speed in limits.items():
            samples[f"{name}, this machine at best", subject, LIMIT].append(speed)
    return [
        Measurement("stages", case, subject, metric, tuple(values))
        for (case, subject, metric), values in samples.items()
    ]


def _limits(work: Path, size: int) -> dict[str, float]:
    """Return what one core and the disk do at best, in MB/s: a block that is in cache, a file of `size` bytes."""
    source = np.random.default_rng(25).integers(0, 256, max(size, BLOCK), np.uint8)
    block, other = source[:BLOCK], np.ones(BLOCK, np.uint8)
    data = memoryview(source)
    blocks = max(size // BLOCK, 1)

    def copy() -> None:
        for _ in range(blocks):
            np.copyto(other, block)

    def hash_blocks() -> None:
        for _ in range(blocks):
            digest(data[:BLOCK])

    def scan() -> None:
        for _ in range(blocks):
            Chunker(()).cut(data[:BLOCK], offset=0, final=True)

    def write() -> None:
        descriptor = os.open(work / "large", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            pipeline.write_all(descriptor, data[: blocks * BLOCK], 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    return {
        name: blocks * BLOCK / 1e6 / min(_seconds(task) for _ in range(_ROUNDS))
        for name, task in ((COPY, copy), (HASH, hash_blocks), (SCAN, scan), (DISK, write))
    }


def _seconds(task: Callable[[], None]) -> float:
    os.sync()
    stages = pipeline.Stages(("task",))
    with stages.timed("task") as stage:
        task()
    return stage.seconds
