"""What each model of a corpus adds to a store, beside the peers that store differences.

Models are added one after another: in the order of the corpus, each with the model that it was made from, and then, by casstore
alone, in shuffled orders and without a word about who was made from whom. What a model costs is what
the store holds more than before. Sizes do not depend on the machine or its load: each peer adds once.

`deltas parts` says of the first order how casstore keeps each model: the share of its bytes that were there
already, that of new ones by encoding, and the models that deltas rest on. Everything is restored and compared with its
source, of shuffled orders in the first. Every order starts without what a machine remembers of other stores.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Measurement, Metric, say
from benchmarks.peers import PEERS
from benchmarks.peers.base import Model
from casstore import Store
from casstore.ops.describe import describe
from casstore.ops.encoding_names import encoding_name

if TYPE_CHECKING:
    from benchmarks.datasets import Corpus
    from benchmarks.harness import Harness

OURS = "casstore"
DELTA_PEERS = (OURS, "hf-xet", "reminis", "zipnn", "lmzip")
"""Peers that store differences or compress tensors as such; all others have their rows in `size`."""

PLAIN = Metric("plain", "bytes", None)
STORED = Metric("stored", "bytes", "lower")
SHARE = Metric("share", "", "lower")
UNKNOWN = Metric("share, no lineage given", "", "lower")
HERE = Metric("there already", "", None)
ALL = "all"

_LADDER = "ladder"
_PACKER = "ggufpacker"
_NO_PACKER = "it calls llama-quantize, which no package of PyPI or Debian ships, and takes only models that llama.cpp runs"


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        if name == _LADDER:
            harness.companions[_PACKER] = {"missing": _NO_PACKER}
        measurements += _with_lineage(harness, corpus)
        if OURS in harness.peers:
            measurements += _without_lineage(harness, corpus)
    return measurements


def _with_lineage(harness: Harness, corpus: Corpus) -> list[Measurement]:
    """Add the models in their order, by every peer."""
    costs, parts = [], []
    for peer in (peer for peer in DELTA_PEERS if peer in harness.peers):
        say(f"deltas · {corpus.name} · {peer}, lineage given")
        with harness.scratch("store") as store:
            stored = _added(harness, peer, corpus, store, verify=True)
            if peer == OURS:
                order = [model.name for model in corpus.models]
                kept = harness.fresh("benchmarks.scenarios.deltas:kept", store=str(store), order=order)
                parts = _parts(corpus, kept)
        metric = SHARE if peer == OURS else replace(SHARE, name=peer)
        for subject, plain, total in _rows(corpus, stored):
            if peer == OURS:
                costs += [
                    _measured(corpus, subject, PLAIN, plain),
                    _measured(corpus, subject, STORED, total),
                ]
            costs.append(_measured(corpus, subject, metric, total / plain))
    return costs + parts


def _without_lineage(harness: Harness, corpus: Corpus) -> list[Measurement]:
    """Add the models in shuffled orders; return the share of each with a sample for each order."""
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(harness.options.orders):
        models = [replace(model, base=None, second_parent=None) for model in corpus.models]
        random.Random(number).shuffle(models)
        say(f"deltas · {corpus.name} · {OURS}, order {number + 1}: {', '.join(item.name for item in models)}")
        with harness.scratch("store") as store:
            stored = _added(harness, OURS, replace(corpus, models=tuple(models)), store, verify=number == 0)
        for subject, plain, total in _rows(corpus, stored):
            shares[subject].append(total / plain)
    return [
        Measurement("deltas", corpus.name, subject, UNKNOWN, tuple(samples))
        for subject, samples in shares.items()
    ]


def _added(harness: Harness, peer: str, corpus: Corpus, store: Path, *, verify: bool) -> dict[str, int]:
    """Fill a store, restore everything from it if asked to; return the bytes that each model added."""
    models = [[model.name, str(corpus.path(model)), model.base] for model in corpus.models]
    with harness.scratch("machine") as machine:
        answer = harness.fresh_on(
            (),
            {"XDG_CACHE_HOME": str(machine)},
            "benchmarks.scenarios.deltas:add_each",
            peer=peer,
            store=str(store),
            models=models,
        )
    if verify:
        harness.restore(peer, store, answer["receipt"], corpus)
    stored: dict[str, int] = answer["stored"]
    return stored


def add_each(peer: str, store: str, models: list[tuple[str, str, str | None]]) -> dict[str, Any]:
    """Make a store and add models, given as [name, folder, base or None]; return a receipt, and what each added."""
    tool, place = PEERS[peer](), Path(store)
    tool.prepare(place)
    before = tool.stored_bytes(place)
    receipt: dict[str, Any] = {}
    stored = {}
    for name, folder, base in models:
        for key, value in tool.add(place, [Model(name, Path(folder), base)], reread=True).items():
            receipt[key] = receipt[key] + value if isinstance(value, list) and key in receipt else value
        after = tool.stored_bytes(place)
        stored[name], before = after - before, after
    return {"receipt": receipt, "stored": stored}


def kept(store: str, order: list[str]) -> dict[str, dict[str, Any]]:
    """Return of each model, in the order in which they were added: new bytes by encoding, and the refs of its bases."""
    found: dict[str, dict[str, Any]] = {}
    seen: set[bytes] = set()
    with Store(store, read_only=True) as opened:
        for name in order:
            ref = f"models/{name}"
            model = opened.model(ref)
            new = {chunk for layout in model.layouts for chunk in layout.chunk_ids()} - seen
            seen |= new
            rows = opened.objects.locate(b"".join(sorted(new))).rows
            plain = np.bincount(rows["encoding"], weights=rows["raw"]) if new else np.zeros(0)
            deltas = describe(opened, ref).deltas
            found[name] = {
                "new": {encoding_name(code): int(plain[code]) for code in np.flatnonzero(plain).tolist()},
                "bases": []
                if deltas is None
                else [base.ref.removeprefix("models/") for base in deltas.bases],
            }
    return found


def _parts(corpus: Corpus, kept: dict[str, dict[str, Any]]) -> list[Measurement]:
    encodings = sorted({encoding for about in kept.values() for encoding in about["new"]})
    measurements = []
    for model in corpus.models:
        new, bases = kept[model.name]["new"], kept[model.name]["bases"]
        shares = {HERE: 1 - sum(new.values()) / model.size}
        shares |= {Metric(encoding, "", None): new.get(encoding, 0) / model.size for encoding in encodings}
        subject = f"{model.name}, from {', '.join(bases)}" if bases else model.name
        measurements += [
            Measurement("deltas parts", corpus.name, subject, metric, (share,))
            for metric, share in shares.items()
        ]
    return measurements


def _rows(corpus: Corpus, stored: dict[str, int]) -> list[tuple[str, int, int]]:
    """Return name, plain bytes and added bytes of every model in the corpus' own order, then of all together."""
    rows = [(model.name, model.size, stored[model.name]) for model in corpus.models]
    return [*rows, (ALL, corpus.size, sum(stored.values()))]


def _measured(corpus: Corpus, subject: str, metric: Metric, value: float) -> Measurement:
    return Measurement("deltas", corpus.name, subject, metric, (value,))
