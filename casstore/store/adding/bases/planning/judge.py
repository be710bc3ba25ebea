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
from casstore.store.adding.bases.tensors.likeness import distances
from casstore.store.adding.bases.tensors.sketch import FIRST, is_negative, left_of, order_of, share_left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.store.adding.bases.planning.base_sketches import BaseSketches
    from casstore.store.adding.bases.planning.peers import Peers
    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.rules.relation import Operation
    from casstore.store.adding.bases.rules.target import TargetTensor
    from casstore.store.adding.bases.tensors.base_tensors import BaseFile, BaseTensor

_NEGLIGIBLE = 0.04
"""Added to what is left before it is compared: at the cost of a delta more that is usual, one in a hundred does not count."""

_AGREE = 0.75
"""The share of signs in which relatives agree nearly always, and strangers hardly ever."""


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
        self.best: Found | None = None
        self.near: list[Near] = []

    @property
    def elements(self) -> int:
        """How many elements the target has."""
        return self._target.elements

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
                share = left_of(actual, predicted, target.span.dtype)
                fits = (share is not None and self._take(share, operation)) or fits
        return fits

    def compare_others(self, peers: Peers) -> bool:
        """Compare with tensors that have as many elements; say whether one is worth it.

        Those whose signs agree come first: after the first one that fits, the others are left out.
        """
        fits = False
        target = self._target
        for agreement, tensor in peers.likely(target.span.dtype, target.views(), self._signs):
            if fits and (agreement < _AGREE or (self.best is not None and self.best.share == 0)):
                break
            fits = self.compare(tensor) or fits
        return fits

    @cached_property
    def _signs(self) -> list[NDArray[np.bool_]]:
        """Which elements of each view of the target are negative."""
        return [is_negative(words) for words in self._target.centred() or self._target.views()]

    def sum_up(self) -> bool:
        """Try sums of what is near; say whether one is better."""
        sketch, dtype = self._target.sketch, self._target.span.dtype
        rows = np.stack([item.words for item in self.near])
        order = np.argsort(distances(sketch, rows, order_of(dtype)), kind="stable")
        by_distance = [self.near[at] for at in order.tolist()]
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
            share = left_of(actual, predicted, target.span.dtype)
            if share is None:
                continue
            if predicted is words and actual is target.sketch:
                self.near.append(Near(tensor, words))
            fits = self._take(share, operation) or fits
            if share == 0:
                break
        if not fits and target.span.dtype in QUANTISED:
            for operation, predicted, actual in learned(
                target, tensor, words, read=self._sketches.read, whole=self._policy.whole
            ):
                share = left_of(actual, predicted, target.span.dtype)
                fits = (share is not None and self._take(share, operation)) or fits
        return fits

    def _is_stranger(self, tensor: BaseTensor) -> bool:
        """Say whether the first elements of a tensor show that it is none, where all of its chunks would be read for its sketch."""
        target = self._target
        if tensor.key in tensor.file.sketches or target.span.dtype in QUANTISED:
            return False
        words = self._sketches.first_of(tensor)
        return words is None or all(
            left_of(actual[:FIRST], predicted[:FIRST], target.span.dtype) is None
            for _, predicted, actual in propose(target, tensor, words, self._policy)
        )

    def _take(self, share: float, operation: Operation) -> bool:
        """Take note of what an operation leaves; say whether that is worth it, be it the best or not."""
        if share > self._policy.keep * self.plain_share:
            return False
        self.best = better(self.best, share, operation, self._policy)
        return True
