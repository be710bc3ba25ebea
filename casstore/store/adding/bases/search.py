"""Which tensors of the store predict a tensor best, judged by sketches."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.format.rows import RANK_STEP
from casstore.store.adding.bases.adapters import merged
from casstore.store.adding.bases.base_sketches import Made
from casstore.store.adding.bases.block_types import SOURCES, made_of, same_type
from casstore.store.adding.bases.combining import MAX_BASES, Near, combined
from casstore.store.adding.bases.proposals import propose
from casstore.store.adding.bases.quantising import QUANTISED, learned
from casstore.store.adding.bases.relation import Relation, same
from casstore.store.adding.bases.rotary import rotated
from casstore.store.adding.bases.sketch import (
    FIRST,
    WIDTHS,
    are_strangers,
    differences,
    distance,
    is_negative,
    order_of,
    share_left,
    strange_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.machine.sketches import Sketch
    from casstore.store.adding.bases.base_files import BaseFiles
    from casstore.store.adding.bases.base_sketches import BaseSketches
    from casstore.store.adding.bases.base_tensors import BaseFile, BaseTensor
    from casstore.store.adding.bases.block_target import BlockTarget
    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.relation import Operation
    from casstore.store.adding.bases.sketch import Words
    from casstore.store.adding.bases.target import TargetTensor
    from casstore.tensors import TensorSpan

_LARGE = 0.02
"""Of what is left without a base: where more is left with one, the catalogue may know a better one."""

_BLOCKS_PLAIN = 0.9
_SURELY = 0.3
"""What is left of blocks without a base, and what must be left with one to keep it without trying the other."""

_NEGLIGIBLE = 0.04
"""Added to what is left before it is compared: at the cost of a delta more that is usual, one in a hundred does not count."""

_PATIENCE = 16
_GLANCE = 8
"""After so many tensors for which nothing better was found, one in _GLANCE is looked up."""

_STRANGERS = 8
"""Large tensors in a row that nothing predicts, from which names alone are no reason to try small ones."""

_AGREE = 0.75
"""The share of signs in which relatives agree nearly always, and strangers hardly ever."""

_MANY = 4
"""Tensors from which it pays to compare a few elements of all at once first."""

_NEAREST = 4
"""Files that are looked at for one tensor, of those that the catalogue finds."""

_MAX_FILES = 32
"""Files that are looked at for each that is added."""


class _Found(NamedTuple):
    """An operation, with its score, the lower the better, the rank of what it rests on, and the share that it leaves."""

    score: float
    rank: int
    share: float
    operation: Operation


def _better(best: _Found | None, share: float, operation: Operation, policy: DeltaPolicy) -> _Found:
    """Return the better one of what was found and an operation that leaves this share.

    Where little is left with either, bases of low rank are better: reading a delta more takes longer than reading that little.
    """
    rank = max(tensor.rank or 0 for tensor in operation.inputs)
    score = (share + _NEGLIGIBLE) * policy.depth_cost ** (rank / RANK_STEP)
    if best is None or (score, rank) < best[:2]:
        return _Found(score, rank, share, operation)
    return best


class _Budget:
    """How often something is tried that has not helped yet."""

    def __init__(self, patience: int = _PATIENCE) -> None:
        self._patience = patience
        self._fruitless = 0

    def allows(self) -> bool:
        """Say whether to try once more, which counts as fruitless until `helped` is called."""
        self._fruitless += 1
        return self._fruitless <= self._patience or self._fruitless % _GLANCE == 0

    def helped(self) -> None:
        """Begin again."""
        self._fruitless = 0


class BaseSearch:
    """Finds what predicts the tensors of one file. For one thread, but for `by_name`."""

    def __init__(
        self,
        *,
        files: Sequence[BaseFile],
        finder: BaseFiles,
        sketches: BaseSketches,
        policy: DeltaPolicy,
        adapters: Callable[[], Sequence[BaseFile]],
    ) -> None:
        """`files` are looked at first; `finder` opens others. `adapters` finds those that may have been merged into a base."""
        self._adapters = adapters
        self._files = list(files)
        self._finder = finder
        self._sketches = sketches
        self._policy = policy
        self._naming: dict[bytes, _Budget] = {}
        self._comparing: dict[bytes, _Budget] = {}
        self._looking = _Budget()
        self._summing = _Budget()
        self._merging = _Budget()
        self._made: list[Made] = []
        self._strangers = 0

    def relate(self, number: int, target: TargetTensor) -> Relation | None:
        """Return what predicts a tensor, number `number` of its file's spans; None if nothing does well enough."""
        judge = _Judge(target, self._sketches, self._policy)
        for file in self._files:
            self._compare(judge, file)
            if judge.is_settled:
                break
        if judge.may_be_better(_LARGE) and self._looking.allows():
            before = judge.best
            for file in self._unknown(self._sketches.layouts_like(target)):
                self._files.append(file)
                self._compare(judge, file)
            if judge.best is not before:
                self._looking.helped()
        if judge.may_be_better(0) and len(judge.near) > 1 and self._summing.allows() and judge.sum_up():
            self._summing.helped()
        if judge.may_be_better(0) and judge.near and self._merging.allows() and judge.merge(self._adapters()):
            self._merging.helped()
        best = judge.best
        self._strangers = self._strangers + 1 if best is None else 0
        # What follows from another tensor is found by that one; its own sketch is for those who name its model.
        self._made.append(Made(number, target.elements, target.sketch, best is None or best.share > 0))
        return None if best is None else Relation(target.span, best.operation, judge.plain_share)

    def of_blocks(self, number: int, target: BlockTarget) -> Relation | None:
        """Return what makes tensor number `number`, one of blocks, out of floats, or what it has in common with other blocks."""
        best: _Found | None = None
        for file in self._files:
            best = self._better_blocks(target, file, best)
        if target.is_large and (best is None or best.share > _SURELY) and self._looking.allows():
            before = best
            for file in self._unknown(self._sketches.layouts_like_blocks(target)):
                self._files.append(file)
                best = self._better_blocks(target, file, best)
            if best is not before:
                self._looking.helped()
        if target.is_large:
            self._made.append(Made(number, target.elements, target.sketch))
        if best is None:
            return None
        self._strangers = 0
        return Relation(target.span, best.operation, _BLOCKS_PLAIN if best.share < _SURELY else None)

    def _better_blocks(self, target: BlockTarget, file: BaseFile, best: _Found | None) -> _Found | None:
        """Return what makes blocks of a tensor of this file: of the one of their name, or else of one that is like them."""
        budget = self._naming.setdefault(file.layout_id, _Budget(_STRANGERS))
        if not budget.allows():
            return best
        named = file.find(target.span.name)
        tensors = [] if named is None else [self._in_order(target, named)]
        if named is None and target.is_large:
            tensors = [
                tensor
                for tensor in file.by_elements.get(target.elements, ())
                if tensor.span.dtype in SOURCES
                and (words := self._sketches.of(tensor)) is not None
                and target.is_like(words.tobytes(), tensor.span.dtype)
            ]
        for tensor in tensors:
            if not self._policy.allows(tensor.rank):
                continue
            for rule in (made_of, same_type):
                found = rule(target.span, tensor, read=target.read, read_base=self._sketches.read)
                if found is not None and found[0] < self._policy.keep:
                    share, operation = found
                    best = _better(best, share, operation, self._policy)
                    budget.helped()
        return best

    def _in_order(self, target: BlockTarget, tensor: BaseTensor) -> BaseTensor:
        """Return a tensor of floats with its rows in the order of the target, as far as a few of its elements say."""
        if tensor.span.dtype not in SOURCES or not target.is_large:
            return tensor
        for view in (tensor, *rotated(target.span, tensor)):
            words = self._sketches.of(view)
            if words is not None and target.is_like(words.tobytes(), view.span.dtype):
                return view
        return tensor

    def by_name(self, span: TensorSpan) -> Relation | None:
        """Return what predicts a tensor that is too small for a sketch: the one of its name. For any thread."""
        if span.dtype not in WIDTHS or self._strangers >= _STRANGERS:
            return None
        for file in self._files:
            tensor = file.find(span.name)
            if (
                tensor is not None
                and tensor.span.dtype == span.dtype
                and tensor.span.shape == span.shape
                and self._policy.allows(tensor.rank)
            ):
                return Relation(span, same(tensor))
        return None

    def take_sketches(self, layout: bytes) -> list[Sketch]:
        """Return the sketches of the file's tensors, whose layout this is, and those of bases that were read for them."""
        made, self._made = self._made, []
        return self._sketches.take(layout, made)

    def _compare(self, judge: _Judge, file: BaseFile) -> None:
        """Compare with the tensor of the same name, or else with all that have as many elements, while that helps."""
        named = judge.named_in(file)
        if named is not None:
            naming = self._naming.setdefault(file.layout_id, _Budget(_STRANGERS))
            is_known = named.number in file.sketches
            if naming.allows() and judge.compare_in_any_order(named):
                naming.helped()
                return
            if file.may_read and not is_known:
                return  # All sketches of another model would be read.
        comparing = self._comparing.setdefault(file.layout_id, _Budget())
        if comparing.allows() and judge.compare_others(file):
            comparing.helped()

    def _unknown(self, layouts: Iterable[bytes]) -> Iterator[BaseFile]:
        """Yield the files of layouts that are not looked at yet, the first few."""
        known = {file.layout_id for file in self._files}
        new = [layout for layout in layouts if layout not in known]
        for layout in new[: min(_NEAREST, _MAX_FILES - len(known))]:
            file = self._finder.of_layout(layout)
            if file is not None:
                yield file


class _Judge:
    """Compares one tensor with others. `best` is the best relation so far, `near` what else is like it."""

    def __init__(self, target: TargetTensor, sketches: BaseSketches, policy: DeltaPolicy) -> None:
        self._target = target
        self._sketches = sketches
        self._policy = policy
        self._order = order_of(target.span.dtype)
        self.best: _Found | None = None
        self.near: list[Near] = []

    @cached_property
    def plain_share(self) -> float:
        """What is left of the target without a base."""
        return share_left(self._target.sketch)

    @property
    def is_settled(self) -> bool:
        """Whether nothing can be better: an exact prediction from what is stored plain."""
        return self.best is not None and self.best.share == self.best.rank == 0

    def may_be_better(self, share: float) -> bool:
        """Say whether more is left than this share of what is left without a base."""
        return self.best is None or self.best.share > share * self.plain_share

    def named_in(self, file: BaseFile) -> BaseTensor | None:
        """Return a file's tensor of the target's name, if it is of its size, too."""
        named = file.find(self._target.span.name)
        return named if named is not None and named.elements == self._target.elements else None

    def compare_in_any_order(self, tensor: BaseTensor) -> bool:
        """Compare with a tensor, or else with it in another order of rows; say whether one is worth it."""
        return self.compare(tensor) or any(map(self.compare, rotated(self._target.span, tensor)))

    def compare_others(self, file: BaseFile) -> bool:
        """Compare with all tensors that have as many elements; say whether one is worth it.

        Those whose signs agree come first: after the first one that fits, the others are left out.
        """
        fits = False
        for agreement, tensor in self._by_signs(
            self._likely(file.by_elements.get(self._target.elements, []))
        ):
            if fits and (agreement < _AGREE or self.is_settled):
                break
            fits = self.compare(tensor) or fits
        return fits

    def _by_signs(self, tensors: list[BaseTensor]) -> list[tuple[float, BaseTensor]]:
        """Return tensors with the share of elements that have the target's sign, those with the most first."""
        if len(tensors) < 2:
            return [(1.0, tensor) for tensor in tensors]
        found = [(tensor, self._sketches.of(tensor)) for tensor in tensors]
        known = [(tensor, is_negative(words)) for tensor, words in found if words is not None]
        if not known:
            return []
        table = np.stack([signs for _, signs in known])
        shares = np.max([(table == signs).mean(axis=1) for signs in self._signs], axis=0)
        # A stable order: of tensors that agree as much, the first one of the file.
        order = np.argsort(-shares, kind="stable")
        return [(float(shares[at]), known[at][0]) for at in order.tolist()]

    @cached_property
    def _signs(self) -> list[NDArray[np.bool_]]:
        """Which elements of each view of the target are negative."""
        return [is_negative(words) for words in self._target.centred() or self._target.views()]

    def _likely(self, tensors: list[BaseTensor]) -> list[BaseTensor]:
        """Leave out tensors of the same type that are strangers, by a few elements of all of them at once."""
        dtype = self._target.span.dtype
        alike = {tensor: words for tensor in tensors if (words := self._alike_in_type(tensor)) is not None}
        if len(alike) < _MANY:
            return tensors
        first = np.stack(list(alike.values()))
        near = np.zeros(len(alike), np.bool_)
        for view in self._target.views():
            actual = np.broadcast_to(view[:FIRST], first.shape)
            residuals = differences(np.ascontiguousarray(actual), first, self._order)
            near |= ~strange_rows(residuals, dtype)
        kept = {tensor for tensor, is_near in zip(alike, near.tolist(), strict=True) if is_near}
        return [tensor for tensor in tensors if tensor in kept or tensor not in alike]

    def _alike_in_type(self, tensor: BaseTensor) -> Words | None:
        if tensor.span.dtype != self._target.span.dtype or not self._policy.allows(tensor.rank):
            return None
        return self._sketches.first_of(tensor)

    def sum_up(self) -> bool:
        """Try sums of what is near; say whether one is better."""
        sketch, dtype = self._target.sketch, self._target.span.dtype
        by_distance = sorted(
            self.near, key=lambda item: distance(differences(sketch, item.words, self._order))
        )
        different = list({item.words.tobytes(): item for item in by_distance}.values())
        found = combined(sketch, dtype, different[:MAX_BASES])
        return found is not None and self._take(*found)

    def merge(self, adapters: Sequence[BaseFile]) -> bool:
        """Try to merge adapters into what is near; say whether that helps."""
        weights = [item.tensor for item in self.near]
        before = self.best
        for share, operation in merged(self._target, weights, adapters, self._sketches.read):
            if all(self._policy.allows(tensor.rank) for tensor in operation.inputs):
                self._take(share, operation)
        return self.best is not before

    def compare(self, tensor: BaseTensor) -> bool:
        """Try every operation that fits; say whether one is worth it."""
        if not self._policy.allows(tensor.rank) or self._is_stranger(tensor):
            return False
        words = self._sketches.of(tensor)
        if words is None:
            return False
        fits = False
        target = self._target
        for operation, predicted, actual in propose(target, tensor, words, self._policy):
            first = differences(actual[:FIRST], predicted[:FIRST], self._order)
            if are_strangers(first, target.span.dtype):
                continue
            if predicted is words and actual is target.sketch:
                self.near.append(Near(tensor, words))
            residuals = differences(actual, predicted, self._order)
            share = share_left(residuals) if residuals.any() else 0.0
            fits = self._take(share, operation) or fits
            if share == 0:
                break
        if not fits and target.span.dtype in QUANTISED:
            for operation, predicted, actual in learned(
                target, tensor, words, read=self._sketches.read, whole=self._policy.whole
            ):
                residuals = differences(actual, predicted, self._order)
                fits = self._take(share_left(residuals) if residuals.any() else 0.0, operation) or fits
        return fits

    def _is_stranger(self, tensor: BaseTensor) -> bool:
        """Say whether the first elements of a tensor show that it is none, where all of its chunks would be read for its sketch."""
        target = self._target
        if tensor.key in tensor.file.sketches or target.span.dtype in QUANTISED:
            return False
        words = self._sketches.first_of(tensor)
        return words is None or all(
            are_strangers(differences(actual[:FIRST], predicted[:FIRST], self._order), target.span.dtype)
            for _, predicted, actual in propose(target, tensor, words, self._policy)
        )

    def _take(self, share: float, operation: Operation) -> bool:
        """Take note of what an operation leaves; say whether that is worth it, be it the best or not."""
        if share > self._policy.keep * self.plain_share:
            return False
        self.best = _better(self.best, share, operation, self._policy)
        return True
