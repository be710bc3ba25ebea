"""The tensors of files that may be bases, in the store or of the same add, and the chunks in which their bytes lie."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta import LITERALS, Extent
from casstore.digest import DIGEST_SIZE
from casstore.store.adding.bases.tensors.names import endings, plain_name
from casstore.store.adding.bases.tensors.sketch import WIDTHS
from casstore.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.format.layout import Layout, Span


@dataclass(frozen=True, slots=True, eq=False)
class BaseTensor:
    """One tensor of a base file: number `number` of its layout's spans."""

    file: BaseFile
    number: int
    span: Span

    @property
    def elements(self) -> int:
        """The number of its elements."""
        return prod(self.span.shape)

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.span.end - self.span.begin

    @property
    def key(self) -> int:
        """The number under which its file keeps its sketch."""
        return self.number

    @property
    def may_read(self) -> bool:
        """Whether its chunks may be read for a sketch that nobody has."""
        return self.file.may_read

    def parts(self, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield the parts of chunks that make up bytes `begin` to `end` of it: the chunk's id, and the bytes of it."""
        return self.file.parts(self.span.begin + begin, self.span.begin + end)

    @property
    def rank(self) -> int | None:
        """The highest rank of the frames that hold it, None if one of them is missing."""
        return self.file.rank_of(self.span.begin, self.span.end)


class BaseFile:
    """A file that may be a base: `ranks` are those of the frames of its chunks, None where there is none.

    `may_read` says that chunks may be read for sketches that nobody has. Most files are never looked at: what it costs to know of
    one is asked for once it is. For one thread, but for `parts`.
    """

    def __init__(
        self, layout_id: bytes, layout: Layout, ranks: Sequence[int | None], *, may_read: bool
    ) -> None:
        self.layout_id = layout_id
        self.layout = layout
        self.may_read = may_read
        self._given_ranks = ranks
        self._ranks: NDArray[np.int64] | None = None
        self._sketches: dict[int, bytes] | None = None
        self._edges_if_known: list[int] | None = None

    @property
    def sketches(self) -> dict[int, bytes]:
        """The sketches that are known, by the keys of tensors; more may be added."""
        if self._sketches is None:
            self._sketches = self._find_sketches()
        return self._sketches

    def _find_sketches(self) -> dict[int, bytes]:
        return {}

    def _find_ranks(self) -> Sequence[int | None]:
        return self._given_ranks

    @property
    def _edges(self) -> list[int]:
        # A list: each look-up is of two numbers, for which numpy takes ten times as long.
        if self._edges_if_known is None:
            self._edges_if_known = self.layout.offsets().tolist()
        return self._edges_if_known

    @cached_property
    def tensors(self) -> list[BaseTensor]:
        """All tensors whose types are known, and that are not empty; what a layout says may be wrong."""
        return [
            BaseTensor(self, number, span)
            for number, span in enumerate(self.layout.spans)
            if span.end > span.begin and _fits(span)
        ]

    @cached_property
    def by_name(self) -> dict[str, BaseTensor]:
        """The tensors by what formats have in common of their names."""
        return {plain_name(tensor.span.name): tensor for tensor in self.tensors}

    def find(self, name: str) -> BaseTensor | None:
        """Return the tensor of a name, whatever formats and wrappers made of it: plain, or without some of its first parts.

        What a wrapper puts before the names of a module may be anything, on either side.
        """
        own = plain_name(name)
        found = self.by_name.get(own)
        if found is None:
            found = next(filter(None, map(self.by_name.get, endings(own))), None)
        return found if found is not None else self._by_ending.get(own)

    @cached_property
    def _by_ending(self) -> dict[str, BaseTensor | None]:
        """The tensors by their names without the first parts; None for what several have in common."""
        found: dict[str, BaseTensor | None] = {}
        for name, tensor in self.by_name.items():
            for ending in endings(name):
                found[ending] = None if ending in found else tensor
        return found

    @cached_property
    def by_elements(self) -> dict[int, list[BaseTensor]]:
        """The tensors that have sketches, by the number of their elements."""
        found: dict[int, list[BaseTensor]] = defaultdict(list)
        for tensor in self.tensors:
            if tensor.span.dtype in WIDTHS:
                found[tensor.elements].append(tensor)
        return found

    def rank_of(self, begin: int, end: int) -> int | None:
        """Return the highest rank of the frames that hold a range of the file, None if one of them is missing."""
        if self._ranks is None:
            found = self._find_ranks()
            self._ranks = np.array([-1 if rank is None else rank for rank in found], np.int64)
        first, last = self._chunks(begin, end)
        ranks = self._ranks[first:last]
        return None if int(ranks.min()) < 0 else int(ranks.max())

    def parts(self, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield the parts of chunks that make up a range of the file: the chunk's id, and the bytes of it."""
        first, last = self._chunks(begin, end)
        for number in range(first, last):
            origin, stop = self._edges[number], self._edges[number + 1]
            chunk_id = self.layout.ids[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]
            yield chunk_id, max(begin, origin) - origin, min(end, stop) - origin

    def length_of_chunk(self, begin: int) -> int:
        """Return the length of the chunk that begins at this byte of the file."""
        number = bisect_right(self._edges, begin) - 1
        return self._edges[number + 1] - self._edges[number]

    def _chunks(self, begin: int, end: int) -> tuple[int, int]:
        return bisect_right(self._edges, begin) - 1, bisect_left(self._edges, end)


def _fits(span: Span) -> bool:
    known = DTYPES.get(span.dtype)
    return known is not None and known.byte_length(span.shape) == span.end - span.begin


class FrameBases:
    """The bases of one frame, numbered in the order of their first use, and bytes that its programs need besides.

    `plain` are the bytes of the frame's chunk.
    """

    def __init__(self, plain: memoryview) -> None:
        self.plain = plain
        self._numbers: dict[bytes, int] = {}
        self._sides: dict[bytes, int] = {}
        self._size = 0

    @property
    def ids(self) -> list[bytes]:
        """The chunks, in the order of their numbers."""
        return list(self._numbers)

    @property
    def sides(self) -> bytes:
        """The bytes of all sides, each once."""
        return b"".join(self._sides)

    def extents(self, tensor: BaseTensor, begin: int, end: int) -> tuple[Extent, ...]:
        """Return bytes `begin` to `end` of a tensor as extents of bases."""
        return tuple(
            Extent(self._numbers.setdefault(chunk_id, len(self._numbers)), first, last)
            for chunk_id, first, last in tensor.parts(begin, end)
        )

    def side(self, data: bytes) -> Extent:
        """Return bytes that follow the literals, as an extent that counts from the first of `sides`."""
        if data not in self._sides:
            self._sides[data] = self._size
            self._size += len(data)
        begin = self._sides[data]
        return Extent(LITERALS, begin, begin + len(data))
