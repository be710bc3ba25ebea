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
    """Tensors of one element type, by their places among all, with their first elements, and which of their sketches are negative."""

    places: NDArray[np.intp]
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
        words = [words_of(tensor) for tensor in allowed]
        self._tensors = allowed
        self._types: dict[str, _OfType] = {}
        by_type: dict[str, list[int]] = {}
        for place, tensor in enumerate(allowed):
            if words[place] is not None:
                by_type.setdefault(tensor.span.dtype, []).append(place)
        for dtype, places in by_type.items():
            rows = np.stack([own for place in places if (own := words[place]) is not None])
            first = np.ascontiguousarray(rows[:, :FIRST])
            self._types[dtype] = _OfType(np.array(places), first, is_negative(rows))

    def likely(
        self, dtype: str, views: Sequence[Words], signs: Sequence[NDArray[np.bool_]]
    ) -> list[tuple[float, BaseTensor]]:
        """Return which tensors are most likely to have made one of a type, and the share of signs that agree, the highest first.

        `views` are its elements, as it is and perhaps transposed, `signs` which of them are negative, counted from each zero
        point that it may have. Strangers of its own type are left out.
        """
        shares: list[NDArray[np.float64]] = []
        places: list[NDArray[np.intp]] = []
        for source, peers in self._types.items():
            if not may_make(source, dtype):
                continue
            own, table = peers.places, peers.signs
            if source == dtype:
                strange = [strange_rows(view[:FIRST], peers.first, dtype) for view in views]
                near = ~np.logical_and.reduce(strange)
                own, table = own[near], table[near]
            count = table.shape[1]
            shares.append(np.max([(table == view[:count]).mean(axis=1) for view in signs], axis=0))
            places.append(own)
        if not places:
            return []
        share, place = np.concatenate(shares), np.concatenate(places)
        # Of tensors that agree as much, the first one of the file.
        order = np.lexsort((place, -share))[:_TRIED]
        found = zip(share[order].tolist(), place[order].tolist(), strict=True)
        return [(agreement, self._tensors[at]) for agreement, at in found]


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
