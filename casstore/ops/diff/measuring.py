"""Reads pairs of tensors part by part, on all cores in bounded memory, and measures how far they are apart."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.codecs.delta import Extent, Piece, transpose_step
from casstore.codecs.delta.operations.floats import FORMATS
from casstore.codecs.delta.operations.gguf import BLOCKS
from casstore.codecs.delta.predict import predict
from casstore.concurrency.workers import TaskGroup, worker_count
from casstore.ops.diff.reading import SMALL
from casstore.ops.diff.relations import Relation, relation_of
from casstore.ops.diff.values import Difference, difference, numbers, unequal_words
from casstore.store.adding.bases.rules.block_types import Blocks
from casstore.store.adding.bases.rules.quantising import QUANTISED, Quantised
from casstore.store.adding.bases.tensors.sketch import WIDTHS
from casstore.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from casstore.ops.diff.reading import TensorReader
    from casstore.ops.diff.sides import Side

    U8 = NDArray[np.uint8]

__all__ = ["Measured", "measure"]

_PART = 4 << 20
"""Bytes of the larger of two parts that are compared at once."""

_ONE_TASK = 16 << 20
"""Bytes of the larger of two tensors that one worker compares; of larger ones, parts are compared by all workers."""

_TOGETHER = 64
"""Small tensors of one task."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What reading two tensors found. `values` is None for types without values here, `same_bytes` False where one was not read.

    `differing` counts elements, or blocks and bytes of types that have no others. `unexplained` are those that `relation`
    does not give.
    """

    relation: Relation | None
    same_bytes: bool
    differing: int | None
    values: Difference | None
    unexplained: int


@dataclass(frozen=True, slots=True)
class _Work:
    """A pair of tensors, of which parts are compared; `whole` is A's, if it is to be transposed."""

    a: Side
    b: Side
    readers: tuple[TensorReader, TensorReader]
    relation: Relation | None
    whole: U8 | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """What was found in one part."""

    same_bytes: bool
    differing: int
    values: Difference | None
    unexplained: int


def measure(
    pairs: Iterable[tuple[int, Side, Side]], readers: tuple[TensorReader, TensorReader]
) -> Iterator[tuple[int, Measured]]:
    """Compare pairs of tensors of as many elements, each with a number; yield what is found, in any order.

    A worker holds some parts of 4 MiB, and of a tensor that it compares with its transpose, up to 16 MiB; of one larger
    such tensor, up to 256 MiB are in memory.
    """
    groups: list[list[tuple[int, Side, Side]]] = []
    small: list[tuple[int, Side, Side]] = []
    large: list[tuple[int, Side, Side]] = []
    for item in pairs:
        size = max(item[1].size, item[2].size)
        if size < SMALL:
            small.append(item)
        elif size <= _ONE_TASK:
            groups.append([item])
        else:
            large.append(item)
    # In the order of the files, since neighbours share chunks.
    small.sort(key=lambda item: (item[2].file.path, item[2].span.begin))
    groups += [small[begin : begin + _TOGETHER] for begin in range(0, len(small), _TOGETHER)]
    with TaskGroup() as tasks:
        running: deque[Future[list[tuple[int, Measured]]]] = deque()
        for group in groups:
            running.append(tasks.submit(_measure_group, group, readers))
            if len(running) > 2 * worker_count():
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    for number, a, b in large:
        yield number, _measure_large(a, b, readers)


def _measure_group(
    items: list[tuple[int, Side, Side]], readers: tuple[TensorReader, TensorReader]
) -> list[tuple[int, Measured]]:
    found = []
    for number, a, b in items:
        relation = relation_of(a, b, readers) if _is_examined(a, b) else None
        whole = readers[0].read(a, 0, a.size) if _turned(relation) else None
        work = _Work(a, b, readers, relation, whole)
        found.append((number, _result(work, [_compare(work, *part) for part in _parts(work)])))
    return found


def _measure_large(a: Side, b: Side, readers: tuple[TensorReader, TensorReader]) -> Measured:
    relation = relation_of(a, b, readers) if _is_examined(a, b) else None
    with TaskGroup() as tasks:
        whole = None
        if _turned(relation):
            whole = np.empty(a.size, np.uint8)
            reads = [tasks.submit(_fill, whole, a, readers[0], begin) for begin in range(0, a.size, _PART)]
            for read in reads:
                read.result()
        work = _Work(a, b, readers, relation, whole)
        running: deque[Future[_Part]] = deque()
        parts: list[_Part] = []
        for part in _parts(work):
            running.append(tasks.submit(_compare, work, *part))
            if len(running) > 2 * worker_count():
                parts.append(running.popleft().result())
        parts += [task.result() for task in running]
    return _result(work, parts)


def _parts(work: _Work) -> Iterator[tuple[int, int]]:
    """Yield the parts that are compared at once: of elements of a power of two bytes, whole chunks."""
    units = work.b.size // _unit(work.b.span.dtype)
    step = max(1, _PART * units // max(work.a.size, work.b.size, 1))
    for first in range(0, units, step):
        yield first, min(units, first + step)


def _fill(out: U8, side: Side, reader: TensorReader, begin: int) -> None:
    end = min(side.size, begin + _PART)
    out[begin:end] = reader.read(side, begin, end)


def _turned(relation: Relation | None) -> bool:
    return relation is not None and relation.transposed


def _is_examined(a: Side, b: Side) -> bool:
    """Say whether one may follow from the other in more ways than as it is."""
    one, other = a.span, b.span
    if one.dtype != other.dtype:
        return other.dtype in BLOCKS or (one.dtype in WIDTHS and other.dtype in WIDTHS)
    # Square matrices are transposed under their own names where a format keeps them the other way round.
    matrix = len(one.shape) == 2 and 1 not in one.shape
    return matrix and other.shape == one.shape[::-1] and one.dtype in WIDTHS


def _unit(dtype: str) -> int:
    """Return the bytes of an element, or of a block; 1 for types of less, and for unknown ones."""
    known = DTYPES.get(dtype)
    return 1 if known is None or known.packed else known.block_bytes


def _compare(work: _Work, first: int, last: int) -> _Part:
    """Compare elements, or blocks, `first` to `last` of B's tensor with those of A's that belong to them."""
    a, b = work.a, work.b
    width = _unit(b.span.dtype)
    actual = work.readers[1].read(b, first * width, last * width)
    source = _source(work, first, last)
    if source is None:
        return _Part(same_bytes=False, differing=0, values=None, unexplained=0)
    same_type = a.span.dtype == b.span.dtype
    if same_type and np.array_equal(actual, source):
        nothing = Difference(elements=len(actual) // width)
        return _Part(same_bytes=True, differing=0, values=nothing, unexplained=0)
    one = numbers(source, a.span.dtype)
    other = _decoded(work, actual, first)
    values = None if one is None or other is None else difference(one, other)
    differing = unequal_words(actual, source, width) if same_type else (values.differing if values else 0)
    unexplained = 0
    if work.relation is not None:
        predicted = work.relation.predict(source, actual, first)
        blocks = isinstance(work.relation.quantisation, Blocks)
        unexplained = unequal_words(actual, predicted, 1 if blocks else width)
    return _Part(same_bytes=False, differing=differing, values=values, unexplained=unexplained)


def _source(work: _Work, first: int, last: int) -> U8 | None:
    """Return the elements of A's tensor in the order of B's; None if types do not fit each other."""
    a, b = work.a, work.b
    if work.whole is not None:
        step = transpose_step(
            0,
            width=WIDTHS[a.span.dtype],
            shape=a.span.shape,
            permutation=(1, 0),
            first=first,
            count=last - first,
        )
        size = (last - first) * WIDTHS[a.span.dtype]
        piece = Piece(0, size, ((Extent(0, 0, a.size),),), (step,))
        return predict(piece, [work.whole], np.zeros(0, np.uint8))
    one, other = DTYPES.get(a.span.dtype), DTYPES.get(b.span.dtype)
    if a.span.dtype == b.span.dtype:
        width = _unit(a.span.dtype)
        return work.readers[0].read(a, first * width, last * width)
    if one is None or other is None or one.packed or other.packed:
        return None
    begin, end = (at * other.block_elements for at in (first, last))
    if begin % one.block_elements or end % one.block_elements:
        return None
    width, per = one.block_bytes, one.block_elements
    return work.readers[0].read(a, begin // per * width, end // per * width)


def _decoded(work: _Work, actual: U8, first: int) -> NDArray[Any] | None:
    """Return the values that B's elements stand for."""
    values = numbers(actual, work.b.span.dtype)
    how = work.relation.quantisation if work.relation is not None else None
    if not isinstance(how, Quantised):
        # Integers whose scales are not known stand for other numbers than they are.
        unknown = work.b.span.dtype in QUANTISED and work.a.span.dtype in FORMATS
        return None if unknown else values
    if values is None:
        return None
    places = np.arange(first, first + len(values))
    channels = places // how.axis.inner % how.axis.channels
    if how.axis.outer:
        channels += how.axis.channels * (places // how.axis.outer)
    scales = np.frombuffer(how.scales.scales, "<f4")[channels]
    found = values.astype(np.float32)
    if how.scales.zeros is not None:
        found -= np.frombuffer(how.scales.zeros, QUANTISED[how.target])[channels]
    result: NDArray[np.float32] = found * scales
    return result


def _result(work: _Work, parts: list[_Part]) -> Measured:
    values: Difference | None = Difference()
    for part in parts:
        values = None if part.values is None or values is None else values + part.values
    known = values is not None or work.a.span.dtype == work.b.span.dtype
    return Measured(
        relation=work.relation,
        same_bytes=all(part.same_bytes for part in parts),
        differing=sum(part.differing for part in parts) if known else None,
        values=values,
        unexplained=sum(part.unexplained for part in parts),
    )
