"""Opening a store and looking up objects in it, for several numbers of chunks: do time and memory grow?

The index is made by the store's own code, as many adds leave it: each add publishes one segment over its packs,
and segments merge by the store's own rule. Ids are random; packs are named but not there, for a look-up opens
none of them. (What an add looks up it also checks with one `stat` per pack that is found; that is not in here.)

Every figure is of a fresh process that opens the store and loads its index (`open`), looks up 4,096 ids (`find`),
and looks up the same ones once more (`find again`): ids that are there, spread over the whole index, or ids that
are not. "Cold" means that no byte of the index is in the page cache. Memory is the highest peak RSS of these
processes beyond what imports took; it counts mapped pages of the index, which the system may take back at
any time, so what is private memory is given as well. The bytes on disk are those of the index alone.
There is no run to warm up: the page cache is brought to its stated condition before each process.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.datasets.packs import STORED, footer_of
from benchmarks.harness import BenchmarkError, Metric
from benchmarks.peers.base import tree_bytes
from benchmarks.worker import peak_rss
from casstore import Store
from casstore.digest import DIGEST_SIZE
from casstore.objects import PACK_TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.harness import Harness, Measurement, Sample

OPEN_COLD = Metric("open, cold", "ms", "lower")
OPEN = Metric("open", "ms", "lower")
FIND_COLD = Metric("find, cold", "ms", "lower")
FIND = Metric("find", "ms", "lower")
FIND_AGAIN = Metric("find again", "ms", "lower")
ABSENT_COLD = Metric("find none, cold", "ms", "lower")
ABSENT = Metric("find none", "ms", "lower")
ABSENT_AGAIN = Metric("find none again", "ms", "lower")
MEMORY = Metric("memory", "MB", "lower")
PRIVATE = Metric("private memory", "MB", "lower")
DISK = Metric("index on disk", "MB", "lower")
SEGMENTS = Metric("segments", "", None)

LOOKED_UP = 4096
ADDED = 16_384
"""Chunks that one add brings: a model of 8 GB."""

_PER_PACK = PACK_TARGET // STORED


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for chunks in harness.options.growth_chunks:
        with harness.scratch("growth") as store:
            present = harness.fresh("benchmarks.scenarios.growth:build", store=str(store), chunks=chunks)
            trials = {"casstore": partial(trial, harness, store, present)}
            measurements += harness.interleave("growth", str(chunks), trials, warmups=0)
    return measurements


def trial(harness: Harness, store: Path, present: str) -> Sample:
    """Look up ids that are `present`, in hex, and as many others; raise BenchmarkError if the answers are wrong."""
    absent = np.random.default_rng(26).bytes(len(present) // 2).hex()
    ids = {"present": present, "absent": absent}
    segments = sorted((store / "index").iterdir())
    answers: dict[tuple[str, str], dict[str, Any]] = {}
    for which, asked in ids.items():
        for page_cache in ("cold", "warm"):
            harness.settle(segments, page_cache=page_cache)
            answer = harness.fresh("benchmarks.scenarios.growth:look_up", store=str(store), ids=asked)
            if answer["found"] != (len(present) // 64 if which == "present" else 0):
                raise BenchmarkError(f"{answer['found']} of {len(present) // 64} {which} ids were found.")
            answers[which, page_cache] = answer
    here, none = answers["present", "warm"], answers["absent", "warm"]
    return {
        OPEN_COLD: 1000 * answers["present", "cold"]["open"],
        OPEN: 1000 * here["open"],
        FIND_COLD: 1000 * answers["present", "cold"]["first"],
        FIND: 1000 * here["first"],
        FIND_AGAIN: 1000 * here["second"],
        ABSENT_COLD: 1000 * answers["absent", "cold"]["first"],
        ABSENT: 1000 * none["first"],
        ABSENT_AGAIN: 1000 * none["second"],
        MEMORY: max(answer["memory"] for answer in answers.values()) / 1e6,
        PRIVATE: max(answer["private"] for answer in answers.values()) / 1e6,
        DISK: tree_bytes(store / "index") / 1e6,
        SEGMENTS: len(segments),
    }


def build(store: str, chunks: int) -> str:
    """Make a store whose index has `chunks` rows; return ids that are in it, spread over all of it, in hex."""
    rng = np.random.default_rng(25)
    wanted = np.sort(rng.choice(chunks, min(chunks, LOOKED_UP), replace=False))
    present: list[bytes] = []
    with Store(store, create=True, durability="none") as opened:
        for begin in range(0, chunks, ADDED):
            end = min(begin + ADDED, chunks)
            packs = [
                (rng.bytes(32), footer_of(rng.bytes(DIGEST_SIZE * min(_PER_PACK, end - start))))
                for start in range(begin, end, _PER_PACK)
            ]
            joined = np.concatenate([footer.rows["id"] for _, footer in packs], dtype=">u8")
            here = wanted[np.searchsorted(wanted, begin) : np.searchsorted(wanted, end)]
            present.append(joined[here - begin].tobytes())
            opened.objects.cover(packs)
    return b"".join(present).hex()


def look_up(store: str, ids: str) -> dict[str, float]:
    """Open a store and look up ids twice; return seconds, how many were found, and memory in bytes."""
    asked = bytes.fromhex(ids)
    before, private = peak_rss(), _private_memory()
    times = []

    @contextmanager
    def timed() -> Iterator[None]:
        started = time.perf_counter()
        yield
        times.append(time.perf_counter() - started)

    with timed():
        opened = Store(store)
        opened.objects.refresh()
    with timed():
        found = opened.objects.find(asked).found
    with timed():
        opened.objects.find(asked)
    return {
        **dict(zip(("open", "first", "second"), times, strict=True)),
        "found": int(found.sum()),
        "memory": peak_rss() - before,
        "private": _private_memory() - private,
    }


def _private_memory() -> int:
    """Return the resident bytes that no file backs, 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return 0
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024
