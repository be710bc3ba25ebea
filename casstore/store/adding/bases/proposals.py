"""What a tensor may have been made of another one by: each operation that fits types and shapes, with its prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.store.adding.bases.relation import same

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.store.adding.bases.base_tensors import BaseTensor
    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.relation import Operation
    from casstore.store.adding.bases.sketch import Words
    from casstore.store.adding.bases.target import TargetTensor


def propose(
    target: TargetTensor, tensor: BaseTensor, words: Words, _policy: DeltaPolicy
) -> Iterator[tuple[Operation, Words, Words]]:
    """Yield operations that may make the target of a tensor with the sketch `words`.

    With each come elements that it makes, and the target's at the same places.
    """
    if tensor.span.dtype == target.span.dtype:
        yield same(tensor), words, target.sketch
