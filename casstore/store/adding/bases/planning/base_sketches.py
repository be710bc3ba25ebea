"""The sketches of tensors that may be bases: from this machine's catalogue, or read where it has none."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.machine.sketches import UNSOUGHT, Sketch
from casstore.store.adding.bases.rules.target import has_sketch
from casstore.store.adding.bases.tensors.sketch import (
    FIRST,
    RUN,
    WIDTHS,
    differences,
    distance,
    order_of,
    positions,
    signature,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casstore.machine.sketches import Sketches
    from casstore.store.adding.bases.files.base_chunks import BaseChunks
    from casstore.store.adding.bases.rules.block_target import BlockTarget
    from casstore.store.adding.bases.rules.target import TargetTensor
    from casstore.store.adding.bases.tensors.base_tensors import BaseTensor
    from casstore.store.adding.bases.tensors.sketch import Words

_FAR = 64.0


class Made(NamedTuple):
    """The sketch of tensor number `number` of the file that is added; it `is_sought` if it may be found by likeness."""

    number: int
    elements: int
    words: Words
    is_sought: bool = True


class BaseSketches:
    """Sketches for the files of one add. For one thread."""

    def __init__(self, catalogue: Sketches, chunks: BaseChunks) -> None:
        self._catalogue = catalogue
        self._chunks = chunks
        self._read: list[Sketch] = []
        self._firsts: dict[BaseTensor, bytes] = {}

    def of(self, tensor: BaseTensor) -> Words | None:
        """Return the sketch of a base; None if nobody knows it, its type has none, or its chunks cannot be read."""
        kept = tensor.file.sketches
        width = WIDTHS.get(tensor.span.dtype)
        if width is None:
            return None
        places = positions(tensor.elements)
        data = kept.get(tensor.key)
        if data is None and tensor.may_read and has_sketch(tensor.span):
            data = kept[tensor.key] = self._read_sketch(tensor, places.tolist(), width)
            if data and tensor.key == tensor.number:
                words = np.frombuffer(data, f"<u{width}")
                self._read.append(
                    Sketch(tensor.file.layout_id, tensor.number, tensor.elements, signature(words), data)
                )
        return np.frombuffer(data, f"<u{width}") if data and len(data) == len(places) * width else None

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

    def layouts_like(self, target: TargetTensor, *, turned: bool = False) -> list[bytes]:
        """Return the layouts that have a tensor like the target, as the catalogue knows, the nearest first.

        With `turned`, also such as have its rows in another order.
        """
        views = [*target.views(), *(target.turned if turned else ())]
        signatures = dict.fromkeys(signature(words) for words in [*views, *target.centred()])
        found = self._catalogue.alike([(target.elements, number) for number in signatures])
        near = sorted(self._distances(target, views, found), key=itemgetter(0))
        return list(dict.fromkeys(layout for _, layout in near))

    def layouts_like_blocks(self, target: BlockTarget) -> list[bytes]:
        """Return the layouts that have floats like those of blocks, as the catalogue knows, the nearest first."""
        found = self._catalogue.alike([(target.elements, number) for number in target.signatures()])
        near = sorted(((target.distance(sketch.data), sketch.layout) for sketch in found), key=itemgetter(0))
        return list(dict.fromkeys(layout for _, layout in near))

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
    def _distances(
        target: TargetTensor, views: Sequence[Words], found: Sequence[Sketch]
    ) -> Iterator[tuple[float, bytes]]:
        order = order_of(target.span.dtype)
        for sketch in found:
            if len(sketch.data) != len(target.sketch) * target.width:
                yield _FAR, sketch.layout  # Of another element type: only values can be compared.
                continue
            words = np.frombuffer(sketch.data, f"<u{target.width}")
            yield min(distance(differences(view, words, order)) for view in views), sketch.layout

    def _read_sketch(self, tensor: BaseTensor, places: Sequence[int], width: int) -> bytes:
        return self._joined(tensor, [(place * width, (place + RUN) * width) for place in places[::RUN]])

    def _joined(self, tensor: BaseTensor, ranges: Sequence[tuple[int, int]]) -> bytes:
        """Return ranges of a tensor's bytes, one after the other."""
        parts = [part for begin, end in ranges for part in tensor.parts(begin, end)]
        bases = self._chunks.read((chunk_id for chunk_id, _, _ in parts), again=True)
        if any(chunk_id not in bases for chunk_id, _, _ in parts):
            return b""
        return b"".join(bytes(bases[chunk_id].plain[begin:end]) for chunk_id, begin, end in parts)
