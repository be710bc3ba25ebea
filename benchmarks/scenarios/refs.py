"""Listing, finding and adding refs in a store that has many.

One small model is added; the other refs name it, too. Their records are the ones that the store would write, put
through its backend without fsync and without looking for records of the same name before each, which would
take hours. Every figure is of a fresh process and includes opening the store:

- `list, first time`: all refs, on a machine that does not know this store: every record is read from its file;
- `list`: all refs, on a machine that has read them before and kept copies of the records;
- `find by name`, `find by id`: one model, by the full name of its ref, or by its model id, which names no ref;
- `add`: a model of 64 KiB under a new ref, durability full.

Memory is the peak RSS beyond what imports took. There are 3 repeats at most, and none to warm up.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import BenchmarkError, Metric
from benchmarks.worker import peak_rss
from casstore import Store
from casstore.format import record as record_format
from casstore.format.names import WRITE_ID_SIZE
from casstore.store.machine import state_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Harness, Measurement, Sample

LIST_FIRST = Metric("list, first time", "s", "lower")
LIST = Metric("list", "s", "lower")
LIST_MEMORY = Metric("memory of list", "MB", "lower")
FIND = Metric("find by name", "ms", "lower")
FIND_ID = Metric("find by id", "ms", "lower")
ADD = Metric("add", "ms", "lower")
ADD_MEMORY = Metric("memory of add", "MB", "lower")

_MODULE = "benchmarks.scenarios.refs"
_MODEL_BYTES = 64 << 10


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for count in harness.options.refs_counts:
        with harness.scratch("refs") as store:
            harness.fresh(f"{_MODULE}:build", store=str(store), count=count)
            trials = {"casstore": partial(_trial, harness, store, count)}
            measurements += harness.interleave(
                "refs", str(count), trials, repeats=min(harness.options.repeats, 3), warmups=0
            )
    return measurements


def _trial(harness: Harness, store: Path, count: int) -> Sample:
    def ask(function: str, **arguments: Any) -> dict[str, Any]:
        os.sync()
        answer: dict[str, Any] = harness.fresh(f"{_MODULE}:{function}", store=str(store), **arguments)
        return answer

    ask("forget")
    first = ask("list_all")
    again = ask("list_all")
    by_name = ask("find", name=_name(count // 2))
    by_id = ask("find", name=by_name["model_id"])
    folder = store.parent / f"model-{os.urandom(8).hex()}"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(os.urandom(_MODEL_BYTES))
    added = ask("add", folder=str(folder))
    listed = ask("list_all")
    if not count <= first["refs"] == again["refs"] == listed["refs"] - 1:
        raise BenchmarkError(
            f"The store of {count} refs lists {first['refs']}, {again['refs']}, {listed['refs']}."
        )
    if by_id["model_id"] != by_name["model_id"]:
        raise BenchmarkError("A model is not what its id finds.")
    return {
        LIST_FIRST: first["seconds"],
        LIST: again["seconds"],
        LIST_MEMORY: max(first["memory"], again["memory"]) / 1e6,
        FIND: 1000 * by_name["seconds"],
        FIND_ID: 1000 * by_id["seconds"],
        ADD: 1000 * added["seconds"],
        ADD_MEMORY: added["memory"] / 1e6,
    }


def build(store: str, count: int) -> None:
    """Make a store with `count` refs that name one model."""
    source = Path(f"{store}-source")
    source.mkdir()
    (source / "weights.bin").write_bytes(os.urandom(_MODEL_BYTES))
    with Store.open(store, create=True, durability="none") as opened:
        opened.add(source, ref=_name(0))
        record = opened.resolve(_name(0)).record
        for number in range(1, count):
            made = replace(record, name=_name(number), write_id=os.urandom(WRITE_ID_SIZE))
            opened.backend.put(made.key, [record_format.encode(made)])
    shutil.rmtree(source)


def forget(store: str) -> None:
    """Throw away what this machine knows of the store."""
    with Store.open(store) as opened:
        state = state_path(bytes.fromhex(opened.store_id), opened.backend.url)
    shutil.rmtree(os.path.dirname(state), ignore_errors=True)


def list_all(store: str) -> dict[str, Any]:
    """List all refs."""
    return _measured(store, lambda opened: {"refs": len(opened.refs())})


def find(store: str, name: str) -> dict[str, Any]:
    """Find one model by what a user would type."""
    return _measured(store, lambda opened: {"model_id": opened.resolve(name).model_id})


def add(store: str, folder: str) -> dict[str, Any]:
    """Add one model under a ref called like its folder."""
    return _measured(store, lambda opened: {"ref": opened.add(folder, ref=f"models/{Path(folder).name}").ref})


def _measured(store: str, run: Callable[[Store], dict[str, Any]]) -> dict[str, Any]:
    before = peak_rss()
    started = time.perf_counter()
    with Store.open(store) as opened:
        answer = run(opened)
        seconds = time.perf_counter() - started
        return {**answer, "seconds": seconds, "memory": peak_rss() - before}


def _name(number: int) -> str:
    return f"models/variant-{number:07}"
