"""Listing, finding and adding refs in a store that has many.

One small model is added; the other refs name it, too. Their records are the ones that the store would write, put
through its backend without fsync and without looking for records of the same name before each, which would
take hours. Every figure is of a fresh process and includes opening the store:

- `list, first time`: all refs, on a machine that does not know this store: every record is read from its file;
- `list`: all refs, on a machine that has read them before and keeps a catalogue of them;
- `list, filtered`: those whose metadata has one of 13 values in a field;
- `list, newest 50`: what a person looks at;
- `list, as records`: all that every record says, decoded and verified;
- `find by name`, `find by id`: one model, by the full name of its ref, or by its model id, which names no ref;
- `add`: a model of 64 KiB under a new ref, durability full;
- `add a run`, `read a run`: the median of 50 manifests of 600 bytes, durability full, in a store that is open.

Memory is the peak RSS beyond what imports took. There are 3 repeats at most, and none to warm up.
"""

from __future__ import annotations

import os
import shutil
import statistics
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
from casstore.machine.state import state_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Harness, Measurement, Sample

LIST_FIRST = Metric("list, first time", "s", "lower")
LIST = Metric("list", "s", "lower")
FILTERED = Metric("list, filtered", "s", "lower")
NEWEST = Metric("list, newest 50", "s", "lower")
RECORDS = Metric("list, as records", "s", "lower")
LIST_MEMORY = Metric("memory of list", "MB", "lower")
FIND = Metric("find by name", "ms", "lower")
FIND_ID = Metric("find by id", "ms", "lower")
ADD = Metric("add", "ms", "lower")
ADD_RUN = Metric("add a run", "ms", "lower")
READ_RUN = Metric("read a run", "ms", "lower")
ADD_MEMORY = Metric("memory of add", "MB", "lower")

_MODULE = "benchmarks.scenarios.refs"
_MODEL_BYTES = 64 << 10
_PASSES = 13
_RUNS = 50


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
    filtered = ask("list_some", where={"pass": "pass-3"})
    newest = ask("list_some", limit=50)
    records = ask("list_records")
    by_name = ask("find", name=_name(count // 2))
    by_id = ask("find", name=by_name["model_id"])
    folder = store.parent / f"model-{os.urandom(8).hex()}"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(os.urandom(_MODEL_BYTES))
    added = ask("add", folder=str(folder))
    listed = ask("list_all")
    runs = ask("add_runs")
    if records["refs"] != again["refs"] or not 0 <= filtered["refs"] - count // _PASSES <= 1:
        raise BenchmarkError(
            f"Of {count} refs, a filter finds {filtered['refs']}, and {records['refs']} have a record."
        )
    if not count <= first["refs"] == again["refs"] == listed["refs"] - 1:
        raise BenchmarkError(
            f"The store of {count} refs lists {first['refs']}, {again['refs']}, {listed['refs']}."
        )
    if by_id["model_id"] != by_name["model_id"]:
        raise BenchmarkError("A model is not what its id finds.")
    return {
        LIST_FIRST: first["seconds"],
        LIST: again["seconds"],
        FILTERED: filtered["seconds"],
        NEWEST: newest["seconds"],
        RECORDS: records["seconds"],
        LIST_MEMORY: max(first["memory"], again["memory"]) / 1e6,
        FIND: 1000 * by_name["seconds"],
        FIND_ID: 1000 * by_id["seconds"],
        ADD: 1000 * added["seconds"],
        ADD_RUN: 1000 * runs["add"],
        READ_RUN: 1000 * runs["read"],
        ADD_MEMORY: added["memory"] / 1e6,
    }


def build(store: str, count: int) -> None:
    """Make a store with `count` refs that name one model."""
    source = Path(f"{store}-source")
    source.mkdir()
    (source / "weights.bin").write_bytes(os.urandom(_MODEL_BYTES))
    with Store(store, create=True, durability="none") as opened:
        opened.add(source, ref=_name(0))
        record = opened.resolve(_name(0)).record
        for number in range(1, count):
            made = replace(
                record,
                name=_name(number),
                write_id=os.urandom(WRITE_ID_SIZE),
                metadata={"pass": f"pass-{number % _PASSES}", "status": "done"},
            )
            opened.backend.put(made.key, [record_format.encode(made)])
    shutil.rmtree(source)


def forget(store: str) -> None:
    """Throw away what this machine knows of the store."""
    with Store(store) as opened:
        state = state_path(bytes.fromhex(opened.store_id), opened.backend.url)
    shutil.rmtree(os.path.dirname(state), ignore_errors=True)


def list_all(store: str) -> dict[str, Any]:
    """List all refs."""
    return _measured(store, lambda opened: {"refs": len(opened.find())})


def list_some(store: str, **conditions: Any) -> dict[str, Any]:
    """List the refs for which conditions hold."""
    return _measured(store, lambda opened: {"refs": len(opened.find(**conditions))})


def list_records(store: str) -> dict[str, Any]:
    """List all refs with all that their records say."""
    return _measured(store, lambda opened: {"refs": len(opened.refs())})


def add_runs(store: str) -> dict[str, Any]:
    """Add runs, look each up again, and delete it; the median time of each in seconds."""
    times: dict[str, list[float]] = {"add": [], "read": []}
    with Store(store) as opened:
        for _ in range(_RUNS):
            name = f"runs/{os.urandom(8).hex()}"
            started = time.perf_counter()
            opened.put_manifest(name, os.urandom(600), metadata={"status": "done"})
            times["add"].append(time.perf_counter() - started)
            started = time.perf_counter()
            record = opened.record(name)
            times["read"].append(time.perf_counter() - started)
            assert record is not None
            opened.rm(name)
    return {label: statistics.median(found) for label, found in times.items()}


def find(store: str, name: str) -> dict[str, Any]:
    """Find one model by what a user would type."""
    return _measured(store, lambda opened: {"model_id": opened.resolve(name).model_id})


def add(store: str, folder: str) -> dict[str, Any]:
    """Add one model under a ref called like its folder."""
    return _measured(store, lambda opened: {"ref": opened.add(folder, ref=f"models/{Path(folder).name}").ref})


def _measured(store: str, run: Callable[[Store], dict[str, Any]]) -> dict[str, Any]:
    before = peak_rss()
    started = time.perf_counter()
    with Store(store) as opened:
        answer = run(opened)
        seconds = time.perf_counter() - started
        return {**answer, "seconds": seconds, "memory": peak_rss() - before}


def _name(number: int) -> str:
    return f"models/variant-{number:07}"
