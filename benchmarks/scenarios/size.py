"""What keeping a whole corpus costs, and for casstore, what each of its means saves.

Every peer adds all models to an empty store and restores them, which is compared with the source; one run each,
for sizes do not vary. The stored bytes are the content of all files that the peer must keep.

`size parts` divides casstore's plain bytes without remainder: what dedup saved (chunks that were there already),
what each encoding saved of the chunks that were stored, and what is left of these. `size overhead` says what
the store holds beside that; what is left and the overhead are the stored bytes. All of it is counted from the
footers of the packs. A sum that does not come out is an error.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import BenchmarkError, Measurement, Metric
from benchmarks.peers.base import tree_bytes
from benchmarks.scenarios.add import STORED
from casstore import Store
from casstore.codecs import Encoding
from casstore.format import frame, pack
from casstore.format.rows import Kind
from casstore.objects import PACK_PREFIX, pack_id_of

if TYPE_CHECKING:
    from benchmarks.datasets import Corpus
    from benchmarks.harness import Harness, Sample

BYTES = Metric("stored", "bytes", "lower")
PLAIN = Metric("plain", "bytes", None)
DEDUP = Metric("saved by dedup", "bytes", "higher")
LEFT = Metric("left", "bytes", "lower")
OVERHEAD = Metric("overhead", "bytes", "lower")
OURS = "casstore"

_SAVING = [encoding.name.lower() for encoding in Encoding if encoding != Encoding.RAW]


def saved_by(encoding: str) -> Metric:
    """Return the metric of what an encoding saves."""
    return Metric(f"saved by {encoding}", "bytes", "higher")


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for name in harness.options.corpora:
        corpus = harness.corpus(name)
        parts: list[Measurement] = []
        trials = {peer: partial(_trial, harness, peer, corpus, parts) for peer in harness.peers}
        measurements += harness.interleave("size", name, trials, repeats=1, warmups=0)
        measurements += parts
    return measurements


def _trial(harness: Harness, peer: str, corpus: Corpus, parts: list[Measurement]) -> Sample:
    with harness.scratch("store") as store:
        added = harness.filled_store(peer, store, corpus)
        harness.restore(peer, store, added["receipt"], corpus)
        stored = added["stored_bytes"]
        if peer == OURS:
            split = harness.fresh("benchmarks.scenarios.size:split", store=str(store))
            parts += measured(corpus, split, stored)
    return {STORED: stored / corpus.size, BYTES: stored}


def measured(corpus: Corpus, split: dict[str, Any], stored: int) -> list[Measurement]:
    """Return the parts of `stored` bytes; raise BenchmarkError if they are not all of it."""
    overhead: dict[str, int] = split["overhead"]
    total = sum(overhead.values())
    figures = {
        PLAIN: corpus.size,
        DEDUP: corpus.size - split["plain"],
        **{saved_by(encoding): split["saved"].get(encoding, 0) for encoding in _SAVING},
        LEFT: split["left"],
    }
    if 2 * figures[PLAIN] != sum(figures.values()) or split["left"] + total != stored:
        raise BenchmarkError(f"The parts of {stored} stored bytes do not add up: {split}.")
    return [
        Measurement("size parts", corpus.name, OURS, metric, (value,))
        for metric, value in {**figures, OVERHEAD: total}.items()
    ] + [
        Measurement("size overhead", corpus.name, OURS, Metric(what, "bytes", "lower"), (value,))
        for what, value in overhead.items()
    ]


def split(store: str) -> dict[str, Any]:
    """Count the frames of all packs.

    Return the plain bytes of stored chunks, what is left of them, what each encoding saved, and the bytes of
    everything else in the store by what they are.
    """
    plain = left = headers = described = footers = 0
    saved: Counter[str] = Counter()
    with Store(store) as opened:
        stats, spare = opened.stats(), opened.backend.spare_bytes()
        for entry in opened.backend.list(PACK_PREFIX):
            footer = opened.objects.footer(pack_id_of(entry.key))
            rows = footer.rows
            bases = np.diff(footer.bases.offsets.astype(np.int64), prepend=0)[rows["bases"]]
            headers += int(frame.header_sizes(bases).sum())
            footers += pack.HEADER_SIZE + len(pack.encode_footer(footer, begin=0))
            chunk = rows["kind"] == Kind.CHUNK
            described += int(rows["stored"][~chunk].sum(dtype=np.int64))
            plain += int(rows["raw"][chunk].sum(dtype=np.int64))
            left += int(rows["stored"][chunk].sum(dtype=np.int64))
        for kind in stats.frames:
            if kind.kind == Kind.CHUNK.name.lower():
                saved[kind.encoding] += kind.bytes_plain - kind.bytes_stored
    overhead = {
        "frame headers": headers,
        "pack footers": footers,
        "layouts, trees, manifests": described,
        "index": stats.bytes_index,
        "refs": stats.bytes_refs,
    }
    others = tree_bytes(Path(store)) - stats.bytes_stored - spare
    overhead |= {"space for a full disk": spare, "other files": others}
    return {"plain": plain, "left": left, "saved": saved, "overhead": overhead}
