"""What a store holds and what it costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs import Encoding
from casstore.format import manifest as manifest_format
from casstore.format.names import PREFIX as REF_PREFIX
from casstore.format.names import names_model
from casstore.format.rows import Kind
from casstore.store.keys import INDEX_PREFIX, PACK_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casstore.backend.base import Backend
    from casstore.store.index import Index
    from casstore.store.objects import ObjectReader
    from casstore.store.ref_rows import RefRow

_BATCH = 1024


@dataclass(frozen=True, slots=True)
class FrameStats:
    """Frames of one kind and encoding: their number, plain bytes, and stored bytes."""

    kind: str
    encoding: str
    frames: int
    bytes_plain: int
    bytes_stored: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counts and bytes of a store; `bytes_logical` is what all models that have a ref would take as files."""

    url: str
    store_id: str
    refs: int
    models: int
    bytes_logical: int
    packs: int
    bytes_packs: int
    bytes_index: int
    bytes_refs: int
    frames: tuple[FrameStats, ...]

    @property
    def bytes_stored(self) -> int:
        """Bytes of packs, index and refs."""
        return self.bytes_packs + self.bytes_index + self.bytes_refs


def measure(
    *, backend: Backend, store_id: str, index: Index, objects: ObjectReader, refs: Iterable[RefRow]
) -> StoreStats:
    """Measure a store; reads every segment and one manifest and tree for each model."""
    listed = list(refs)
    manifests = sorted(
        {item.manifest for item in listed if item.manifest is not None and names_model(item.name)}
    )
    models: dict[bytes, int] = {}
    for start in range(0, len(manifests), _BATCH):
        decoded = [
            manifest_format.decode_model(data)
            for data in objects.read_many(manifests[start : start + _BATCH])
        ]
        trees = sorted({item.model_id for item in decoded} - models.keys())
        for model_id, data in zip(trees, objects.read_many(trees), strict=True):
            models[model_id] = manifest_format.decode_tree(data).size
    packs = [entry.size for entry in backend.list(PACK_PREFIX)]
    return StoreStats(
        url=backend.url,
        store_id=store_id,
        refs=len(listed),
        models=len(models),
        bytes_logical=sum(models.values()),
        packs=len(packs),
        bytes_packs=sum(packs),
        bytes_index=sum(entry.size for entry in backend.list(INDEX_PREFIX)),
        bytes_refs=sum(entry.size for entry in backend.list(REF_PREFIX)),
        frames=_frame_stats(index),
    )


def _frame_stats(index: Index) -> tuple[FrameStats, ...]:
    counts: Counter[tuple[int, int]] = Counter()
    plain: Counter[tuple[int, int]] = Counter()
    stored: Counter[tuple[int, int]] = Counter()
    for rows in index.all_rows():
        keys, inverse = np.unique(rows["kind"].astype(np.uint16) << 8 | rows["encoding"], return_inverse=True)
        for at, key in enumerate(keys.tolist()):
            chosen = rows[inverse == at]
            pair = (key >> 8, key & 0xFF)
            counts[pair] += len(chosen)
            plain[pair] += int(chosen["raw"].sum(dtype=np.int64))
            stored[pair] += int(chosen["stored"].sum(dtype=np.int64))
    return tuple(
        FrameStats(Kind(kind).name.lower(), encoding_name(code), counts[pair], plain[pair], stored[pair])
        for pair in sorted(counts)
        for kind, code in [pair]
    )


def encoding_name(code: int) -> str:
    """Return what people call an encoding."""
    try:
        return str(Encoding(code).name).lower()
    except ValueError:
        return f"unknown-{code}"  # Design §3: an encoding of a newer casstore is no corruption.
