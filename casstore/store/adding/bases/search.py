"""Which tensor of the store predicts a tensor best, judged by sketches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.format.rows import RANK_STEP
from casstore.machine.sketches import Sketch
from casstore.store.adding.bases.names import plain_name
from casstore.store.adding.bases.proposals import propose
from casstore.store.adding.bases.relation import Relation, same
from casstore.store.adding.bases.sketch import (
    FIRST,
    RUN,
    WIDTHS,
    are_strangers,
    differences,
    distance,
    order_of,
    positions,
    share_left,
    signature,
)
from casstore.store.adding.bases.target import TargetTensor, has_sketch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casstore.machine.sketches import Sketches
    from casstore.store.adding.bases.base_chunks import BaseChunks
    from casstore.store.adding.bases.base_files import BaseFiles
    from casstore.store.adding.bases.base_tensors import BaseFile, BaseTensor
    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.sketch import Words
    from casstore.tensors import TensorSpan

_LARGE = 0.25
"""Of what is left without a base: where more is left with one, the catalogue may know a better one."""

_PATIENCE = 16
_GLANCE = 8
"""After so many tensors for which the catalogue had nothing better, one in _GLANCE is looked up."""

_NEAREST = 3
"""Tensors that the catalogue finds whose files are looked at, for one tensor."""

_MAX_FILES = 32
"""Files that are looked at for each that is added."""


class _Found(NamedTuple):
    """A relation, with its score, the lower the better, and the rank of what it rests on."""

    score: float
    rank: int
    relation: Relation


class BaseSearch:
    """Finds what predicts the tensors of one file. For one thread."""

    def __init__(
        self,
        *,
        files: Sequence[BaseFile],
        finder: BaseFiles,
        chunks: BaseChunks,
        sketches: Sketches,
        policy: DeltaPolicy,
    ) -> None:
        """`files` are looked at first; `finder` finds others."""
        self._files = list(files)
        self._finder = finder
        self._chunks = chunks
        self._catalogue = sketches
        self._policy = policy
        self._fruitless = 0
        self._made: list[tuple[int, int, Words]] = []
        self._rebuilt: list[Sketch] = []

    def relate(self, number: int, target: TargetTensor) -> Relation | None:
        """Return what predicts a tensor, number `number` of its file's spans; None if nothing does well enough."""
        plain_share = share_left(target.sketch)
        best: _Found | None = None
        for file in self._files:
            best = _better(best, self._in_file(file, target, plain_share))
        if best is None or best.score > _LARGE * plain_share:
            for file in self._alike(target):
                self._files.append(file)
                other = self._in_file(file, target, plain_share)
                if other is not None and (best is None or other.score < best.score):
                    best, self._fruitless = other, 0
        if best is None or best.score > 0:
            self._made.append((number, target.elements, target.sketch))
        return None if best is None else best.relation

    def by_name(self, span: TensorSpan) -> Relation | None:
        """Return what predicts a tensor that is too small for a sketch: the one of its name. For any thread."""
        if span.dtype not in WIDTHS:
            return None
        for file in self._files:
            tensor = file.by_name.get(plain_name(span.name))
            if (
                tensor is not None
                and tensor.span.dtype == span.dtype
                and tensor.span.shape == span.shape
                and self._may_rest_on(tensor)
            ):
                return Relation(span, same(tensor))
        return None

    def remember(self, layout: bytes) -> None:
        """Keep the sketches of the file's tensors, whose layout this is, and those that were made of bases."""
        own = [
            Sketch(layout, number, elements, signature(words), words.tobytes())
            for number, elements, words in self._made
        ]
        self._catalogue.keep([*self._rebuilt, *own])
        self._made, self._rebuilt = [], []

    # ---- one base file

    def _in_file(self, file: BaseFile, target: TargetTensor, plain_share: float) -> _Found | None:
        named = file.by_name.get(plain_name(target.span.name))
        best = None
        if named is not None and named.elements == target.elements:
            best = self._compare(target, named, plain_share)
            if best is not None:
                return best
        for tensor in file.by_elements.get(target.elements, ()):
            if tensor is not named:
                best = _better(best, self._compare(target, tensor, plain_share))
                if best is not None and best.score == 0 and best.rank == 0:
                    break
        return best

    def _compare(self, target: TargetTensor, tensor: BaseTensor, plain_share: float) -> _Found | None:
        """Judge what a tensor predicts: the lower the first number, the better; None if it is not worth it."""
        if not self._may_rest_on(tensor):
            return None
        words = self._sketch_of(tensor)
        if words is None:
            return None
        order = order_of(target.span.dtype)
        best = None
        for operation, predicted, actual in propose(target, tensor, words, self._policy):
            if are_strangers(differences(actual[:FIRST], predicted[:FIRST], order), target.span.dtype):
                continue
            residuals = differences(actual, predicted, order)
            share = share_left(residuals) if residuals.any() else 0.0
            if share <= self._policy.keep * plain_share:
                rank = tensor.rank or 0
                score = share * self._policy.depth_cost ** (rank / RANK_STEP)
                best = _better(best, _Found(score, rank, Relation(target.span, operation, plain_share)))
            if share == 0:
                break
        return best

    def _may_rest_on(self, tensor: BaseTensor) -> bool:
        rank = tensor.rank
        return rank is not None and rank <= self._policy.base_rank

    def _sketch_of(self, tensor: BaseTensor) -> Words | None:
        """Return the sketch of a base; read from the store, if that is allowed, where the catalogue has none."""
        kept = tensor.file.sketches
        width = WIDTHS[tensor.span.dtype]
        places = positions(tensor.elements)
        data = kept.get(tensor.number)
        if data is None and tensor.file.may_read and has_sketch(tensor.span):
            data = self._read_sketch(tensor, places.tolist(), width)
            kept[tensor.number] = data
            if data:
                words = np.frombuffer(data, f"<u{width}")
                self._rebuilt.append(
                    Sketch(tensor.file.layout_id, tensor.number, tensor.elements, signature(words), data)
                )
        return np.frombuffer(data, f"<u{width}") if data and len(data) == len(places) * width else None

    def _read_sketch(self, tensor: BaseTensor, places: Sequence[int], width: int) -> bytes:
        """Return the bytes of a sketch out of the store; none if a chunk is missing or damaged."""
        origin = tensor.span.begin
        parts = [
            part
            for place in places[::RUN]
            for part in tensor.file.parts(origin + place * width, origin + (place + RUN) * width)
        ]
        bases = self._chunks.read(chunk_id for chunk_id, _, _ in parts)
        if any(chunk_id not in bases for chunk_id, _, _ in parts):
            return b""
        return b"".join(bytes(bases[chunk_id].plain[begin:end]) for chunk_id, begin, end in parts)

    # ---- the catalogue

    def _alike(self, target: TargetTensor) -> Iterator[BaseFile]:
        """Yield files that are not looked at yet and have a tensor like this one, the nearest first."""
        self._fruitless += 1
        if self._fruitless > _PATIENCE and self._fruitless % _GLANCE:
            return
        if len(self._files) >= _MAX_FILES:
            return
        known = {file.layout_id for file in self._files}
        found = self._catalogue.alike([(target.elements, signature(words)) for words in target.views()])
        near = sorted(self._distances(target, found), key=lambda item: item[0])
        for _, sketch in near[:_NEAREST]:
            if sketch.layout not in known:
                known.add(sketch.layout)
                file = self._finder.of_layout(sketch.layout)
                if file is not None:
                    yield file

    def _distances(self, target: TargetTensor, found: Sequence[Sketch]) -> Iterator[tuple[float, Sketch]]:
        size = target.width
        for sketch in found:
            if len(sketch.data) != len(target.sketch) * size:
                yield 64.0, sketch  # Of another element type: only its values can be compared.
                continue
            words = np.frombuffer(sketch.data, f"<u{size}")
            nearest = min(
                distance(differences(view, words, order_of(target.span.dtype))) for view in target.views()
            )
            if nearest < 8 * size:
                yield nearest, sketch


def _better(one: _Found | None, other: _Found | None) -> _Found | None:
    if one is None or other is None:
        return one or other
    return other if other[:2] < one[:2] else one
