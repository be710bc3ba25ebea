"""Every frame of every listed pack, as columns of numpy: which objects are needed, and which copies count.

Ids are held as their first 128 bits, which nobody can make collide. A frame takes 39 bytes here, no Python object. What is
computed over all rows goes by blocks, so that ten million frames take less than a gigabyte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.format.rows import MAX_RANK, expand

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Positions = NDArray[np.int64]

_NO_RANK = 255
_LIVE, _BAD, _PROVED = np.uint8(1), np.uint8(2), np.uint8(4)
_BLOCK = 1 << 20
_LIST_BYTES = 4  # of a pack's footer for each list, beside the ids in it


@dataclass(frozen=True, slots=True)
class PackColumns:
    """Frames: the number of their pack or packs, both words of each id, bytes in the pack, rank, and base lists.

    `lists` is 0 for no bases, else 1 and the number of a list; list k is `bases[offsets[k]:offsets[k + 1]]`, each base
    its two words.
    """

    number: int | NDArray[np.uint32]
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
        self._firsts = np.zeros(0, np.uint32)
        self._missed = np.zeros((0, 2), np.uint64)
        """Both words of the ids of needed objects that are in no pack any more."""
        self.live: Mask = np.zeros(0, np.bool_)
        """By object: whether something needs it."""

    def replace(self, added: list[PackColumns], gone: frozenset[int]) -> None:
        """Add the frames of new packs, and drop those of packs that are gone. Takes over the list, and empties it."""
        if not added and not gone:
            return
        self._flags = np.where(self.live[self.objects], self._flags | _LIVE, self._flags & ~_LIVE)
        kept: Any = slice(None)
        if gone:
            kept = ~np.isin(self.packs, np.fromiter(gone, np.uint32, len(gone)))
            self._missed = np.concatenate([self._missed, self._needed_keys(~kept)])
        counts = [len(item.leads) for item in added]
        parts = self._parts(added)
        added.clear()
        order = self._sort_ids(kept, parts)
        # One column after the other, so that none is in memory twice for longer than it must be.
        self.packs = np.concatenate([self.packs[kept], *parts.pop("packs")])[order]
        self.sizes = np.concatenate([self.sizes[kept], *parts.pop("sizes")])[order]
        self._ranks = np.concatenate([self._ranks[kept], *parts.pop("ranks")])[order]
        self._lists = np.concatenate([self._lists[kept], *parts.pop("lists")])[order]
        self._flags = np.concatenate([self._flags[kept], np.zeros(sum(counts), np.uint8)])[order]
        del order
        new = np.ones(len(self._leads), np.bool_)
        new[1:] = (self._leads[1:] != self._leads[:-1]) | (self._tails[1:] != self._tails[:-1])
        self._firsts = np.flatnonzero(new).astype(np.uint32)
        self.objects = np.cumsum(new, dtype=np.uint32)
        self.objects -= np.uint32(1)
        self.live = np.zeros(len(self._firsts), np.bool_)
        self.live[self.objects[(self._flags & _LIVE) != 0]] = True
        if len(self._missed):
            # Another collector copies what is needed to a new pack, and deletes the old one: it is needed there as well.
            found = self.find(self._missed)
            self.live[found[found >= 0]] = True
            self._missed = self._missed[found < 0]

    def _needed_keys(self, rows: Mask) -> NDArray[np.uint64]:
        """Return both words of the ids of the objects of these rows that are needed."""
        first = self._firsts[np.unique(self.objects[rows & self.live[self.objects]])]
        return np.stack([self._leads[first], self._tails[first]], axis=1)

    def _parts(self, added: list[PackColumns]) -> dict[str, list[Any]]:
        """Return new columns by name, with their base lists appended to those that are here."""
        lists, offsets = [], [self._offsets]
        base, bases = len(self._offsets) - 1, len(self._bases)
        for item in added:
            lists.append(np.where(item.lists > 0, item.lists + np.uint32(base), np.uint32(0)))
            offsets.append(item.offsets[1:] + bases)
            base += len(item.offsets) - 1
            bases += len(item.bases)
        self._offsets = np.concatenate(offsets)
        self._bases = np.concatenate([self._bases, *(item.bases for item in added)])
        return {
            "leads": [item.leads for item in added],
            "tails": [item.tails for item in added],
            "packs": [np.broadcast_to(np.asarray(item.number, np.uint32), len(item.leads)) for item in added],
            "sizes": [item.sizes for item in added],
            "ranks": [item.ranks for item in added],
            "lists": lists,
        }

    def _sort_ids(self, kept: Any, parts: dict[str, list[Any]]) -> Positions:
        """Merge the two columns of ids; return the order that sorts all others alike."""
        leads = np.concatenate([self._leads[kept], *parts.pop("leads")])
        order = np.argsort(leads, kind="stable")
        self._leads = leads[order]
        tails = np.concatenate([self._tails[kept], *parts.pop("tails")])
        self._tails = tails[order]
        ties = np.flatnonzero(self._leads[1:] == self._leads[:-1])
        if np.any(self._tails[ties] != self._tails[ties + 1]):
            order = np.lexsort((tails, leads))
            self._leads, self._tails = leads[order], tails[order]
        return order

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
        # In their order, neighbours are found in the same part of memory, which makes it ten times as fast.
        order = np.argsort(keys[:, 0])
        rows = np.empty(len(keys), np.int64)
        rows[order] = np.searchsorted(self._leads, keys[order, 0])
        open_ = np.flatnonzero(rows < len(self._leads))
        while open_.size:
            open_ = open_[self._leads[rows[open_]] == keys[open_, 0]]
            same = self._tails[rows[open_]] == keys[open_, 1]
            found[open_[same]] = self.objects[rows[open_[same]]]
            # Another id with the same first word.
            open_ = open_[~same]
            following = self.objects[rows[open_]] + np.uint32(1)
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

    def need(self, objects: Positions | NDArray[np.int32]) -> None:
        """Need these objects."""
        self.live[objects] = True

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
        deltas = there & (self._lists > 0)
        for rank in np.unique(self._ranks[deltas]).tolist():
            rows = np.flatnonzero(deltas & (self._ranks == rank))
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

    def covered(self, rows: Mask | Positions) -> Mask:
        """Say of each object whether one of these rows is of it."""
        found = np.zeros(len(self._firsts), np.bool_)
        found[self.objects[rows]] = True
        return found

    def bytes_by_pack(self, rows: Mask | Positions, packs: int) -> NDArray[np.float64]:
        """Return the bytes of these rows' frames by the number of their pack; there are so many numbers."""
        # 53 bits are exact for any pack.
        found = np.zeros(packs, np.float64)
        for begin in range(0, len(rows), _BLOCK):
            part: Any = rows[begin : begin + _BLOCK]
            block = np.flatnonzero(part) + begin if rows.dtype == np.bool_ else part
            found += np.bincount(self.packs[block], weights=self.sizes[block], minlength=packs)
        return found

    def choices(self, counts: Mask, weights: NDArray[np.float64]) -> Positions:
        """Choose for each object one row among `counts`; -1 where there is none.

        The lowest rank first, then the pack of the largest weight, by number.
        """
        best = np.full(len(self._firsts), -1, np.int64)
        rows = np.flatnonzero(counts)
        best[self.objects[rows]] = rows
        # Rows are sorted by object.
        same = self.objects[rows[1:]] == self.objects[rows[:-1]]
        if same.any():
            several = rows[np.append(same, False) | np.append(False, same)]
            order = np.lexsort((-weights[self.packs[several]], self._ranks[several], self.objects[several]))
            # Written in this order, the first choice last.
            several = several[order][::-1]
            best[self.objects[several]] = several
        return best

    def keepers(self, counts: Mask, weights: NDArray[np.float64]) -> Positions:
        """Choose so for each live object, and for each base that the chosen deltas need; return the rows."""
        best = self.choices(counts, weights)
        wanted = self.live
        for _ in range(MAX_RANK if self._bases.size else 0):
            chosen = best[wanted]
            more = self._bases_of(chosen[chosen >= 0])
            if not more.size or wanted[more].all():
                break
            wanted = wanted.copy()
            wanted[more] = True
        chosen = best[wanted]
        return chosen[chosen >= 0]

    def _bases_of(self, rows: Positions) -> Positions:
        lists = self._lists[rows]
        lists = lists[lists > 0].astype(np.int64)
        positions, _ = expand(self._offsets[lists - 1], self._offsets[lists])
        found = self.find(self._bases[positions])
        return found[found >= 0]

    def bytes_of_lists(self, rows: Positions) -> int:
        """Return the bytes that the base lists of these rows take in a pack, at most: equal ones are stored once."""
        lists = self._lists[rows]
        lists = lists[lists > 0].astype(np.int64)
        counts = self._offsets[lists] - self._offsets[lists - 1]
        return int((counts * DIGEST_SIZE + _LIST_BYTES).sum(dtype=np.int64))

    def bytes_of_bases(self, rows: Positions) -> int:
        """Return the bytes of a frame of each base of each of these rows, and of what those rest on themselves."""
        total = 0
        for _ in range(MAX_RANK):
            frames = self._firsts[self._bases_of(rows)].astype(np.int64)
            total += int(self.sizes[frames].sum(dtype=np.int64))
            rows = np.unique(frames[self.are_deltas(frames)])
            if not rows.size:
                break
        return total

    def with_bases(self, objects: Positions | NDArray[np.int32], rows: Positions) -> Positions:
        """Return these objects, ascending, and the bases that they need if `rows`, by object, are the frames that count."""
        found: Positions = objects.astype(np.int64)
        for _ in range(MAX_RANK if self._bases.size else 0):
            chosen = rows[found]
            more = np.union1d(found, self._bases_of(chosen[chosen >= 0]))
            if len(more) == len(found):
                break
            found = more
        return found

    def are_deltas(self, rows: Positions) -> Mask:
        """Say of each of these frames whether it rests on others."""
        found: Mask = self._lists[rows] > 0
        return found

    def release(self, objects: Positions) -> None:
        """Do not need these objects any more; whoever marked them must know that nothing else does."""
        self.live[objects] = False

    def bases_of(self, objects: Mask, usable: Mask | None = None, *, also: Mask | None = None) -> Mask:
        """Return the bases, and bases of bases, of all frames of these objects, or those in `usable` packs.

        Rows that are `also` there count, too, whatever pack they are in.
        """
        found = np.zeros(len(self._firsts), np.bool_)
        deltas = self._ranks > 0
        if usable is not None:
            deltas &= usable[self.packs] if also is None else usable[self.packs] | also
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
