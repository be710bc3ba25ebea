"""What predicts the tensors of one file: found for those of which the store lacks something, when that is encoded."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left, bisect_right
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

from casstore import _build
from casstore.errors import CasstoreError
from casstore.store.adding.bases.planning.chunk_plan import plan_chunk
from casstore.store.adding.bases.planning.search import FIRST_LARGE
from casstore.store.adding.bases.rules.block_target import BlockTarget, is_block
from casstore.store.adding.bases.rules.quantising import MAX_SCALES
from casstore.store.adding.bases.rules.target import TargetTensor, has_sketch
from casstore.store.adding.sources import open_source, read_range

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer, Self

    from casstore.machine.sketches import Sketch
    from casstore.store.adding.bases.planning.chunk_plan import ChunkPlan
    from casstore.store.adding.bases.planning.search import BaseSearch
    from casstore.store.adding.bases.rules.relation import Relation
    from casstore.store.adding.sources import SourceFile
    from casstore.tensors import TensorSpan


_AHEAD = 16
"""Tensors for which the catalogue is asked at once."""


class Window(NamedTuple):
    """The bytes of a file from `begin` on that are in memory."""

    begin: int
    data: memoryview

    def of(self, begin: int, end: int) -> memoryview | None:
        """Return a range of the file, None if not all of it is here."""
        if not self.begin <= begin <= end <= self.begin + len(self.data):
            return None
        return self.data[begin - self.begin : end - self.begin]


class _WindowedFile:
    """A file of which a part is in memory; the rest is read. A context manager."""

    def __init__(self, source: SourceFile, window: Window) -> None:
        self.window = window
        self._source = source
        self._opened: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            os.close(self._opened)

    def read(self, begin: int, length: int) -> bytes:
        """Return a range, less at the end of the file."""
        part = self.window.of(begin, begin + length)
        return (
            bytes(part)
            if part is not None
            else read_range(self._descriptor(), begin, length, self._source.shown)
        )

    def gather(self, ranges: NDArray[np.int64]) -> Buffer:
        """Return ranges, each a first byte and a length, one after the other; zeros for what is not there."""
        return read_ranges(self._descriptor(), ranges, self._source.shown)

    def _descriptor(self) -> int:
        if self._opened is None:
            self._opened = open_source(self._source)
        return self._opened


def read_ranges(descriptor: int, ranges: NDArray[np.int64], shown: str) -> Buffer:
    """Return ranges of a file, each a first byte and a length, one after the other; zeros for what is behind its end."""
    if _build.kernels is not None:
        room = bytearray(int(ranges[:, 1].sum()))
        # Invariant 8: what cannot be read is read again below, where that is an error.
        with contextlib.suppress(OSError):
            _build.kernels.read_ranges(descriptor, ranges, room)
            return room
    return b"".join(
        read_range(descriptor, begin, length, shown).ljust(length, b"\0") for begin, length in ranges.tolist()
    )


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
        self._by_name: dict[str, TensorSpan] | None = None
        self._begins = [span.begin for span in spans]
        self._ends = list(accumulate((span.end for span in spans), max))
        self._found: dict[int, Relation | None] = {}

    def plan(self, begin: int, end: int, window: Window) -> ChunkPlan | None:
        """Return how a chunk of bytes [`begin`, `end`) is predicted, None if it is not. `window` holds it and more."""
        first, last = bisect_right(self._ends, begin), bisect_left(self._begins, end)
        relations = self._relations(first, last, window)
        if not relations:
            return None
        return plan_chunk(begin, window.data[begin - window.begin : end - window.begin], relations)

    def take_sketches(self, layout: bytes) -> list[Sketch]:
        """Return the sketches that were made, now that all is planned and the layout of the file has this id."""
        return [] if self._search is None else self._search.take_sketches(layout)

    def _relations(self, first: int, last: int, window: Window) -> list[Relation]:
        spans, found = self._spans, self._found
        # Of tied tensors the first one stands for all.
        numbers = [
            number
            for number in range(first, last)
            if not number
            or self._begins[number - 1] != self._begins[number]
            or spans[number - 1].end != spans[number].end
        ]
        if not all(number in found for number in numbers):
            with self._lock, _WindowedFile(self._source, window) as file:
                self._find(numbers, file)
        return [relation for number in numbers if (relation := found[number]) is not None]

    def _find(self, numbers: Sequence[int], file: _WindowedFile) -> None:
        """Look for the relations of tensors, and before the first one for those of the first large tensors.

        A file in which they are found serves the others, too. Which chunk gets here first is chance, and must decide nothing.
        """
        large: Iterator[int] = iter(())
        if self._search is None:
            self._search = self._open_search()
            large = islice(filter(self._is_large, range(len(self._spans))), FIRST_LARGE)
        for wanted in (*large, *numbers):
            if wanted not in self._found:
                self._found[wanted] = self._relate(self._search, wanted, file)

    def _is_large(self, number: int) -> bool:
        span = self._spans[number]
        return has_sketch(span) or is_block(span)

    def _relate(self, search: BaseSearch, number: int, file: _WindowedFile) -> Relation | None:
        span = self._spans[number]
        # Invariant 11: whatever it is, reading the file shows it; without a relation, the tensor is encoded alone.
        with contextlib.suppress(CasstoreError):
            if not self._is_large(number):
                return search.by_name(span, file.window.of(span.begin, span.end))
            if is_block(span):
                return search.of_blocks(number, BlockTarget(span, file.read, gather=file.gather))
            return search.relate(number, self._target(span, file), ahead=lambda: self._ahead(number, file))
        return None

    def _target(self, span: TensorSpan, file: _WindowedFile) -> TargetTensor:
        def read_small(name: str, dtype: str) -> bytes | None:
            if self._by_name is None:
                self._by_name = {span.name: span for span in self._spans}
            other = self._by_name.get(name)
            if other is None or other.dtype != dtype or other.end - other.begin > MAX_SCALES:
                return None
            return file.read(other.begin, other.end - other.begin)

        data = file.window.of(span.begin, span.end)
        return TargetTensor(span, data, read=file.read, read_small=read_small, gather=file.gather)

    def _ahead(self, number: int, file: _WindowedFile) -> Iterator[TargetTensor]:
        """Yield the tensors behind one that are in memory and will be looked at next, as far as one can say."""
        for following in range(number + 1, min(number + _AHEAD, len(self._spans))):
            span = self._spans[following]
            if has_sketch(span) and following not in self._found and file.window.of(span.begin, span.end):
                yield self._target(span, file)
