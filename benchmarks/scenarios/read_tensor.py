"""Reading one tensor of a model out of a store, against reading it from the plain file.

A fresh process opens the store (for the plain file: opens it and parses the safetensors header), reads one tensor
into an array (`first read`; in the store that includes to find the model by name and to read its description),
and reads the same one again. All files are in the page cache. casstore verifies what it reads, a plain
file is taken as it is. `read` are the bytes that opening and the first read fetched, from packs or from the file.
The model is the last one of the largest of a corpus that are safetensors; the tensors are its smallest, its largest, and
one of the middle size. Both must return the same bytes.
"""

from __future__ import annotations

import json
import os
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from blake3 import blake3

from benchmarks.harness import BenchmarkError, Metric
from casstore import Store
from casstore.objects.keys import PACK_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.datasets import Corpus, CorpusModel
    from benchmarks.harness import Harness, Measurement, Sample
    from casstore.backend.base import Backend

OPEN = Metric("open", "ms", "lower")
FIRST = Metric("first read", "ms", "lower")
SECOND = Metric("second read", "ms", "lower")
READ = Metric("read", "MB", "lower")

_MODULE = "benchmarks.scenarios.read_tensor"


class Choice(NamedTuple):
    """A tensor to read: its model and file, its name and its plain bytes."""

    model: CorpusModel
    path: str
    tensor: str
    size: int


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        with harness.scratch("read") as store:
            harness.filled_store("casstore", store, corpus)
            for choice in choices(corpus):
                seen: set[str] = set()
                trials = {
                    "casstore": partial(_stored, harness, store, choice, seen),
                    "plain file": partial(_plain, harness, corpus.path(choice.model), choice, seen),
                }
                case = f"{name}, {choice.model.name}, {_bytes(choice.size)}"
                measurements += harness.interleave("read-tensor", case, trials)
    return measurements


def choices(corpus: Corpus) -> list[Choice]:
    """Return the tensors to read, by size."""
    files = [
        (file.size, at, model, file.path)
        for at, model in enumerate(corpus.models)
        for file in model.files
        if file.path.endswith(".safetensors")
    ]
    if not files:
        return []
    _, _, model, path = max(files, key=lambda item: item[:2])
    with (corpus.path(model) / path).open("rb") as file:
        header, _ = _header(file.fileno())
    by_size = {end - begin: name for name, (begin, end) in _ranges(header).items() if end > begin}
    sizes = sorted(by_size)
    chosen = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    return [Choice(model, path, by_size[size], size) for size in chosen]


def _stored(harness: Harness, store: Path, choice: Choice, seen: set[str]) -> Sample:
    harness.settle((path for path in store.rglob("*") if path.is_file()), page_cache="warm")
    ref = f"models/{choice.model.name}"
    answer = harness.fresh(
        f"{_MODULE}:read_stored", store=str(store), ref=ref, path=choice.path, tensor=choice.tensor
    )
    return sample(answer, choice, seen)


def _plain(harness: Harness, folder: Path, choice: Choice, seen: set[str]) -> Sample:
    harness.settle([folder / choice.path], page_cache="warm")
    answer = harness.fresh(f"{_MODULE}:read_plain", path=str(folder / choice.path), tensor=choice.tensor)
    return sample(answer, choice, seen)


def sample(answer: dict[str, Any], choice: Choice, seen: set[str]) -> Sample:
    """Return the figures of one run; raise BenchmarkError if it read other bytes than those `seen` before."""
    seen.update(answer["hashes"])
    if len(seen) != 1:
        raise BenchmarkError(f"{choice.tensor} of {choice.model.name} is not the same bytes each time.")
    opened, first, second = (1000 * seconds for seconds in answer["times"])
    return {OPEN: opened, FIRST: first, SECOND: second, READ: answer["read"] / 1e6}


def read_stored(store: str, ref: str, path: str, tensor: str) -> dict[str, object]:
    """Open a store and read a tensor twice."""
    marks = [time.perf_counter()]
    opened = Store(store)
    marks.append(time.perf_counter())
    counts = _count_pack_reads(opened.backend)
    first = opened.read_tensor(ref, tensor, file=path)
    marks.append(time.perf_counter())
    read = sum(counts)
    second = opened.read_tensor(ref, tensor, file=path)
    marks.append(time.perf_counter())
    return {"times": np.diff(marks).tolist(), "read": read, "hashes": [_hash(first), _hash(second)]}


def read_plain(path: str, tensor: str) -> dict[str, object]:
    """Open a safetensors file and read a tensor twice."""
    marks = [time.perf_counter()]
    descriptor = os.open(path, os.O_RDONLY)
    header, start = _header(descriptor)
    begin, end = _ranges(header)[tensor]
    arrays = []
    marks.append(time.perf_counter())
    for _ in range(2):
        array = np.empty(end - begin, np.uint8)
        view = memoryview(array)
        done = 0
        while done < len(view):  # one call reads 2 GiB at most
            done += os.preadv(descriptor, [view[done:]], start + begin + done)
        arrays.append(array)
        marks.append(time.perf_counter())
    return {
        "times": np.diff(marks).tolist(),
        "read": start + end - begin,
        "hashes": [_hash(array) for array in arrays],
    }


def _count_pack_reads(backend: Backend) -> list[int]:
    """Let a backend note the length of everything that is read from packs, in the list returned."""
    counts: list[int] = []

    def counting(inner: Callable[..., Any], length: Callable[[Any], int]) -> Callable[..., Any]:
        def read(key: str, *arguments: Any, **options: Any) -> Any:
            answer = inner(key, *arguments, **options)
            if key.startswith(PACK_PREFIX):
                counts.append(length(answer))
            return answer

        return read

    for name, length in (("read", len), ("read_into", int)):
        setattr(backend, name, counting(getattr(backend, name), length))
    return counts


def _header(descriptor: int) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where its data begins."""
    (size,) = struct.unpack("<Q", os.pread(descriptor, 8, 0))
    return json.loads(os.pread(descriptor, size, 8)), 8 + size


def _ranges(header: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: tuple(item["data_offsets"]) for name, item in header.items() if name != "__metadata__"}


def _bytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB" if size >= 1e6 else f"{size / 1e3:.3g} KB"


def _hash(array: Any) -> str:
    return blake3(np.ascontiguousarray(array).view(np.uint8).reshape(-1)).hexdigest()
