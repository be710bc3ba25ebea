"""The demo: adds a real model and its variants, gets one back, compares every byte, and measures each step."""

from __future__ import annotations

import contextlib
import filecmp
import glob
import importlib.util
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casstore.api.store import Store
from casstore.api.variants import read_tensors, write_variants
from casstore.errors import ConfigError, IntegrityError
from casstore.machine.state import machine_folder
from casstore.ops.describe import describe
from casstore.store.checkout import staging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SCRATCH = "casstore-demo"


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One add: `bytes_total` as files, of which dedup saved `bytes_dedup` and each encoding the bytes in `saved`.

    `bytes_stored` is what remains, with layouts, manifests and headers. `delta_bases` are the refs of the models on whose
    chunks its deltas rest.
    """

    name: str
    title: str
    ref: str
    model_id: str
    base: str | None
    bytes_total: int
    bytes_dedup: int
    saved: dict[str, int]
    bytes_stored: int
    seconds: float
    delta_bases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The result of the demo. `ref` is the model that was restored in `get_seconds`, equal to what was added."""

    source: str
    store: str
    temporary: bool
    ref: str
    get_bytes: int
    get_seconds: float
    steps: tuple[DemoStep, ...] = field(default=())


def run_demo(
    path: str | None = None,
    *,
    store: str | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> DemoReport:
    """Add the model at `path` and its variants to a store, get one back and compare it byte for byte.

    Without `path`, the model is the one of the package wordllama. The store is temporary unless `store` gives
    a place for one that stays. `announce` is called with each step. Raises ConfigError for a missing
    model, IntegrityError if what comes back differs.
    """
    source = path if path is not None else _packaged_model()
    stem = os.path.splitext(os.path.basename(os.path.abspath(source)))[0]
    prefix = f"models/demo/{re.sub(r'[^A-Za-z0-9_-]+', '-', stem)[:60].strip('-') or 'model'}"
    steps: list[DemoStep] = []
    with _scratch() as scratch, _opened(store, scratch) as opened:

        def add(part: str, title: str, folder: str, base: str | None = None, name: str = "") -> str:
            announce(f"adding: {title}")
            steps.append(_add(opened, folder, f"{prefix}/{part}", title=title, base=base, name=name or part))
            return steps[-1].ref

        original = kept = add("original", "the model itself", source)
        add("original", "the same again", source, name="again")
        folder, kept_folder = os.path.join(scratch, "variant"), source
        os.mkdir(folder)
        announce("making variants")
        for name, title in write_variants(read_tensors(opened.model(original), source), folder):
            ref = add(name, title, folder, original)
            if name == "retrained":
                kept, kept_folder = ref, os.path.join(scratch, name)
                os.rename(folder, kept_folder)  # Not part of a store: the demo's own copy, compared below.
            else:
                shutil.rmtree(folder)  # As above; the store holds it.
            os.mkdir(folder)
        announce(f"getting back: {kept}")
        back = os.path.join(scratch, "checkout")
        started = time.perf_counter()
        model = opened.get(kept, back)
        seconds = time.perf_counter() - started
        announce("comparing every byte")
        _compare(kept_folder, back)
        url, size = opened.backend.url, model.tree.size
    return DemoReport(source, url, store is None, kept, size, seconds, tuple(steps))


def _add(store: Store, path: str, ref: str, *, title: str, base: str | None, name: str) -> DemoStep:
    before = _saved_by_encoding(store)
    result = store.add(path, ref=ref, base=base, metadata={"made by": "casstore demo"}, stat_cache=False)
    saved = {
        encoding: count - before.get(encoding, 0) for encoding, count in _saved_by_encoding(store).items()
    }
    deltas = describe(store, ref).deltas
    return DemoStep(
        name=name,
        title=title,
        ref=ref,
        model_id=result.model_id,
        base=base,
        bytes_total=result.bytes_total,
        bytes_dedup=result.bytes_total - result.bytes_new,
        saved={encoding: count for encoding, count in saved.items() if count},
        bytes_stored=result.bytes_stored,
        seconds=result.seconds,
        delta_bases=tuple(base.ref for base in deltas.bases) if deltas is not None else (),
    )


def _saved_by_encoding(store: Store) -> dict[str, int]:
    return {
        row.encoding: row.bytes_plain - row.bytes_stored
        for row in store.stats().frames
        if row.kind == "chunk"
    }


def _compare(added: str, returned: str) -> None:
    """Raise IntegrityError unless all files of two models are equal, byte for byte."""
    if not os.path.isdir(added):
        returned = os.path.join(returned, os.path.basename(os.path.abspath(added)))
        same = filecmp.cmp(added, returned, shallow=False)
    else:
        files = [
            os.path.relpath(os.path.join(top, name), added)
            for top, _, names in os.walk(added, followlinks=True)
            for name in names
        ]
        back = sum(len(names) for _, _, names in os.walk(returned))
        same = back == len(files) and filecmp.cmpfiles(added, returned, files, shallow=False)[0] == files
    if not same:
        raise IntegrityError(f"{returned} differs from {added}, which was added.")


def _packaged_model() -> str:
    """Return the weights inside the package wordllama, which is not imported."""
    spec = importlib.util.find_spec("wordllama")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found = sorted(glob.glob(os.path.join(glob.escape(folder), "weights", "*.safetensors")))
        if found:
            return found[0]
    raise ConfigError(
        "The demo's model comes with the package wordllama, which is not installed: run "
        "`pip install 'casstore[demo]'`, or give a model folder: `casstore demo PATH`."
    )


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """Give a temporary folder, and remove it at the end; what demos that were killed left goes first."""
    parent = tempfile.gettempdir()
    staging.sweep_folders(parent, _SCRATCH)
    path, held = staging.make_folder(parent, _SCRATCH, mode=0o700)
    try:
        yield path
    finally:
        # Not part of a store that stays: the demo's own copies.
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


@contextlib.contextmanager
def _opened(place: str | None, scratch: str) -> Iterator[Store]:
    with Store(place or os.path.join(scratch, "store"), create=True) as store:
        try:
            yield store
        finally:
            kept = machine_folder(bytes.fromhex(store.store_id), store.backend.url)
            if place is None and kept is not None:
                # Not part of a store: this machine's state of one that is about to be deleted.
                store.machine.close()
                shutil.rmtree(kept, ignore_errors=True)
