"""Looks up objects: in index segments first, then, when needed, in the footers of packs that no segment covers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.errors import BackendError, IntegrityError, MissingObject
from casstore.format.rows import ROW, BaseLists, id_words, word_ids
from casstore.objects.index.loading import LoadedSegments
from casstore.objects.index.located import NOT_FOUND, Located
from casstore.objects.index.segment import FEW_IDS
from casstore.objects.index.upkeep import Upkeep
from casstore.objects.keys import INDEX_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from casstore.backend.base import Backend
    from casstore.format.pack import Footer
    from casstore.format.rows import Rows
    from casstore.objects.index.segment import Segment

_NO_RANK = 255
_SHOWN = 3

_WAY_BACK = "Add the model again, copy it from a store that has it, or run `casstore repair`, which looks for other copies."


class Index(LoadedSegments):
    """Everything known about where objects lie in one store; safe in threads."""

    def __init__(self, backend: Backend, *, copies: str | None = None) -> None:
        """`copies` is the directory in which segments of a remote store are kept, None for none."""
        super().__init__(backend, copies=copies)
        self._upkeep = Upkeep(self)

    def pack_id(self, number: int) -> bytes:
        """Return the pack that a located row's number means."""
        return self.packs.id_of(number)

    def number_of(self, pack_id: bytes) -> int:
        """Return the number that stands for a pack in located rows."""
        return int(self.packs.numbers_of([pack_id])[0])

    # ---- looking up

    def locate_all(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find every object; raise MissingObject for one that no pack holds.

        Looks in packs that hints named, then in the segments that the store has now, and last in packs that no
        segment covers; a damaged segment may have hidden what it names.
        """
        located = self.locate_hinted(ids)
        if located.found.all():
            return located
        self.refresh()
        located = self.locate(ids)
        while not located.found.all():
            missing = ids_at(ids, np.flatnonzero(~located.found).tolist())
            if not (self.recheck(missing) or self.read_uncovered()):
                raise MissingObject(f"No pack holds {_listed(missing)}. {_WAY_BACK}")
            located = self.locate(ids)
        return located

    def locate_hinted(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find the frames of objects as `locate` does, but only in the packs that `read_hinted` read, if there are any."""
        with self.lock:
            hinted = bool(self.hinted) and not self.loaded and not self.packs.avoided
        return self._locate(ids, usable=None, load=False) if hinted else self.locate(ids)

    def locate(self, ids: Sequence[bytes] | bytes, *, usable: Callable[[int], bool] | None = None) -> Located:
        """Find the frames of objects, of several the one of lowest rank; no pack is opened.

        `usable` judges packs by their number. Without it, packs that are to be avoided are used only for objects that no
        other pack holds.
        """
        if usable is not None or not self.packs.avoided:
            return self._locate(ids, usable=usable)
        located = self._locate(ids, usable=lambda n: n not in self.packs.avoided and n not in self.packs.gone)
        missing = np.flatnonzero(~located.found).tolist()
        if not missing:
            return located
        return located.replaced(missing, self._locate(ids_at(ids, missing), usable=None))

    def lacks(self, ids: Sequence[bytes]) -> bool:
        """Say whether none of a few ids is in any segment; False says nothing. Much faster than `locate` where all are new."""
        if len(ids) > FEW_IDS:
            return False
        with self.lock:
            segments = list(self.segments.values()) if self.loaded else None
        # Invariant 5: what is said of a damaged segment is decided by `locate`, which sets it aside.
        with contextlib.suppress(IntegrityError, BackendError):
            return segments is not None and all(segment.lacks(ids) for segment in segments if len(segment))
        return False

    def _locate(
        self, ids: Sequence[bytes] | bytes, *, usable: Callable[[int], bool] | None, load: bool = True
    ) -> Located:
        words = id_words(ids)
        while True:
            with self.lock:
                if load and not self.loaded:
                    self.refresh()
                # Most objects are found in the largest, and then the others are not asked.
                segments = sorted(self.segments.values(), key=len, reverse=True)
            located = self._look_up(words, segments, usable)
            if located is not None:
                return located

    def _look_up(
        self, words: NDArray[np.uint64], segments: Sequence[Segment], usable: Callable[[int], bool] | None
    ) -> Located | None:
        """Return what `segments` say, or None if one of them had to be set aside."""
        rows = np.zeros(len(words), ROW)
        rows["pack"] = NOT_FOUND
        sources = np.zeros(len(words), np.int32)
        ranks = np.full(len(words), _NO_RANK, np.uint8)
        lists = [BaseLists.empty()] * len(segments)
        open_ = np.arange(len(words))
        few = word_ids(words) if len(words) <= FEW_IDS else None
        for source, segment in enumerate(segments):
            if not open_.size or not len(segment):
                continue
            try:
                if few is not None and segment.lacks(few):
                    continue
                queries, found = segment.matches(words[open_])
                if not queries.size:
                    continue
                queries = open_[queries]
                numbers = segment.numbers[found["pack"]]
                good = (found["rank"] < ranks[queries]) & self._judge(numbers, usable)
                queries, found, numbers = queries[good], found[good], numbers[good]
                if not queries.size:
                    continue
                found, lists[source] = _with_lists(found, segment)
            except (IntegrityError, BackendError) as error:
                self.set_aside(segment.key, error)
                self.ask_the_packs()
                return None
            # Lowest rank last: where an object has several frames, the last one written here wins.
            order = np.argsort(found["rank"], kind="stable")[::-1]
            queries = queries[order]
            rows[queries] = found[order]
            rows["pack"][queries] = numbers[order]
            sources[queries] = source
            ranks[queries] = found["rank"][order]
            # Whatever was found that decodes alone stays; for the rest, another segment may have something better.
            open_ = np.flatnonzero(ranks)
        return Located(rows, sources, tuple(lists))

    def _judge(self, numbers: NDArray[np.uint32], usable: Callable[[int], bool] | None) -> NDArray[np.bool_]:
        if usable is None and not self.packs.gone:
            return np.ones(len(numbers), np.bool_)
        gone = self.packs.gone
        answers = {
            number: number not in gone if usable is None else usable(number)
            for number in set(numbers.tolist())
        }
        return np.array([answers[number] for number in numbers.tolist()], np.bool_)

    def recheck(self, ids: Sequence[bytes] | bytes) -> bool:
        """Verify every bucket that would name these objects, which seem to be absent; say whether a segment was set aside.

        If so, they may be found now.
        """
        words = id_words(ids)
        with self.lock:
            segments = list(self.segments.values())
            return self.sort_out(segments, lambda segment: segment.check(segment.head.bucket_of(words)))

    def all_rows(self) -> Iterator[Rows]:
        """Yield the rows of every segment and of every pack that none covers, those of each pack once."""
        self.refresh()
        while self.read_uncovered():
            pass  # A damaged pack is raised only once nothing else is left to read.
        for segment, new in self._each_pack_once():
            for rows in segment.batches():
                yield rows if new.all() else rows[new[rows["pack"]]]

    def frames_of(self, packs: Sequence[bytes]) -> Iterator[tuple[Rows, BaseLists]]:
        """Yield the rows of those of these packs that segments cover, each pack's once; no pack is opened.

        The `pack` of a row is the position among `packs`; its `bases` mean the lists beside it.
        """
        self.refresh()
        numbers = self.packs.numbers_of(packs)
        places = np.full(len(self.packs), len(packs), np.uint32)
        places[numbers] = np.arange(len(packs))
        for segment, new in self._each_pack_once():
            # Another thread may have learned of packs since: none of them was asked for.
            later = np.full(len(self.packs) - len(places), len(packs), np.uint32)
            places = np.append(places, later)
            place = np.where(new, places[segment.numbers], len(packs))
            if (place == len(packs)).all():
                continue
            for batch in segment.batches():
                rows = batch[place[batch["pack"]] < len(packs)]
                rows["pack"] = place[rows["pack"]]
                yield _with_lists(rows, segment)

    def _each_pack_once(self) -> Iterator[tuple[Segment, NDArray[np.bool_]]]:
        """Yield the segments, largest first, and which of their packs are in none before; damaged ones are set aside."""
        done: set[str] = set()
        yielded = np.zeros(0, np.bool_)
        while True:
            with self.lock:
                left = [segment for key, segment in self.segments.items() if key not in done]
            if not left:
                return
            segment = max(left, key=len)
            done.add(segment.key)
            if self.sort_out([segment]):
                continue
            yielded = np.append(yielded, np.zeros(len(self.packs) - len(yielded), np.bool_))
            new = ~yielded[segment.numbers]
            yielded[segment.numbers] = True
            if new.any():
                yield segment, new

    def is_avoided(self, number: int) -> bool:
        """Say whether damage was found in a pack (`avoid_pack`)."""
        return number in self.packs.avoided

    def avoid_pack(self, number: int) -> bool:
        """Prefer any other copy of what a damaged pack holds; say whether that is new."""
        with self.lock:
            new = number not in self.packs.avoided
            self.packs.avoided.add(number)
            return new

    # ---- writing

    def publish(
        self, packs: Sequence[tuple[bytes, Footer]], *, after: Callable[[], object] | None = None
    ) -> None:
        """Write one durable segment over new packs (invariant 3), and use it from now on.

        `after` waits until the packs are durable: it is called before the segment gets its name.
        """
        self._upkeep.publish(packs, after=after)

    def uncovered(self, packs: Sequence[bytes], *, without: Collection[str] = ()) -> list[bytes]:
        """Return those of these packs that no segment of the store covers, leaving out segments `without`."""
        self.refresh()
        with self.lock:
            numbers = self.packs.numbers_of(packs)
            covered = self.covered_packs(
                segment
                for key, segment in self.segments.items()
                if key.startswith(INDEX_PREFIX) and key not in without
            )
        return [pack for pack, there in zip(packs, covered[numbers].tolist(), strict=True) if not there]

    def replace(self, damaged: Mapping[str, IntegrityError], packs: Sequence[tuple[bytes, Footer]]) -> None:
        """Remove `damaged` segments, and publish segments over packs: all that these cover and that can be read."""
        self._upkeep.replace(damaged, packs)

    def merge(self) -> None:
        """Join small segments when there are many, so that look-ups stay cheap."""
        self._upkeep.merge()

    def retire(self, packs: Sequence[bytes]) -> None:
        """Replace segments that list packs which were deleted by ones without them."""
        self._upkeep.retire(packs)

    def keep_house(self) -> None:
        """Merge segments to keep look-ups cheap; never fails (invariant 13)."""
        self._upkeep.keep_house()


def _with_lists(found: Rows, segment: Segment) -> tuple[Rows, BaseLists]:
    """Return found rows, and the base lists that they refer to, renumbered."""
    some = np.flatnonzero(found["bases"])
    if not some.size:
        return found, BaseLists.empty()
    lists = segment.lists.take(found["bases"][some].astype(np.int64) - 1)
    found = found.copy()
    found["bases"][some] = np.arange(1, len(some) + 1)
    return found, lists


def _listed(missing: Sequence[bytes]) -> str:
    """Return which objects are missing, the first few by name."""
    if len(missing) == 1:
        return f"the object {missing[0].hex()}"
    some = ", ".join(object_id.hex() for object_id in missing[:_SHOWN])
    return f"{len(missing)} objects, {some}{', …' if len(missing) > _SHOWN else ''}"


def ids_at(ids: Sequence[bytes] | bytes, positions: Sequence[int]) -> list[bytes]:
    """Return the ids at these positions of `ids`, a sequence or joined."""
    if not isinstance(ids, bytes):
        return [ids[at] for at in positions]
    return [ids[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE] for at in positions]
