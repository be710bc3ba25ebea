"""Measures what a store holds and how much space it takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs import Encoding
from casstore.errors import FormatError
from casstore.format import manifest as manifest_format
from casstore.format.names import PREFIX as REF_PREFIX
from casstore.format.names import names_model
from casstore.format.rows import Kind
from casstore.objects import INDEX_PREFIX, PACK_PREFIX, Damage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from casstore.backend.base import Backend
    from casstore.objects import ObjectStore
    from casstore.refs.rows import RefRow

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
    """Counts and bytes of a store; `bytes_logical` is the size of all models with a ref as plain files."""

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
    *,
    backend: Backend,
    store_id: str,
    objects: ObjectStore,
    refs: Iterable[RefRow],
    on_damage: Callable[[Damage], None],
) -> StoreStats:
    """Measure a store; reads every segment and one manifest and tree for each model.

    `on_damage` is called for each model whose description cannot be read; its size is not counted.
    """
    listed = list(refs)
    named = {item.manifest: item.name for item in listed if item.manifest and names_model(item.name)}
    manifests = sorted(named)
    models: dict[bytes, int] = {}
    for start in range(0, len(manifests), _BATCH):
        batch = manifests[start : start + _BATCH]
        plain, damaged = objects.read_present(batch)
        trees: dict[bytes, bytes] = {}
        for manifest_id, data in plain.items():
            try:
                trees.setdefault(manifest_format.decode_model(data).model_id, manifest_id)
            except FormatError as error:  # noqa: PERF203  # in Python 3.10 as in later ones, a try costs nothing
                damaged[manifest_id] = error  # Reported below (invariant 11).
        wanted = sorted(trees.keys() - models.keys())
        described, lost = objects.read_present(wanted)
        for model_id, data in described.items():
            try:
                models[model_id] = manifest_format.decode_tree(data).size
            except FormatError as error:  # noqa: PERF203  # as above
                lost[model_id] = error  # Reported below (invariant 11).
        damaged.update((trees[model_id], error) for model_id, error in lost.items())
        for manifest_id in sorted(damaged):
            on_damage(Damage(named[manifest_id], manifest_id.hex(), str(damaged[manifest_id])))
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
        frames=_frame_stats(objects),
    )


def _frame_stats(objects: ObjectStore) -> tuple[FrameStats, ...]:
    counts: Counter[tuple[int, int]] = Counter()
    plain: Counter[tuple[int, int]] = Counter()
    stored: Counter[tuple[int, int]] = Counter()
    for rows in objects.all_rows():
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
    """Return the name of an encoding."""
    try:
        return str(Encoding(code).name).lower()
    except ValueError:
        return f"unknown-{code}"  # Design §3: an encoding of a newer casstore is not damage.
