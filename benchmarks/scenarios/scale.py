"""Upkeep of a store with many chunks, packs and refs: planning a collection, collecting, `du`, `stats` and `ls`.

The store is synthetic. Its packs have the right size and their own footers, and holes in place of chunks, which upkeep
never reads; manifests, trees, layouts and records are real. Each model has its own share of the chunks, and a tenth as
many of the model before. Every figure is of a fresh process, and includes opening the store:

- `ls`: all refs;
- `du`, `stats`: what `casstore du` and `casstore stats` compute, by the index;
- `plan`: the plan of a collection when there is nothing to do, by all footers;
- `gc, nothing to do`: plan and execution;
- `gc`: plan and execution after one ref in ten was deleted. It is last, once, and what it says it freed is compared with
  the bytes that are gone.

`processor` is the time that all cores together spent, which does not depend on what else the machine does. Memory is the peak
of the whole process, imports included. There is no run to warm up: the store has just been written.
"""

from __future__ import annotations

import itertools
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.datasets.packs import footer_of
from benchmarks.harness import BenchmarkError, Measurement, Metric
from benchmarks.peers.base import tree_bytes
from benchmarks.worker import peak_rss
from casstore import Store, execute_gc, plan_gc
from casstore.chunking import FIXED_CHUNK
from casstore.digest import DIGEST_SIZE, digest
from casstore.format import layout, manifest, pack
from casstore.format import record as record_format
from casstore.format.names import WRITE_ID_SIZE
from casstore.format.record import Record
from casstore.format.rows import Kind
from casstore.objects import encode_objects, pack_key
from casstore.objects.publishing.pack_writer import PackWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from benchmarks.harness import Harness, Sample
    from casstore.format.pack import Footer

_MODULE = "benchmarks.scenarios.scale"
_SEGMENT = 128
"""Packs that one index segment covers when it is written; segments merge by the store's own rule."""

_MODELS = 256
"""Models whose descriptions are written together."""

_AGE = 2 * 86_400.0
_FILES = 4
_SHARED = 10
_GONE = 10


def run(harness: Harness) -> list[Measurement]:
    options = harness.options
    sizes = {"chunks": options.scale_chunks, "packs": options.scale_packs, "refs": options.scale_refs}
    case = ", ".join(f"{count:,} {what}" for what, count in sizes.items())
    with harness.scratch("scale") as store:
        harness.fresh(f"{_MODULE}:build", store=str(store), **sizes)
        trials = {"casstore": partial(_trial, harness, store, options.scale_refs)}
        found = harness.interleave("scale", case, trials, warmups=0)
        last = harness.interleave(
            "scale", case, {"casstore": partial(_collect, harness, store)}, repeats=1, warmups=0
        )
    return found + last


def _trial(harness: Harness, store: Path, refs: int) -> Sample:
    sample: Sample = {}
    for name, function in (
        ("ls", "list_refs"),
        ("du", "du"),
        ("stats", "stats"),
        ("plan", "plan"),
        ("gc, nothing to do", "collect"),
    ):
        answer = harness.fresh(f"{_MODULE}:{function}", store=str(store))
        if answer.get("refs", refs) != refs or answer.get("freed", 0):
            raise BenchmarkError(f"{name} says {answer} of a store with {refs} refs that are all needed.")
        sample.update(_figures(name, answer))
    return sample


def _figures(name: str, answer: dict[str, Any]) -> Sample:
    return {
        Metric(name, "s", "lower"): answer["seconds"],
        Metric(f"processor of {name}", "s", "lower"): answer["cpu_seconds"],
        Metric(f"memory of {name}", "MB", "lower"): answer["memory"] / 1e6,
    }


def _collect(harness: Harness, store: Path) -> Sample:
    before = tree_bytes(store)
    harness.fresh(f"{_MODULE}:delete", store=str(store))
    answer = harness.fresh(f"{_MODULE}:collect", store=str(store))
    if not 0 < answer["freed"] < before - tree_bytes(store) + before // 100:
        raise BenchmarkError(f"A collection says {answer}, and {before - tree_bytes(store)} bytes are gone.")
    return {
        **_figures("gc", answer),
        Metric("packs deleted", "", None): answer["packs"],
    }


def build(store: str, chunks: int, packs: int, refs: int) -> None:
    """Make a store of so many chunks in so many packs, shared among so many models."""
    rng = np.random.default_rng(27)
    with Store(store, create=True, durability="none") as opened:
        ids = np.frombuffer(rng.bytes(DIGEST_SIZE * chunks), f"V{DIGEST_SIZE}")
        edges = np.linspace(0, chunks, packs + 1).astype(np.int64).tolist()
        written: list[tuple[bytes, Footer]] = []
        for begin, end in itertools.pairwise(edges):
            footer = footer_of(ids[begin:end].tobytes())
            pack_id = rng.bytes(DIGEST_SIZE)
            _write_pack(Path(store) / pack_key(pack_id), footer, nonce=pack_id[: pack.NONCE_SIZE])
            written.append((pack_id, footer))
            if len(written) == _SEGMENT:
                opened.objects.cover(written)
                written = []
        if written:
            opened.objects.cover(written)
        for first in range(0, refs, _MODELS):
            _add_models(opened, ids, range(first, min(first + _MODELS, refs)), refs=refs)


def _add_models(opened: Store, ids: NDArray[Any], numbers: range, *, refs: int) -> None:
    """Describe models and write their records, as adds leave them."""
    own = len(ids) // refs
    records = []
    with PackWriter(opened.backend) as writer:
        for number in numbers:
            begin = number * own
            held = ids[max(0, begin - own // _SHARED) : begin + own if number < refs - 1 else len(ids)]
            files, layouts = [], {}
            for at, part in enumerate(np.array_split(held, _FILES)):
                file_id = os.urandom(DIGEST_SIZE) if len(part) else digest(b"")
                lengths = np.full(len(part), FIXED_CHUNK, np.uint32)
                size = FIXED_CHUNK * len(part)
                files.append(manifest.TreeEntry(f"part-{at}.bin", size, file_id))
                data = layout.encode(layout.Layout(file_id, size, part.tobytes(), lengths))
                layouts[digest(data)] = data
            tree = manifest.encode_tree(manifest.make_tree(files))
            model = manifest.encode_model(manifest.ModelManifest(digest(tree), _in_order(files, layouts)))
            writer.append(encode_objects(Kind.LAYOUT, layouts))
            writer.append(encode_objects(Kind.TREE, {digest(tree): tree}))
            writer.append(encode_objects(Kind.MANIFEST, {digest(model): model}))
            records.append(_record(number, digest(tree), digest(model)))
        opened.objects.cover([(item.pack_id, item.footer) for item in writer.finish()])
    for record in records:
        opened.backend.put(record.key, [record_format.encode(record)])


def _in_order(files: list[manifest.TreeEntry], layouts: dict[bytes, bytes]) -> tuple[bytes, ...]:
    """Return the layout of each file; empty files have the same one."""
    by_file = {layout.decode(data).file_id: layout_id for layout_id, data in layouts.items()}
    return tuple(by_file[item.file_id or b""] for item in files)


def _record(number: int, model_id: bytes, manifest_id: bytes) -> Record:
    return Record(
        name=f"models/family-{number % 16}/variant-{number:07}",
        seq=1,
        write_id=os.urandom(WRITE_ID_SIZE),
        time=time.time_ns(),
        writer="benchmark",
        target=model_id,
        manifest=manifest_id,
    )


def _write_pack(path: Path, footer: Footer, *, nonce: bytes) -> None:
    """Write a pack with holes in place of its frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(pack.encode_header(nonce))
        file.seek(footer.begin)
        file.write(pack.encode_footer(footer, begin=footer.begin))
    # Younger than an hour, it could belong to an add that is tried again.
    old = time.time() - _AGE
    os.utime(path, (old, old))


def delete(store: str) -> None:
    """Delete one ref in ten, the first ones."""
    with Store(store, durability="none") as opened:
        names = sorted(row.name for row in opened.find())
        by_number = sorted(names, key=lambda name: name.rpartition("-")[2])
        for name in by_number[: len(names) // _GONE]:
            opened.rm(name)


def list_refs(store: str) -> dict[str, Any]:
    """List all refs."""
    return _measured(store, lambda opened: {"refs": len(opened.ls())})


def du(store: str) -> dict[str, Any]:
    """Say where the bytes are."""
    return _measured(store, lambda opened: {"refs": len(opened.du().rows)})


def stats(store: str) -> dict[str, Any]:
    """Measure what the store holds."""
    return _measured(store, lambda opened: {"refs": opened.stats().refs})


def plan(store: str) -> dict[str, Any]:
    """Plan a collection."""
    return _measured(store, lambda opened: {"freed": plan_gc(opened).bytes_freed})


def collect(store: str) -> dict[str, Any]:
    """Collect."""

    def work(opened: Store) -> dict[str, Any]:
        report = execute_gc(opened, plan_gc(opened))
        return {"freed": report.bytes_freed, "packs": report.packs_deleted}

    return _measured(store, work)


def _measured(store: str, work: Callable[[Store], dict[str, Any]]) -> dict[str, Any]:
    started, cpu = time.perf_counter(), time.process_time()
    with Store(store) as opened:
        answer = work(opened)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {**answer, "seconds": seconds, "cpu_seconds": cpu, "memory": peak_rss()}
