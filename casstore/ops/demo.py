"""The main job on a real model, measured: add it and its variants, get one back, compare every byte."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import ConfigError, IntegrityError
from casstore.ops.variants import Skipped, plan_variants
from casstore.store.machine import machine_folder
from casstore.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casstore.store.store import AddResult
    from casstore.store.usage import StoreStats

__all__ = ["DemoCheckout", "DemoReport", "DemoStep", "Saving", "run_demo"]

_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class Saving:
    """What one encoding did to the new chunks of a step."""

    encoding: str
    chunks: int
    bytes_plain: int
    bytes_stored: int

    @property
    def bytes_saved(self) -> int:
        """Plain bytes less stored bytes."""
        return self.bytes_plain - self.bytes_stored


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One add: `bytes_total` as files, of which dedup saved `bytes_dedup` and each encoding its part.

    `bytes_stored` is what remains, with `bytes_overhead` of it for layouts, manifests and headers.
    """

    name: str
    title: str
    ref: str
    model_id: str
    base: str | None
    bytes_total: int
    bytes_dedup: int
    encodings: tuple[Saving, ...]
    bytes_stored: int
    bytes_overhead: int
    chunks: int
    chunks_new: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoCheckout:
    """A model that was got back, and whose files were equal to those that were added."""

    ref: str
    files: int
    bytes_total: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    """All that the demo did; `temporary` says that its store is gone."""

    source: str
    store: str
    temporary: bool
    steps: tuple[DemoStep, ...]
    skipped: tuple[Skipped, ...]
    checkout: DemoCheckout

    @property
    def bytes_total(self) -> int:
        """What all steps added, as files."""
        return sum(step.bytes_total for step in self.steps)

    @property
    def bytes_stored(self) -> int:
        """What all steps wrote."""
        return sum(step.bytes_stored for step in self.steps)

    @property
    def bytes_dedup(self) -> int:
        """What was there already."""
        return sum(step.bytes_dedup for step in self.steps)

    @property
    def seconds(self) -> float:
        """Time of all adds."""
        return sum(step.seconds for step in self.steps)


def run_demo(
    path: str | None = None,
    *,
    store: str | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> DemoReport:
    """Add the model at `path` and its variants to a store, get one back and compare it byte for byte.

    Without `path`, the model is the one of the package wordllama. The store is temporary unless `store` gives
    a place for one that stays. `announce` is told each step. Raises ConfigError for a missing
    model, IntegrityError if what comes back differs.
    """
    source = path if path is not None else _packaged_model()
    with tempfile.TemporaryDirectory(prefix="casstore-demo-") as scratch, _opened(store, scratch) as opened:
        return _Demo(opened, source, scratch, announce).run(temporary=store is None)


class _Demo:
    """One run of the demo."""

    def __init__(self, store: Store, source: str, scratch: str, announce: Callable[[str], None]) -> None:
        self._store = store
        self._source = source
        self._scratch = scratch
        self._announce = announce
        self._steps: list[DemoStep] = []
        self._refs = f"models/demo/{_ref_part(source)}"

    def run(self, *, temporary: bool) -> DemoReport:
        original = self._add("original", "the model itself", self._source)
        self._add("original", "the same again", self._source, name="again")
        plan = plan_variants(self._store.manifest(original), self._source)
        kept = original, self._source
        for variant in plan.variants:
            self._announce(f"making a variant: {variant.title}")
            folder = os.path.join(self._scratch, variant.name)
            os.mkdir(folder)
            variant.write(folder)
            ref = self._add(variant.name, variant.title, folder, base=original)
            if variant.name in ("retrained", "changed"):
                kept = ref, folder
            else:
                shutil.rmtree(folder)  # No invariant is at stake: the demo's own copy, which the store holds.
        checkout = self._get_back(*kept)
        return DemoReport(
            source=self._source,
            store=self._store.backend.url,
            temporary=temporary,
            steps=tuple(self._steps),
            skipped=plan.skipped,
            checkout=checkout,
        )

    def _add(
        self, part: str, title: str, path: str, *, base: str | None = None, name: str | None = None
    ) -> str:
        self._announce(f"adding: {title}")
        ref = f"{self._refs}/{part}"
        before = _chunks_by_encoding(self._store.stats())
        result = self._store.add(
            path, ref=ref, base=base, metadata={"made by": "casstore demo"}, stat_cache=False
        )
        after = _chunks_by_encoding(self._store.stats())
        self._steps.append(_step(name or part, title, result, base, _difference(before, after)))
        return ref

    def _get_back(self, ref: str, original: str) -> DemoCheckout:
        self._announce(f"getting back: {ref}")
        dest = os.path.join(self._scratch, "checkout")
        started = time.perf_counter()
        model = self._store.checkout(ref, dest)
        seconds = time.perf_counter() - started
        self._announce("comparing every byte")
        if os.path.isdir(original):
            if _files_below(dest) != _files_below(original):
                raise IntegrityError(f"{ref} came back with other files than were added.")
            pairs = [(os.path.join(original, name), os.path.join(dest, name)) for name in _files_below(dest)]
        else:
            pairs = [(original, os.path.join(dest, os.path.basename(os.path.abspath(original))))]
        for added, returned in pairs:
            if not _same_bytes(added, returned):
                raise IntegrityError(f"{returned} differs from {added}, which was added as {ref}.")
        return DemoCheckout(ref, len(pairs), model.tree.size, seconds)


def _step(
    name: str, title: str, result: AddResult, base: str | None, encodings: tuple[Saving, ...]
) -> DemoStep:
    return DemoStep(
        name=name,
        title=title,
        ref=result.ref,
        model_id=result.model_id,
        base=base,
        bytes_total=result.bytes_total,
        bytes_dedup=result.bytes_total - result.bytes_new,
        encodings=encodings,
        bytes_stored=result.bytes_stored,
        bytes_overhead=result.bytes_stored - sum(saving.bytes_stored for saving in encodings),
        chunks=result.chunks,
        chunks_new=result.chunks_new,
        seconds=result.seconds,
    )


def _chunks_by_encoding(stats: StoreStats) -> dict[str, Saving]:
    return {
        row.encoding: Saving(row.encoding, row.frames, row.bytes_plain, row.bytes_stored)
        for row in stats.frames
        if row.kind == "chunk"
    }


def _difference(before: dict[str, Saving], after: dict[str, Saving]) -> tuple[Saving, ...]:
    none = Saving("", 0, 0, 0)
    found = []
    for encoding, now in after.items():
        then = before.get(encoding, none)
        if now.chunks > then.chunks:
            plain, stored = now.bytes_plain - then.bytes_plain, now.bytes_stored - then.bytes_stored
            found.append(Saving(encoding, now.chunks - then.chunks, plain, stored))
    return tuple(found)


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


@contextmanager
def _opened(place: str | None, scratch: str) -> Iterator[Store]:
    if place is not None:
        with Store.open(place, create=True) as store:
            yield store
        return
    with Store.open(os.path.join(scratch, "store"), create=True) as store:
        try:
            yield store
        finally:
            # No invariant is at stake: what this machine remembers of a store that is about to go.
            kept = machine_folder(bytes.fromhex(store.store_id), store.backend.url)
            store.close()
            if kept is not None:
                shutil.rmtree(kept, ignore_errors=True)


def _ref_part(source: str) -> str:
    """Return a model's file or folder name as a part of a ref name."""
    stem = os.path.splitext(os.path.basename(os.path.abspath(source)))[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:60].strip("-") or "model"


def _files_below(folder: str) -> list[str]:
    found = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in names]
    return sorted(found)


def _same_bytes(left: str, right: str) -> bool:
    with open(left, "rb") as one, open(right, "rb") as other:
        while True:
            ours, theirs = one.read(_PIECE), other.read(_PIECE)
            if ours != theirs:
                return False
            if not ours:
                return True
