"""The tensors of one model, and what tells that two have the same bytes without reading them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.ops.diff.result import TensorSide
from casstore.store.adding.bases.tensors.base_tensors import BaseFile, BaseTensor
from casstore.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.format.layout import Layout, Span
    from casstore.store.reading.model import Model

__all__ = ["Chunks", "Side", "SideFile", "sides_of"]


class Chunks(NamedTuple):
    """The chunks in which a tensor lies, and where in the first of them; `aligned` if they hold nothing else."""

    ids: bytes
    offset: int
    size: int
    aligned: bool


class SideFile:
    """A file with tensors."""

    def __init__(self, path: str, layout_id: bytes, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self.edges = layout.offsets()
        # Only what is written as a delta depends on ranks.
        self.base = BaseFile(layout_id, layout, [0] * layout.chunks, may_read=True)

    @cached_property
    def by_name(self) -> dict[str, Span]:
        """The tensors by their names."""
        return {span.name: span for span in self.layout.spans}


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One tensor of a model."""

    file: SideFile
    tensor: BaseTensor

    @property
    def span(self) -> Span:
        """What the file says of it."""
        return self.tensor.span

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.tensor.size

    @property
    def is_sound(self) -> bool:
        """Whether its bytes fill its shape: layouts are what anyone may have written (design §4)."""
        known = DTYPES.get(self.span.dtype)
        return known is None or known.byte_length(self.span.shape) == self.size

    def chunks(self) -> Chunks:
        """Return where it lies: tensors of which all of that is equal have equal bytes.

        So have those that are not `aligned`, perhaps, although the rest differs.
        """
        begin, end = self.span.begin, self.span.end
        if begin == end:
            return Chunks(b"", 0, 0, aligned=True)
        edges = self.file.edges
        first = int(np.searchsorted(edges, begin, side="right")) - 1
        stop = int(np.searchsorted(edges, end, side="left"))
        offset = begin - int(edges[first])
        aligned = offset == 0 and int(edges[stop]) == end
        ids = self.file.layout.ids[first * DIGEST_SIZE : stop * DIGEST_SIZE]
        return Chunks(ids, offset, end - begin, aligned)

    def shown(self) -> TensorSide:
        """Return its public form."""
        span = self.span
        return TensorSide(span.name, span.dtype, span.shape, self.file.path, self.size)


def sides_of(model: Model) -> Iterator[Side]:
    """Yield the tensors of a model, file by file."""
    for entry, layout_id, layout in zip(model.tree.files, model.layout_ids, model.layouts, strict=True):
        if layout.spans:
            file = SideFile(entry.path, layout_id, layout)
            for number, span in enumerate(layout.spans):
                yield Side(file, BaseTensor(file.base, number, span))
