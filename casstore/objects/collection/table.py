"""Every frame of every listed pack, as columns of numpy: which objects are needed, and which copies count.

Ids are held as their first 128 bits, which nobody can make collide. A frame takes 30 bytes here, no Python object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.format.rows import MAX_RANK, expand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Positions = NDArray[np.int64]

_NO_RANK = 255
_LIVE, _BAD, _PROVED = np.uint8(1), np.uint8(2), np.uint8(4)


@dataclass(frozen=True, slots=True)
class PackColumns:
    """The frames of one pack: first and second word of each id, bytes in the pack, rank, and base lists.

    `lists` is 0 for no bases, else 1 and the number of a list; list k is `bases[offsets[k]:offsets[k + 1]]`, each base
    its two words.
    """

    number: int
    leads: NDArray[np.uint64]
    tails: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    ranks: NDArray[np.uint8]
    lists: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    bases: NDArray[np.uint64]


def id_keys(ids: bytes) -> NDArray[np.uint64]:
    """Return the first two words of each of these joined ids."""
    return np.frombuffer(ids, ">u8").reshape(-1, 4)[:, :2].astype(np.uint64)


class FrameTable:
    """Rows are frames, sorted by object; objects are numbered in that order until the next `replace`."""

    def __init__(self) -> None:
        self._leads = np.zeros(0, np.uint64)
        self._tails = np.zeros(0, np.uint64)
        self.packs: NDArray[np.uint32] = np.zeros(0, np.uint32)
        """The pack of each row."""
        self.sizes: NDArray[np.uint32] = np.zeros(0, np.uint32)
        """The bytes of each row's frame."""
        self._ranks = np.zeros(0, np.uint8)
        self._flags = np.zeros(0, np.uint8)
        self._lists = np.zeros(0, np.uint32)
        self._offsets = np.zeros(1, np.int64)
        self._bases = np.zeros((0, 2), np.uint64)
        self.objects: NDArray[np.uint32] = np.zeros(0, np.uint32)
        """The number of each row's object."""
        self._firsts = np.zeros(0, np.int64)
        self.live: Mask = np.zeros(0, np.bool_)
        """By object: whether something needs it."""

    def replace(self, added: Sequence[PackColumns], gone: frozenset[int]) -> None:
        """Add the frames of new packs, and drop those of packs that are gone."""
        if not added and not gone:
            return
        self._flags = np.where(self.live[self.objects], self._flags | _LIVE, self._flags & ~_LIVE)
        kept: Any = slice(None)
        if gone:
            kept = ~np.isin(self.packs, np.fromiter(gone, np.uint32, len(gone)))
        lists, base = [self._lists[kept]], len(self._offsets) - 1
        offsets, bases = [self._offsets], len(self._bases)
        for item in added:
            lists.append(np.where(item.lists > 0, item.lists + np.uint32(base), np.uint32(0)))
            offsets.append(item.offsets[1:] + bases)
            base += len(item.offsets) - 1
            bases += len(item.bases)
        self._offsets = np.concatenate(offsets)
        self._bases = np.concatenate([self._bases, *(item.bases for item in added)])
        leads = np.concatenate([self._leads[kept], *(item.leads for item in added)])
        tails = np.concatenate([self._tails[kept], *(item.tails for item in added)])
        order = np.argsort(leads, kind="stable")
        self._leads, self._tails = leads[order], tails[order]
        ties = np.flatnonzero(self._leads[1:] == self._leads[:-1])
        if np.any(self._tails[ties] != self._tails[ties + 1]):
            order = np.lexsort((tails, leads))
            self._leads, self._tails = leads[order], tails[order]
        del leads, tails
        numbers = [np.full(len(item.leads), item.number, np.uint32) for item in added]
        self.packs = np.concatenate([self.packs[kept], *numbers])[order]
        self.sizes = np.concatenate([self.sizes[kept], *(item.sizes for item in added)])[order]
        self._ranks = np.concatenate([self._ranks[kept], *(item.ranks for item in added)])[order]
        fresh = np.zeros(sum(len(item.leads) for item in added), np.uint8)
        self._flags = np.concatenate([self._flags[kept], fresh])[order]
        self._lists = np.concatenate(lists)[order]
        new = np.ones(len(order), np.bool_)
        new[1:] = (self._leads[1:] != self._leads[:-1]) | (self._tails[1:] != self._tails[:-1])
        self._firsts = np.flatnonzero(new)
        self.objects = (np.cumsum(new) - 1).astype(np.uint32)
        self.live = np.zeros(len(self._firsts), np.bool_)
        self.live[self.objects[(self._flags & _LIVE) != 0]] = True

    def __len__(self) -> int:
        return len(self._leads)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The first two words of each object's id, by object."""
        return np.stack([self._leads[self._firsts], self._tails[self._firsts]], axis=1)

    def find(self, keys: NDArray[np.uint64]) -> Positions:
        """Return the objects with these keys; -1 for those of which there is no frame at all."""
        found = np.full(len(keys), -1, np.int64)
        if not len(self._leads) or not len(keys):
            return found
        rows = np.searchsorted(self._leads, keys[:, 0])
        open_ = np.flatnonzero(rows < len(self._leads))
        while open_.size:
            open_ = open_[self._leads[rows[open_]] == keys[open_, 0]]
            same = self._tails[rows[open_]] == keys[open_, 1]
            found[open_[same]] = self.objects[rows[open_[same]]]
            # Another id with the same first word.
            open_ = open_[~same]
            following = self.objects[rows[open_]].astype(np.int64) + 1
            more = following < len(self._firsts)
            open_ = open_[more]
            rows[open_] = self._firsts[following[more]]
        return found

    def mark(self, ids: bytes) -> NDArray[np.bool_]:
        """Need these joined ids; say of each whether there is a frame of it in any listed pack."""
        found = self.find(id_keys(ids))
        there: Mask = found >= 0
        self.live[found[there]] = True
        return there

    def condemn(self, rows: Positions) -> None:
        """Do not count frames that failed to decode."""
        self._flags[rows] |= _BAD

    def prove(self, rows: Positions) -> None:
        """Note frames that were read and decoded."""
        self._flags[rows] |= _PROVED

    def proved(self) -> Mask:
        """Say of each row whether its frame was read and decoded."""
        found: Mask = (self._flags & _PROVED) != 0
        return found

    def are_plain(self) -> Mask:
        """Say of each row whether its frame decodes alone."""
        found: Mask = self._ranks == 0
        return found

    def decodes(self, usable: Mask, *, also: Mask | None = None) -> Mask:
        """Say of each row whether it counts as a copy (invariant 7), if only `usable` packs, by number, exist.

        Rows that are `also` there count, too, whatever pack they are in.
        """
        there: Mask = usable[self.packs] & ((self._flags & _BAD) == 0)
        if also is not None:
            there |= also
        counts: Mask = there & (self._ranks == 0)
        if not np.any(self._lists):
            return counts
        best = np.full(len(self._firsts), _NO_RANK, np.uint8)
        best[self.objects[counts]] = 0
        base_objects = self.find(self._bases)
        for rank in range(1, MAX_RANK + 1):
            rows = np.flatnonzero(there & (self._ranks == rank) & (self._lists > 0))
            if not rows.size:
                continue
            lists = self._lists[rows].astype(np.int64)
            positions, ends = expand(self._offsets[lists - 1], self._offsets[lists])
            bases = base_objects[positions]
            below = (bases >= 0) & (best[bases] < rank)
            sums = np.concatenate([[0], np.cumsum(below)])
            whole = np.diff(sums[np.concatenate([[0], ends])]) == np.diff(np.concatenate([[0], ends]))
            good = rows[whole]
            counts[good] = True
            np.minimum.at(best, self.objects[good], np.uint8(rank))
        return counts

    def covered(self, rows: Mask) -> Mask:
        """Say of each object whether one of these rows is of it."""
        found = np.zeros(len(self._firsts), np.bool_)
        found[self.objects[rows]] = True
        return found

    def keepers(self, counts: Mask, weights: NDArray[np.float64]) -> Positions:
        """Choose for each live object, and for each base that the chosen deltas need, one row among `counts`.

        The lowest rank first, then the pack of the largest weight, by number.
        """
        best = np.full(len(self._firsts), -1, np.int64)
        rows = np.flatnonzero(counts)
        best[self.objects[rows]] = rows
        copies = np.bincount(self.objects[rows], minlength=len(self._firsts))
        several = rows[copies[self.objects[rows]] > 1]
        order = np.lexsort((-weights[self.packs[several]], self._ranks[several], self.objects[several]))
        # Written in this order, the first choice last.
        several = several[order][::-1]
        best[self.objects[several]] = several
        wanted = self.live.copy()
        for _ in range(MAX_RANK):
            chosen = best[wanted]
            more = self._bases_of(chosen[chosen >= 0])
            if not more.size or wanted[more].all():
                break
            wanted[more] = True
        chosen = best[wanted]
        return chosen[chosen >= 0]

    def _bases_of(self, rows: Positions) -> Positions:
        lists = self._lists[rows].astype(np.int64)
        lists = lists[lists > 0]
        positions, _ = expand(self._offsets[lists - 1], self._offsets[lists])
        found = self.find(self._bases[positions])
        return found[found >= 0]

    def with_bases(self, objects: Positions, rows: Positions) -> Positions:
        """Return these objects with the bases, and bases of bases, of their frames; `rows` has the row of each object, or -1."""
        if not np.any(self._lists):
            return objects
        level = objects
        while level.size:
            chosen = rows[level]
            level = np.setdiff1d(self._bases_of(chosen[chosen >= 0]), objects)
            objects = np.union1d(objects, level)
        return objects

    def release(self, objects: Positions) -> None:
        """Do not need these objects any more; whoever marked them must know that nothing else does."""
        self.live[objects] = False

    def bases_of(self, objects: Mask, usable: Mask | None = None) -> Mask:
        """Return the bases, and bases of bases, of all frames of these objects, or those in `usable` packs."""
        found = np.zeros(len(self._firsts), np.bool_)
        deltas = self._ranks > 0
        if usable is not None:
            deltas &= usable[self.packs]
        if not deltas.any():
            return found
        level = objects
        for _ in range(MAX_RANK):
            more = self._bases_of(np.flatnonzero(deltas & level[self.objects]))
            level = np.zeros(len(self._firsts), np.bool_)
            level[more] = True
            level &= ~found
            if not level.any():
                break
            found |= level
        return found

    def rows_of(self, objects: Mask, *, among: Mask) -> Positions:
        """Return the rows of these objects that are `among` those, of each object the one of lowest rank."""
        rows = np.flatnonzero(objects[self.objects] & among)
        rows = rows[np.lexsort((self._ranks[rows], self.objects[rows]))]
        first = np.ones(len(rows), np.bool_)
        first[1:] = self.objects[rows][1:] != self.objects[rows][:-1]
        return rows[first]

    def ranks(self, rows: Positions) -> NDArray[np.uint8]:
        """Return the ranks of these rows."""
        return self._ranks[rows]

    def row_keys(self, rows: Positions) -> NDArray[np.uint64]:
        """Return the first two words of the ids of these rows."""
        return np.stack([self._leads[rows], self._tails[rows]], axis=1)
