"""What predicts the tensors of one file: found for those of which the store lacks something, when that is encoded."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left, bisect_right
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

from casstore.errors import CasstoreError
from casstore.store.adding.bases.planning.chunk_plan import plan_chunk
from casstore.store.adding.bases.rules.block_target import BlockTarget, is_block
from casstore.store.adding.bases.rules.quantising import MAX_SCALES
from casstore.store.adding.bases.rules.target import TargetTensor, has_sketch
from casstore.store.adding.sources import open_source, read_range

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from casstore.machine.sketches import Sketch
    from casstore.store.adding.bases.planning.chunk_plan import ChunkPlan
    from casstore.store.adding.bases.planning.search import BaseSearch
    from casstore.store.adding.bases.rules.relation import Relation
    from casstore.store.adding.sources import SourceFile
    from casstore.tensors import TensorSpan


_FIRST_LARGE = 4
"""Large tensors of a file that are compared before any other one."""


class Window(NamedTuple):
    """The bytes of a file from `begin` on that are in memory."""

    begin: int
    data: memoryview

    def of(self, begin: int, end: int) -> memoryview | None:
        """Return a range of the file, None if not all of it is here."""
        if not self.begin <= begin <= end <= self.begin + len(self.data):
            return None
        return self.data[begin - self.begin : end - self.begin]


class FileRelations:
    """The relations of one file's tensors. Safe in threads: one at a time looks for relations, under `lock`."""

    def __init__(
        self,
        source: SourceFile,
        spans: Sequence[TensorSpan],
        *,
        search: Callable[[], BaseSearch],
        lock: threading.Lock,
    ) -> None:
        """`search` makes what finds relations; it is called at most once, and only if one is looked for."""
        self._source = source
        self._spans = spans
        self._open_search = search
        self._lock = lock
        self._search: BaseSearch | None = None
        self._by_name = {span.name: span for span in spans}
        self._begins = [span.begin for span in spans]
        self._ends = list(accumulate((span.end for span in spans), max))
        self._found: dict[int, Relation | None] = {}

    def plan(self, begin: int, end: int, window: Window) -> ChunkPlan | None:
        """Return how a chunk of bytes [`begin`, `end`) is predicted, None if it is not. `window` holds it and more."""
        first, last = bisect_right(self._ends, begin), bisect_left(self._begins, end)
        plain = window.data[begin - window.begin : end - window.begin]
        return plan_chunk(begin, plain, self._relations(range(first, last), window))

    def take_sketches(self, layout: bytes) -> list[Sketch]:
        """Return the sketches that were made, now that the layout of the file has this id."""
        with self._lock:
            return [] if self._search is None else self._search.take_sketches(layout)

    def _relations(self, numbers: range, window: Window) -> Iterator[Relation]:
        for number in numbers:
            span = self._spans[number]
            # Of tied tensors the first one stands for all.
            if number and self._spans[number - 1][3:] == span[3:]:
                continue
            if number not in self._found:
                with self._lock:
                    self._find(number, window)
            relation = self._found[number]
            if relation is not None:
                yield relation

    def _find(self, number: int, window: Window) -> None:
        """Look for the relation of a tensor, and before the first one for those of the first large tensors.

        A file in which they are found serves the others, too. Which chunk gets here first is chance, and must decide nothing.
        """
        is_first = self._search is None
        if self._search is None:
            self._search = self._open_search()
        for wanted in [*(self._large() if is_first else ()), number]:
            if wanted not in self._found:
                self._found[wanted] = self._relate(self._search, wanted, window)

    def _large(self) -> Iterator[int]:
        large = (number for number, span in enumerate(self._spans) if is_block(span) or has_sketch(span))
        return islice(large, _FIRST_LARGE)

    def _relate(self, search: BaseSearch, number: int, window: Window) -> Relation | None:
        span = self._spans[number]
        if not (is_block(span) or has_sketch(span)):
            return search.by_name(span)
        # Invariant 11: whatever it is, reading the file shows it; without a relation, the tensor is encoded alone.
        with contextlib.suppress(CasstoreError), contextlib.ExitStack() as stack:
            opened: list[int] = []

            def read(begin: int, length: int) -> bytes:
                part = window.of(begin, begin + length)
                if part is not None:
                    return bytes(part)
                if not opened:
                    opened.append(open_source(self._source))
                    stack.callback(os.close, opened[0])
                return read_range(opened[0], begin, length, self._source.shown)

            def read_small(name: str, dtype: str) -> bytes | None:
                other = self._by_name.get(name)
                if other is None or other.dtype != dtype or other.end - other.begin > MAX_SCALES:
                    return None
                return read(other.begin, other.end - other.begin)

            if is_block(span):
                return search.of_blocks(number, BlockTarget(span, read))
            data = window.of(span.begin, span.end)
            return search.relate(number, TargetTensor(span, data, read=read, read_small=read_small))
        return None
