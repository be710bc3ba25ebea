"""What a model's deltas rest on, and about how much they save. Reads layouts, and no chunk."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs import Encoding
from casstore.errors import ConfigError, IntegrityError, ObjectNotFound
from casstore.format.rows import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casstore.format.record import Record
    from casstore.format.rows import Rows
    from casstore.objects import Located
    from casstore.store.model_store import ModelStore

_ANCESTORS = 8
_OTHERS = 64
"""Models that are asked whether they have the bases: those that lineage names, then those that came before it, the newest first."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model that has `chunks` of the chunks that another one's deltas rest on; `ref` names it."""

    ref: str
    model_id: str
    chunks: int


@dataclass(frozen=True, slots=True)
class DeltaShare:
    """The deltas of a model: plain and stored bytes, about what they would take without bases, and whose the bases are.

    `unknown` bases are in none of the models that were asked.
    """

    chunks: int
    bytes_plain: int
    bytes_stored: int
    bytes_without: int
    bases: tuple[BaseModel, ...]
    unknown: int

    @property
    def bytes_saved(self) -> int:
        """About what the deltas save."""
        return max(0, self.bytes_without - self.bytes_stored)


def describe_deltas(store: ModelStore, record: Record, located: Located) -> DeltaShare | None:
    """Return what a model, of which these are the chunks, rests on; None if none of them is a delta."""
    rows = located.rows
    _, first = np.unique(rows["id"], axis=0, return_index=True)
    deltas = [at for at in first.tolist() if rows["encoding"][at] == Encoding.DELTA]
    if not deltas:
        return None
    chosen = rows[deltas]
    plain = int(chosen["raw"].sum(dtype=np.int64))
    bases = {base for at in deltas for base in located.bases(at)}
    found = store.objects.find(sorted(bases))
    models = tuple(_models_with(store, record, set(bases)))
    return DeltaShare(
        chunks=len(deltas),
        bytes_plain=plain,
        bytes_stored=int(chosen["stored"].sum(dtype=np.int64)),
        bytes_without=int(plain * plain_share(found.rows[found.found])),
        bases=models,
        unknown=len(bases) - sum(model.chunks for model in models),
    )


def plain_share(rows: Rows) -> float:
    """Return the share that encodings without bases leave of the chunks among these frames, 1 if there are none."""
    alone = rows[(rows["kind"] == Kind.CHUNK) & (rows["encoding"] != Encoding.DELTA)]
    total = int(alone["raw"].sum(dtype=np.int64))
    return int(alone["stored"].sum(dtype=np.int64)) / total if total else 1.0


def _models_with(store: ModelStore, record: Record, wanted: set[bytes]) -> Iterator[BaseModel]:
    """Yield models that have some of these chunks, each chunk counted for the first of them."""
    for other in _candidates(store, record):
        if not wanted:
            return
        assert other.target is not None
        try:
            layouts = store.model_of(other).layouts
        except (IntegrityError, ObjectNotFound, ConfigError):
            continue  # Invariant 13: `check` reports that model; this one is described without it.
        here = wanted.intersection(chunk for layout in layouts for chunk in layout.chunk_ids())
        if here:
            wanted -= here
            yield BaseModel(other.name, other.target.hex(), len(here))


def _candidates(store: ModelStore, record: Record) -> Iterable[Record]:
    """Yield the records of models that may have the bases of a model: its ancestors, then others.

    Of these, the newest first, but behind all that are not newer than the model: bases were there before it.
    """
    rows = store.find("models/", newest_first=True)
    by_model = {row.target: row.name for row in reversed(rows)}
    seen = {record.target}
    above = record.base
    for _ in range(_ANCESTORS):
        name = by_model.get(above) if above is not None and above not in seen else None
        found = store.record(name) if name is not None else None
        if found is None:
            break
        seen.add(found.target)
        yield found
        above = found.base
    others = [row for row in rows if row.target not in seen]
    others.sort(key=lambda row: row.time > record.time)
    for row in islice(others, _OTHERS):
        found = store.record(row.name)
        if found is not None and found.target is not None and found.target not in seen:
            seen.add(found.target)
            yield found
