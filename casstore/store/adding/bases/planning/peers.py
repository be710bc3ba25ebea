"""The tensors of one file that have as many elements: which of them may have made another one, by few elements of all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.store.adding.bases.rules.proposals import may_make
from casstore.store.adding.bases.tensors.sketch import FIRST, is_negative, strange_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from casstore.store.adding.bases.planning.base_sketches import BaseSketches
    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.tensors.base_tensors import BaseFile, BaseTensor
    from casstore.store.adding.bases.tensors.sketch import Words

_TRIED = 16
"""Tensors of a file that are compared with one of their size, at most: those of which most signs agree."""


class _OfType(NamedTuple):
    """Tensors of one element type, their first elements, and which of the elements of their sketches are negative."""

    tensors: Sequence[BaseTensor]
    first: Words
    signs: NDArray[np.bool_]


class Peers:
    """Tensors of a file with one number of elements, looked at once for all that are compared with them."""

    def __init__(self, tensors: Iterable[BaseTensor], sketches: BaseSketches, policy: DeltaPolicy) -> None:
        """Tensors that cannot be bases are left out. Of those whose sketches nobody has, the first elements are read."""
        allowed = [tensor for tensor in tensors if policy.allows(tensor.rank)]
        # Of a tensor whose sketch nobody has, only the first elements are read.
        is_read = any(tensor.may_read and tensor.key not in tensor.file.sketches for tensor in allowed)
        words_of = sketches.first_of if is_read else sketches.of
        found: dict[str, list[tuple[BaseTensor, Words]]] = {}
        for tensor in allowed:
            words = words_of(tensor)
            if words is not None:
                found.setdefault(tensor.span.dtype, []).append((tensor, words))
        self._types: dict[str, _OfType] = {}
        for dtype, items in found.items():
            rows = np.stack([words for _, words in items])
            first = np.ascontiguousarray(rows[:, :FIRST])
            self._types[dtype] = _OfType([tensor for tensor, _ in items], first, is_negative(rows))

    def likely(
        self, dtype: str, views: Sequence[Words], signs: Sequence[NDArray[np.bool_]]
    ) -> list[tuple[float, BaseTensor]]:
        """Return which tensors are most likely to have made one of a type, and the share of signs that agree, the highest first.

        `views` are its elements, as it is and perhaps transposed, `signs` which of them are negative, counted from each zero
        point that it may have. Strangers of its own type are left out.
        """
        shares: list[NDArray[np.float64]] = []
        tensors: list[BaseTensor] = []
        for source, peers in self._types.items():
            if not may_make(source, dtype):
                continue
            at = np.arange(len(peers.tensors))
            if source == dtype:
                strange = [strange_rows(view[:FIRST], peers.first, dtype) for view in views]
                at = np.flatnonzero(~np.logical_and.reduce(strange))
            count = peers.signs.shape[1]
            table = peers.signs[at]
            shares.append(np.max([(table == own[:count]).mean(axis=1) for own in signs], axis=0))
            tensors += [peers.tensors[number] for number in at.tolist()]
        if not tensors:
            return []
        share = np.concatenate(shares)
        # Of tensors that agree as much, the first one of the file.
        numbers = np.array([tensor.number for tensor in tensors])
        order = np.lexsort((numbers, -share))[:_TRIED]
        return [(float(share[number]), tensors[number]) for number in order.tolist()]


class PeersOfFiles:
    """The peers for one file that is added. For one thread."""

    def __init__(self, sketches: BaseSketches, policy: DeltaPolicy) -> None:
        self._sketches = sketches
        self._policy = policy
        self._known: dict[tuple[bytes, int], Peers] = {}

    def of(self, file: BaseFile, elements: int) -> Peers:
        """Return the tensors of a file that have so many elements."""
        key = file.layout_id, elements
        if key not in self._known:
            tensors = file.by_elements.get(elements, ())
            self._known[key] = Peers(tensors, self._sketches, self._policy)
        return self._known[key]
