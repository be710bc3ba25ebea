"""Measures what a store holds and how much space it takes."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs import Encoding
from casstore.errors import IntegrityError
from casstore.format.names import PREFIX as REF_PREFIX
from casstore.format.names import names_model
from casstore.format.rows import Kind
from casstore.objects import INDEX_PREFIX
from casstore.ops.encoding_names import encoding_name
from casstore.ops.gc import plan_gc
from casstore.ops.holdings import survey
from casstore.ops.leftovers import Leftovers, leftovers_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.objects import ObjectStore
    from casstore.store.model_store import ModelStore

_log = logging.getLogger("casstore")


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
    """Counts and bytes of a store; `bytes_logical` is the size of all models with a ref as plain files.

    `bytes_unneeded` are frames that no ref needs, in packs that nobody needs or beside others in packs that somebody does; 0
    where something that cannot be read hides what is needed. `bytes_saved_by_deltas` is about what deltas would take more
    without bases, if they compressed as other chunks do. `bytes_to_free` is what a collection with the default policy would free now, by the index, which is an estimate; None if
    something that cannot be read keeps it from collecting anything.
    """

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
    leftovers: Leftovers
    bytes_unneeded: int
    bytes_to_free: int | None
    bytes_saved_by_deltas: int = 0

    @property
    def bytes_stored(self) -> int:
        """Bytes of packs, index and refs."""
        return self.bytes_packs + self.bytes_index + self.bytes_refs


def measure(store: ModelStore) -> StoreStats:
    """Measure a store; reads every segment, and what describes each model.

    The store's `on_damage` is called for each model whose description cannot be read; its size is not counted.
    """
    holdings = survey(store)
    for damage in holdings.damaged:
        store.on_damage(damage)
    models: dict[bytes, int] = {}
    for ref in holdings.refs:
        held = holdings.of(ref)
        if names_model(ref.name) and held.is_whole:
            models[ref.target] = held.size
    packs = holdings.packs
    sizes = [packs.size(number) for number in packs.numbers()]
    backend = store.backend
    frames = _frame_stats(store.objects)
    return StoreStats(
        url=backend.url,
        store_id=store.store_id,
        refs=len(holdings.refs),
        models=len(models),
        bytes_logical=sum(models.values()),
        packs=len(sizes),
        bytes_packs=sum(sizes),
        bytes_index=sum(entry.size for entry in backend.list(INDEX_PREFIX)),
        bytes_refs=sum(entry.size for entry in backend.list(REF_PREFIX)),
        frames=frames,
        leftovers=leftovers_in(store, holdings),
        bytes_unneeded=holdings.bytes_unneeded if holdings.is_complete else 0,
        bytes_to_free=_bytes_to_free(store),
        bytes_saved_by_deltas=_saved_by_deltas(frames),
    )


def _saved_by_deltas(frames: Sequence[FrameStats]) -> int:
    chunks = [row for row in frames if row.kind == Kind.CHUNK.name.lower()]
    deltas = [row for row in chunks if row.encoding == encoding_name(Encoding.DELTA)]
    others = [row for row in chunks if row not in deltas]
    plain = sum(row.bytes_plain for row in others)
    share = sum(row.bytes_stored for row in others) / plain if plain else 1.0
    return max(0, int(sum(share * row.bytes_plain - row.bytes_stored for row in deltas)))


def _bytes_to_free(store: ModelStore) -> int | None:
    try:
        return plan_gc(store, by_index=True).bytes_freed
    except IntegrityError as error:
        # Invariant 8: a collection would stop for the same reason.
        _log.debug("What a collection would free is not known: %s", error)
        return None


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
