"""The tensors of a model, and what each takes in the store: which bytes dedup, codecs and deltas have saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs import Encoding
from casstore.digest import DIGEST_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.api.store import Store
    from casstore.format.layout import Layout
    from casstore.format.spans import Span
    from casstore.store.reading.model import Model

__all__ = ["TensorRow", "tensor_rows"]


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor. All but `shape` in bytes; `size` is the sum of `dedup`, `codec`, `delta` and `stored`.

    `dedup` lies in chunks that the model's base has, or that occur earlier in the model; of the rest, `codec` and `delta` are
    saved by encodings, and `stored` is what is left. A chunk that several tensors lie in counts for each by its share.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    size: int
    dedup: int
    codec: int
    delta: int
    stored: int


def tensor_rows(store: Store, model: Model, base: Model | None) -> list[TensorRow]:
    """Return the tensors of a model, file by file. Raises MissingObject if a chunk of it is gone."""
    layouts = model.layouts
    ids = b"".join(layout.ids for layout in layouts)
    located = store.objects.locate(ids)
    rows = located.rows
    raw, stored = rows["raw"].astype(np.float64), rows["stored"].astype(np.float64)
    repeated = _repeated(ids, base)
    is_delta = rows["encoding"] == Encoding.DELTA
    saved = np.where(repeated, 0.0, raw - stored)
    amounts = (
        np.where(repeated, raw, 0.0),
        np.where(is_delta, 0.0, saved),
        np.where(is_delta, saved, 0.0),
    )
    found: list[TensorRow] = []
    start = 0
    for entry, layout in zip(model.tree.files, layouts, strict=True):
        chunks = slice(start, start + layout.chunks)
        found += _rows_of(entry.path, layout, [amount[chunks] for amount in amounts])
        start += layout.chunks
    return found


def _rows_of(path: str, layout: Layout, amounts: Sequence[NDArray[np.float64]]) -> Iterator[TensorRow]:
    spans: Sequence[Span] = layout.spans
    if not spans:
        return
    edges = layout.offsets().astype(np.float64)
    bounds = np.array([(span.begin, span.end) for span in spans], np.float64)
    # Inside a chunk every byte counts the same, so sums up to a byte are interpolated.
    parts = []
    for amount in amounts:
        sums = np.concatenate([[0.0], np.cumsum(amount)])
        parts.append(np.interp(bounds[:, 1], edges, sums) - np.interp(bounds[:, 0], edges, sums))
    for at, span in enumerate(spans):
        dedup, codec, delta = (round(float(part[at])) for part in parts)
        size = span.end - span.begin
        yield TensorRow(
            span.name, span.dtype, span.shape, path, size, dedup, codec, delta, size - dedup - codec - delta
        )


def _repeated(ids: bytes, base: Model | None) -> NDArray[np.bool_]:
    """Say of each chunk whether it occurs before in the model, or in its base."""
    chunks = _leads(ids)
    repeated = np.ones(len(chunks), np.bool_)
    repeated[np.unique(chunks, return_index=True)[1]] = False
    if base is not None:
        repeated |= np.isin(chunks, _leads(b"".join(layout.ids for layout in base.layouts)))
    return repeated


def _leads(ids: bytes) -> NDArray[np.uint64]:
    """Return the first eight bytes of each id: enough for figures that people look at."""
    return np.frombuffer(ids, "<u8")[:: DIGEST_SIZE // 8]
