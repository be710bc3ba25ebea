"""The order in which models go to free space: those first that are cheap to make again for the bytes that they free.

What a model frees depends on what has gone before it: an object is freed with the last model that holds it. So each object
knows how many models hold it and, once that is one, which. All steps together touch each object of each model once.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Positions = NDArray[np.int64]


class Holders:
    """Which of several models, by number, hold each object, by number.

    `alone` is how many bytes each model would free if it went now.
    """

    def __init__(
        self, held: Sequence[Positions], *, sizes: NDArray[np.int64], kept: NDArray[np.bool_]
    ) -> None:
        """`held` are each model's objects, without repetition; objects that are `kept` are never freed."""
        self._sizes = sizes
        self._held = [objects[~kept[objects]] for objects in held]
        joined = np.concatenate([np.zeros(0, np.int64), *self._held])
        owners = np.repeat(np.arange(len(held)), [len(objects) for objects in self._held])
        self._counts = np.bincount(joined, minlength=len(sizes))
        # The sum of the numbers of all holders: the number itself where there is one. Floats are exact up to 2^53.
        self._owners = np.bincount(joined, owners.astype(np.float64), minlength=len(sizes)).astype(np.int64)
        single = np.flatnonzero(self._counts == 1)
        self.alone = np.zeros(len(held), np.int64)
        np.add.at(self.alone, self._owners[single], sizes[single])

    def remove(self, model: int) -> Positions:
        """Take a model away; return those that free more than before."""
        objects = self._held[model]
        self._counts[objects] -= 1
        self._owners[objects] -= model
        single = objects[self._counts[objects] == 1]
        owners = self._owners[single]
        np.add.at(self.alone, owners, self._sizes[single])
        return np.unique(owners)

    def held(self) -> NDArray[np.bool_]:
        """Return a mask over all objects that is true for those that any model holds."""
        found: NDArray[np.bool_] = self._counts > 0
        return found

    def freed(self, models: Sequence[int]) -> Positions:
        """Return the objects of these models that no model holds any more."""
        objects = np.unique(np.concatenate([np.zeros(0, np.int64), *(self._held[model] for model in models)]))
        gone: Positions = objects[self._counts[objects] == 0]
        return gone


def victims(
    holders: Holders, *, costs: NDArray[np.float64], used: NDArray[np.float64]
) -> Iterator[tuple[int, int]]:
    """Yield models with the bytes that they free, the next to go first; each is removed from `holders` before that.

    `costs` are the seconds in which each can be made again, nan where that is impossible. Those that can go first, by
    seconds for each byte; then the others, by when they were last `used`. Whoever has enough stops asking.
    """
    waits = np.ones(len(costs), np.bool_)
    can_go = ~np.isnan(costs)

    def rank(models: Positions) -> Iterator[tuple[float, float, int]]:
        # What frees nothing yet, since others hold it too, comes last: it may free something with them.
        values = np.full(len(models), np.inf)
        np.divide(costs[models], holders.alone[models], out=values, where=holders.alone[models] > 0)
        return zip(values.tolist(), costs[models].tolist(), models.tolist(), strict=True)

    heap = list(rank(np.flatnonzero(can_go)))
    heapq.heapify(heap)
    while heap:
        _, _, model = heapq.heappop(heap)
        if not waits[model]:
            continue  # It was ranked again when it came to free more, and has gone already.
        waits[model] = False
        freed = int(holders.alone[model])
        grown = holders.remove(model)
        for ranked in rank(grown[waits[grown] & can_go[grown]]):
            heapq.heappush(heap, ranked)
        yield model, freed
    for found in np.argsort(used, kind="stable"):
        model = int(found)
        if waits[model]:
            waits[model] = False
            freed = int(holders.alone[model])
            holders.remove(model)
            yield model, freed
