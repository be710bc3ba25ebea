"""Compares one tensor with others by sketches, in every way in which one may be made of them, and keeps the best."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.format.rows import RANK_STEP
from casstore.store.adding.bases.rules.adapters import merged
from casstore.store.adding.bases.rules.combining import MAX_BASES, Near, combined
from casstore.store.adding.bases.rules.proposals import elementwise, propose
from casstore.store.adding.bases.rules.quantising import QUANTISED, learned
from casstore.store.adding.bases.rules.rotary import rotated
from casstore.store.adding.bases.tensors.sketch import (
    FIRST,
    are_strangers,
    differences,
    distance,
    is_negative,
    order_of,
    share_left,
    strange_rows,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.store.adding.bases.planning.base_sketches import BaseSketches
    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.rules.relation import Operation
    from casstore.store.adding.bases.rules.target import TargetTensor
    from casstore.store.adding.bases.tensors.base_tensors import BaseFile, BaseTensor
    from casstore.store.adding.bases.tensors.sketch import Words

_NEGLIGIBLE = 0.04
"""Added to what is left before it is compared: at the cost of a delta more that is usual, one in a hundred does not count."""

_AGREE = 0.75
"""The share of signs in which relatives agree nearly always, and strangers hardly ever."""

_MANY = 4
"""Tensors from which it pays to compare a few elements of all at once first."""


class Found(NamedTuple):
    """An operation, with its score, the lower the better, the rank of what it rests on, and the share that it leaves."""

    score: float
    rank: int
    share: float
    operation: Operation


def better(best: Found | None, share: float, operation: Operation, policy: DeltaPolicy) -> Found:
    """Return the better one of what was found and an operation that leaves this share.

    Where little is left with either, bases of low rank are better: reading a delta more takes longer than reading that little.
    """
    rank = max(tensor.rank or 0 for tensor in operation.inputs)
    score = (share + _NEGLIGIBLE) * policy.depth_cost ** (rank / RANK_STEP)
    if best is None or (score, rank) < best[:2]:
        return Found(score, rank, share, operation)
    return best


class Judge:
    """Compares one tensor with others. `best` is the best relation so far, `near` what else is like it."""

    def __init__(self, target: TargetTensor, sketches: BaseSketches, policy: DeltaPolicy) -> None:
        self._target = target
        self._sketches = sketches
        self._policy = policy
        self._order = order_of(target.span.dtype)
        self.best: Found | None = None
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
        return self.compare(tensor) or self._compare_turned(tensor)

    def _compare_turned(self, tensor: BaseTensor) -> bool:
        """Compare with a tensor whose sketch is known in other orders of rows, which takes no reading of it."""
        target = self._target
        views = list(rotated(target.span, tensor))
        if not views or tensor.key not in tensor.file.sketches or not self._policy.allows(tensor.rank):
            return False
        words = self._sketches.of(tensor)
        if words is None:
            return False
        fits = False
        for view, actual in zip(views, target.turned, strict=True):
            for operation, predicted in elementwise(view, words, target.span.dtype):
                residuals = differences(actual, predicted, self._order)
                if not are_strangers(residuals[:FIRST], target.span.dtype):
                    fits = self._take(share_left(residuals) if residuals.any() else 0.0, operation) or fits
        return fits

    def compare_others(self, file: BaseFile) -> bool:
        """Compare with all tensors that have as many elements; say whether one is worth it.

        Those whose signs agree come first: after the first one that fits, the others are left out.
        """
        fits = False
        for agreement, tensor in self._by_signs(
            self._likely(file.by_elements.get(self._target.elements, []))
        ):
            if fits and (agreement < _AGREE or (self.best is not None and self.best.share == 0)):
                break
            fits = self.compare(tensor) or fits
        return fits

    def _by_signs(self, tensors: list[BaseTensor]) -> list[tuple[float, BaseTensor]]:
        """Return tensors with the share of elements that have the target's sign, those with the most first."""
        if len(tensors) < 2:
            return [(1.0, tensor) for tensor in tensors]
        # Of a tensor whose sketch nobody has, only the first elements are read for that.
        are_known = all(tensor.key in tensor.file.sketches for tensor in tensors)
        words_of = self._sketches.of if are_known else self._sketches.first_of
        found = [(tensor, words_of(tensor)) for tensor in tensors]
        known = [(tensor, is_negative(words)) for tensor, words in found if words is not None]
        if not known:
            return []
        table = np.stack([signs for _, signs in known])
        count = table.shape[1]
        shares = np.max([(table == signs[:count]).mean(axis=1) for signs in self._signs], axis=0)
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
        self.best = better(self.best, share, operation, self._policy)
        return True
