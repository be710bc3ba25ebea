"""What a tensor may have been made of another one by: each operation that fits types and shapes, with its prediction.

The prediction is for a few elements, those of sketches; whether it is any good is for the caller to judge.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from casstore.codecs.delta import SAME, Rounding, cast_step
from casstore.store.adding.bases.rules.quantising import QUANTISED, quantised
from casstore.store.adding.bases.rules.relation import Elementwise, Transposed, same
from casstore.store.adding.bases.tensors.sketch import FLOATS, WIDTHS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.rules.relation import Operation
    from casstore.store.adding.bases.rules.target import TargetTensor
    from casstore.store.adding.bases.tensors.base_tensors import BaseTensor
    from casstore.store.adding.bases.tensors.sketch import Words

_EIGHT_BITS = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})


_CAST = _EIGHT_BITS | FLOATS.keys()


class Proposal(NamedTuple):
    """An operation, elements that it makes, and those of the target at the same places."""

    operation: Operation
    predicted: Words
    actual: Words


def propose(
    target: TargetTensor, tensor: BaseTensor, words: Words, policy: DeltaPolicy
) -> Iterator[Proposal]:
    """Yield what may make the target of a tensor of as many elements, whose sketch is `words`."""
    if target.span.dtype in QUANTISED:
        for whole in quantised(target, tensor, words, whole=policy.whole):
            yield Proposal(*whole)
    made = [*elementwise(tensor, words, target.span.dtype)]
    for operation, predicted in made:
        yield Proposal(operation, predicted, target.sketch)
    if tensor.size <= policy.whole and target.is_matrix and tensor.span.shape == target.span.shape[::-1]:
        for operation, predicted in made:
            steps = tuple(step for step in operation.steps if step.operation != SAME)
            moved = Transposed(tensor, steps, operation.width)
            yield Proposal(moved, predicted, target.transpose)


def elementwise(tensor: BaseTensor, words: Words, dtype: str) -> Iterator[tuple[Elementwise, Words]]:
    """Yield the operations that go element by element, with what they make of `words`."""
    source = tensor.span.dtype
    if source == dtype:
        yield same(tensor), words
        return
    for types, rounding, saturate in _casts(source, dtype):
        steps = tuple(
            cast_step(at, source=one, target=other)
            if WIDTHS[one] < WIDTHS[other]
            else cast_step(at, source=one, target=other, rounding=rounding, saturate=saturate)
            for at, (one, other) in enumerate(pairwise(types))
        )
        operation = Elementwise((tensor,), steps, WIDTHS[dtype])
        yield operation, operation.of([words])


def may_make(source: str, target: str) -> bool:
    """Say whether any operation makes elements of one type of those of another."""
    return (
        source == target
        or not {source, target} - _CAST
        or (target in QUANTISED and source in FLOATS and source != "F64")
    )


def _casts(source: str, target: str) -> Iterator[tuple[list[str], Rounding, bool]]:
    """Yield the casts between two types of floats, the usual rounding first: the types on the way, rounding, saturation.

    Two types of which neither is F32 have it between them.
    """
    if {source, target} - _CAST:
        return
    types = [source, target] if "F32" in {source, target} or source == "F64" else [source, "F32", target]
    yield types, Rounding.NEAREST_EVEN, False
    if all(WIDTHS[one] < WIDTHS[other] for one, other in pairwise(types)):
        return
    if target in _EIGHT_BITS or (source, target) == ("BF16", "F16"):
        yield types, Rounding.NEAREST_EVEN, True
    if source in {"F64", "F32"}:
        yield types, Rounding.TOWARD_ZERO, False
