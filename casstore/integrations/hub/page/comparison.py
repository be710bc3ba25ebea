"""What differs between two models, or between two runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.cache.runs.explain import compare
from casstore.digest import DIGEST_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casstore.api.store import Store
    from casstore.format.layout import Layout
    from casstore.format.run import RunManifest
    from casstore.format.spans import Span
    from casstore.store.reading.model import Model

__all__ = ["FileChange", "ModelComparison", "TensorChange", "compare_models", "compare_runs"]

_ALIGNED = 64 << 10
"""Tensors of this size and more are cut from their own start (design §4): equal bytes are equal chunks."""

_READ_AT_MOST = 64 << 20
_ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file of either model; `change` is "same", "changed", "only in A" or "only in B"."""

    path: str
    change: str
    size_a: int | None
    size_b: int | None


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that differs; `change` is "values", "type or shape", "only in A", "only in B" or "not compared"."""

    name: str
    change: str
    a: Span | None
    b: Span | None


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """What differs between two models, and how many tensors do not."""

    files: tuple[FileChange, ...]
    tensors: tuple[TensorChange, ...]
    same_tensors: int
    shared_bytes: int


def compare_models(store: Store, a: Model, b: Model) -> ModelComparison:
    """Compare two models by file and by tensor, wherever in their files these lie.

    Large tensors are compared by their chunks, small ones by their bytes, 64 MiB of them at most. Raises as reading does.
    """
    tensors = _Tensors(store, a), _Tensors(store, b)
    names = list(dict.fromkeys([*tensors[0].spans, *tensors[1].spans]))
    changes = []
    same = 0
    for name in names:
        change = _tensor_change(*tensors, name)
        if change == "same":
            same += 1
        else:
            found = [item.spans[name][1] if name in item.spans else None for item in tensors]
            changes.append(TensorChange(name, change, found[0], found[1]))
    return ModelComparison(tuple(_file_changes(a, b)), tuple(changes), same, _shared(a, b))


def compare_runs(a: RunManifest, b: RunManifest) -> list[tuple[str, Any, Any]]:
    """Return the fields in which two runs differ: what decided their outputs, then what they measured."""
    found = [(item.field, item.earlier, item.now) for item in compare(a.key.document(), b.key.document())]
    for label, one, other in (
        ("status", a.status.value, b.status.value),
        ("error", a.error, b.error),
        ("output", a.output.hex() if a.output else "-", b.output.hex() if b.output else "-"),
        ("metrics", a.metrics, b.metrics),
        ("recorded", a.recorded, b.recorded),
    ):
        found += [(item.field, item.earlier, item.now) for item in compare(one, other, label)]
    return found


def compare_metrics(
    a: Mapping[str, float], b: Mapping[str, float]
) -> list[tuple[str, float | None, float | None, float | None]]:
    """Return the metrics of either model: name, both values, and their difference where there is one."""
    rows = []
    for name in dict.fromkeys([*a, *b]):
        one, other = a.get(name), b.get(name)
        rows.append((name, one, other, other - one if one is not None and other is not None else None))
    return rows


class _Tensors:
    """The tensors of one model by name, the first of each."""

    def __init__(self, store: Store, model: Model) -> None:
        self._store = store
        self._left = _READ_AT_MOST
        self.spans: dict[str, tuple[Layout, Span]] = {}
        self._edges: dict[int, Any] = {}
        for layout in model.layouts:
            for span in layout.spans:
                self.spans.setdefault(span.name, (layout, span))

    def content(self, name: str) -> bytes | None:
        """Return something that two tensors of one type and shape have in common if they have the same bytes.

        That is their bytes, or the chunks that they are cut into; None if too much would have to be read.
        """
        layout, span = self.spans[name]
        size = span.end - span.begin
        if size >= _ALIGNED:
            edges = self._edges.setdefault(id(layout), layout.offsets())
            start = int(np.searchsorted(edges, span.begin))
            stop = int(np.searchsorted(edges, span.end))
            if edges[start] == span.begin and edges[stop] == span.end:
                return layout.ids[start * DIGEST_SIZE : stop * DIGEST_SIZE]
        self._left -= size
        if self._left < 0:
            return None
        return bytes(self._store.read_part(layout, span.begin, span.end, name=name)) if size else b""


def _tensor_change(a: _Tensors, b: _Tensors, name: str) -> str:
    if name not in b.spans:
        return "only in A"
    if name not in a.spans:
        return "only in B"
    one, other = a.spans[name][1], b.spans[name][1]
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return "type or shape"
    contents = a.content(name), b.content(name)
    if None in contents:
        return "not compared"
    return "same" if contents[0] == contents[1] else "values"


def _file_changes(a: Model, b: Model) -> Iterator[FileChange]:
    of_a = {entry.path: entry for entry in a.tree.files}
    of_b = {entry.path: entry for entry in b.tree.files}
    for path in sorted(of_a.keys() | of_b.keys()):
        one, other = of_a.get(path), of_b.get(path)
        if one is None:
            change = "only in B"
        elif other is None:
            change = "only in A"
        else:
            change = "same" if one.file_id == other.file_id else "changed"
        yield FileChange(path, change, one.size if one else None, other.size if other else None)


def _shared(a: Model, b: Model) -> int:
    """Return the plain bytes of the chunks that both models have, each once."""
    sizes: dict[bytes, int] = {}
    for layout in a.layouts:
        sizes.update(zip(layout.chunk_ids(), layout.lengths.tolist(), strict=True))
    of_b = {chunk for layout in b.layouts for chunk in layout.chunk_ids()}
    return sum(size for chunk, size in sizes.items() if chunk in of_b)
