"""What predicts the tensors of one file, found as the file is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.store.adding.bases.chunk_plan import plan_chunk
from casstore.store.adding.bases.target import TargetTensor, has_sketch
from casstore.store.adding.sources import read_range

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.store.adding.bases.chunk_plan import ChunkPlan
    from casstore.store.adding.bases.relation import Relation
    from casstore.store.adding.bases.search import BaseSearch
    from casstore.tensors import TensorSpan

_SMALL = 64 << 10
"""Bytes of the largest tensor that is read as scales or zero points of another one."""


class FileRelations:
    """The relations of one file's tensors: one thread reads on, any thread plans chunks that were read."""

    def __init__(self, spans: Sequence[TensorSpan], search: BaseSearch) -> None:
        self._spans = spans
        self._search = search
        self._begins: NDArray[np.int64] = np.array([span.begin for span in spans], np.int64)
        self._ends: NDArray[np.int64] = np.maximum.accumulate(
            np.array([span.end for span in spans] or [0], np.int64)
        )
        self._by_name = {span.name: span for span in spans}
        self._next = 0
        self._found: dict[int, Relation | None] = {}

    def read_on(self, data: memoryview, begin: int, *, descriptor: int, shown: str) -> None:
        """Find what predicts the tensors that begin in `data`, the file's bytes from `begin` on."""
        end = begin + len(data)
        while self._next < len(self._spans) and self._spans[self._next].begin < end:
            number = self._next
            span = self._spans[number]
            self._next += 1
            # Of tied tensors the first one stands for all.
            if has_sketch(span) and (number == 0 or self._spans[number - 1].begin != span.begin):
                whole = begin <= span.begin and span.end <= end
                part = data[span.begin - begin : span.end - begin] if whole else None
                target = TargetTensor(
                    span,
                    part,
                    descriptor=descriptor,
                    shown=shown,
                    read=lambda name, dtype: self._small(name, dtype, descriptor, shown),
                )
                self._found[number] = self._search.relate(number, target)

    def _small(self, name: str, dtype: str, descriptor: int, shown: str) -> bytes | None:
        """Return the bytes of a small tensor of the file, None if there is none of this name and type."""
        span = self._by_name.get(name)
        if span is None or span.dtype != dtype or span.end - span.begin > _SMALL:
            return None
        return read_range(descriptor, span.begin, span.end - span.begin, shown)

    def plan(self, begin: int, end: int) -> ChunkPlan | None:
        """Return how a chunk of bytes [`begin`, `end`) is predicted, None if it is not."""
        return plan_chunk(begin, end, self._relations(begin, end))

    def remember(self, layout: bytes) -> None:
        """Keep the sketches that were made, now that the layout of the file has this id."""
        self._search.remember(layout)

    def _relations(self, begin: int, end: int) -> Iterator[Relation]:
        first = int(np.searchsorted(self._ends, begin, side="right"))
        last = int(np.searchsorted(self._begins, end))
        for number in range(first, last):
            relation = self._found.get(number)
            if number not in self._found and not has_sketch(self._spans[number]):
                relation = self._search.by_name(self._spans[number])
            if relation is not None:
                yield relation
