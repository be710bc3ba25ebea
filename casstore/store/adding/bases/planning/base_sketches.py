"""The sketches of tensors that may be bases: from this machine's catalogue, or read where it has none."""

from __future__ import annotations

from itertools import chain
from math import prod
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.machine.sketches import UNSOUGHT, Sketch
from casstore.store.adding.bases.rules.block_target import is_block
from casstore.store.adding.bases.rules.target import has_sketch
from casstore.store.adding.bases.tensors.likeness import distances
from casstore.store.adding.bases.tensors.sketch import (
    FIRST,
    RUN,
    SIZE,
    WIDTHS,
    order_of,
    positions,
    signature,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from casstore.machine.sketches import Asked, SketchesOfAdd
    from casstore.store.adding.bases.files.base_chunks import BaseChunks
    from casstore.store.adding.bases.rules.block_target import BlockTarget
    from casstore.store.adding.bases.rules.target import TargetTensor
    from casstore.store.adding.bases.tensors.base_tensors import BaseTensor
    from casstore.store.adding.bases.tensors.sketch import Words
    from casstore.tensors import TensorSpan

_FAR = 64.0

_KEPT = 128
"""Answers of the catalogue that are kept for tensors which are looked at soon."""


class Made(NamedTuple):
    """The sketch of tensor number `number` of the file that is added; it `is_sought` if it may be found by likeness."""

    number: int
    elements: int
    words: Words
    is_sought: bool = True


class BaseSketches:
    """Sketches for one file of an add. For one thread."""

    def __init__(self, catalogue: SketchesOfAdd, chunks: BaseChunks, spans: Sequence[TensorSpan]) -> None:
        """`spans` are the tensors of the file that is added."""
        self._catalogue = catalogue
        self._chunks = chunks
        self._spans = spans
        self._has_counts = False
        self._answers: dict[Asked, list[Sketch]] = {}
        self._read: list[Sketch] = []
        self._firsts: dict[BaseTensor, bytes] = {}

    def of(self, tensor: BaseTensor) -> Words | None:
        """Return the sketch of a base; None if nobody knows it, its type has none, or its chunks cannot be read."""
        kept = tensor.file.sketches
        width = WIDTHS.get(tensor.span.dtype)
        if width is None:
            return None
        data = kept.get(tensor.key)
        if data is None and tensor.may_read and has_sketch(tensor.span):
            places = positions(tensor.elements).tolist()
            data = kept[tensor.key] = self._read_sketch(tensor, places, width)
            if data and tensor.key == tensor.number:
                words = np.frombuffer(data, f"<u{width}")
                self._read.append(
                    Sketch(tensor.file.layout_id, tensor.number, tensor.elements, signature(words), data)
                )
        return np.frombuffer(data, f"<u{width}") if data and len(data) == SIZE * width else None

    def first_of(self, tensor: BaseTensor) -> Words | None:
        """Return the first elements of the sketch of a base, FIRST of them, which are in a few chunks; None as `of` does."""
        width = WIDTHS.get(tensor.span.dtype)
        if width is None:
            return None
        data = tensor.file.sketches.get(tensor.key)
        if data is None and tensor.may_read and has_sketch(tensor.span):
            if tensor not in self._firsts:
                places = positions(tensor.elements)[:FIRST].tolist()
                self._firsts[tensor] = self._read_sketch(tensor, places, width)
            data = self._firsts[tensor]
        return np.frombuffer(data, f"<u{width}")[:FIRST] if data else None

    def read(self, tensor: BaseTensor, begin: int, end: int) -> bytes:
        """Return bytes `begin` to `end` of a tensor in the store; none if a chunk is missing or damaged."""
        return self._joined(tensor, [(begin, end)])

    def layouts_like(
        self, target: TargetTensor, *, turned: bool, ahead: Callable[[], Iterable[TargetTensor]]
    ) -> list[bytes]:
        """Return the layouts that have a tensor like the target, as the catalogue knows, the nearest first.

        With `turned`, also such as have its rows in another order. Those `ahead` are asked for with it: few questions are faster.
        """
        if not self._may_know(target.elements):
            return []
        others = target.turned if turned else ()
        wanted = _asked(target) | dict.fromkeys((target.elements, signature(words)) for words in others)
        if not wanted.keys() <= self._answers.keys():
            if len(self._answers) > _KEPT:
                self._answers.clear()
            following = [_asked(other) for other in ahead() if self._may_know(other.elements)]
            asked = dict.fromkeys(chain(wanted, *following))
            self._answers.update(self._catalogue.stored([at for at in asked if at not in self._answers]))
        found = self._found(wanted, self._answers)
        return _nearest(found, self._distances(target, [*target.views(), *others], found)) if found else []

    def layouts_like_blocks(self, target: BlockTarget) -> list[bytes]:
        """Return the layouts that have floats like those of blocks, as the catalogue knows, the nearest first."""
        if not self._may_know(target.elements):
            return []
        wanted = [(target.elements, number) for number in target.signatures()]
        found = self._found(wanted, self._catalogue.stored(wanted))
        return _nearest(found, [target.distance(sketch.data) for sketch in found])

    def _found(self, wanted: Iterable[Asked], stored: Mapping[Asked, Sequence[Sketch]]) -> list[Sketch]:
        """Return what there is for each question, that of the same add first."""
        asked = list(wanted)
        return [
            *chain.from_iterable(map(self._catalogue.held, asked)),
            *(s for at in asked for s in stored[at]),
        ]

    def _may_know(self, elements: int) -> bool:
        """Say whether the catalogue may have sketches of tensors with so many elements."""
        if not self._has_counts:
            self._catalogue.look_up_counts(
                prod(span.shape) for span in self._spans if has_sketch(span) or is_block(span)
            )
            self._has_counts = True
        return self._catalogue.may_have(elements)

    def take(self, layout: bytes, made: Iterable[Made]) -> list[Sketch]:
        """Return sketches of spans of a layout, and those that were read since the last call."""
        own = [
            Sketch(
                layout,
                item.number,
                item.elements,
                signature(item.words) if item.is_sought else UNSOUGHT,
                item.words.tobytes(),
            )
            for item in made
        ]
        read, self._read = self._read, []
        return [*read, *own]

    @staticmethod
    def _distances(target: TargetTensor, views: Sequence[Words], found: Sequence[Sketch]) -> list[float]:
        """Return how far each sketch is from the nearest view; those of other element types are far: values differ anyway."""
        size = SIZE * target.width
        alike = [len(sketch.data) == size for sketch in found]
        rows = np.frombuffer(
            b"".join(sketch.data for sketch in found if len(sketch.data) == size), f"<u{target.width}"
        ).reshape(-1, SIZE)
        order = order_of(target.span.dtype)
        near: NDArray[np.float64] = np.min([distances(view, rows, order) for view in views], axis=0)
        following = iter(near.tolist())
        return [next(following) if is_alike else _FAR for is_alike in alike]

    def _read_sketch(self, tensor: BaseTensor, places: Sequence[int], width: int) -> bytes:
        return self._joined(tensor, [(place * width, (place + RUN) * width) for place in places[::RUN]])

    def _joined(self, tensor: BaseTensor, ranges: Sequence[tuple[int, int]]) -> bytes:
        """Return ranges of a tensor's bytes, one after the other."""
        parts = [part for begin, end in ranges for part in tensor.parts(begin, end)]
        bases = self._chunks.read((chunk_id for chunk_id, _, _ in parts), again=True)
        if any(chunk_id not in bases for chunk_id, _, _ in parts):
            return b""
        return b"".join(bytes(bases[chunk_id].plain[begin:end]) for chunk_id, begin, end in parts)


def _asked(target: TargetTensor) -> dict[Asked, None]:
    return dict.fromkeys((target.elements, number) for number in target.signatures())


def _nearest(found: Sequence[Sketch], distances: Sequence[float]) -> list[bytes]:
    """Return the layouts of sketches, the nearest first."""
    near = sorted(zip(distances, found, strict=True), key=itemgetter(0))
    return list(dict.fromkeys(sketch.layout for _, sketch in near))
