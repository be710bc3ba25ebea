"""Peak memory of adding and restoring one large file, for several sizes: does it grow?

The file is sparse: noise and holes in turns, as a safetensors file of large tensors and as bytes of no known
format, so that a file far larger than memory takes little disk and little time to make.
"""

from __future__ import annotations

import json
import struct
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.datasets import Corpus, CorpusFile, CorpusModel
from benchmarks.harness import Metric

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness import Harness, Measurement, Sample

ADD = Metric("peak RSS of add", "MB", "lower")
RESTORE = Metric("peak RSS of restore", "MB", "lower")
IMPORTS = Metric("before", "MB", None)
ADD_SPEED = Metric("add", "MB/s", "higher")
RESTORE_SPEED = Metric("restore", "MB/s", "higher")
_NOISE = 8 << 20
_STRIDE = 64 << 20
_TENSOR = 256 << 20


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for size in (int(gigabytes * 1e9) for gigabytes in harness.options.memory_gb):
        for kind in ("safetensors", "opaque"):
            with harness.scratch("large") as root:
                corpus = _make(root, kind, size)
                trials = {peer: partial(_trial, harness, peer, corpus) for peer in harness.peers}
                case = f"{size / 1e9:g} GB, {kind}"
                measurements += harness.interleave("memory", case, trials, repeats=1, warmups=0)
    return measurements


def _trial(harness: Harness, peer: str, corpus: Corpus) -> Sample:
    with harness.scratch("store") as store:
        added = harness.filled_store(peer, store, corpus)
        restored = harness.restore(peer, store, added["receipt"], corpus)
    megabytes = corpus.size / 1e6
    return {
        IMPORTS: added["rss_before"] / 1e6,
        ADD: added["rss_peak"] / 1e6,
        RESTORE: restored["rss_peak"] / 1e6,
        ADD_SPEED: megabytes / added["seconds"],
        RESTORE_SPEED: megabytes / restored["seconds"],
    }


def _make(root: Path, kind: str, size: int) -> Corpus:
    name = "model.safetensors" if kind == "safetensors" else "model.dat"
    path = root / "models" / "large" / name
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(24)
    with path.open("wb") as file:
        start = file.write(_header(size)) if kind == "safetensors" else 0
        for offset in range(start, start + size, _STRIDE):
            file.seek(offset)
            file.write(rng.bytes(min(_NOISE, start + size - offset)))
        file.truncate(start + size)
    total = path.stat().st_size
    model = CorpusModel("large", None, (CorpusFile(name, total, ""),))
    return Corpus("large", "sparse", root, (model,))


def _header(size: int) -> bytes:
    header = {}
    for number, begin in enumerate(range(0, size, _TENSOR)):
        end = min(begin + _TENSOR, size)
        header[f"tensor.{number}"] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
