"""Looks up objects: in index segments first, then, when needed, in the footers of packs that no segment covers.

Segments are hints (invariant 5): a row whose pack is gone means nothing, and an object that no row names may still
be in a pack.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.backend.round_trips import ask_all, ask_each, is_far
from casstore.concurrency.forks import ForkAware, watch_forks
from casstore.digest import DIGEST_SIZE
from casstore.errors import (
    BackendError,
    FormatError,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    UnsupportedVersion,
)
from casstore.format.rows import ROW, BaseLists, id_words
from casstore.objects.footers import FOOTER_GUESS, join_footers, read_footer
from casstore.objects.index.merging import MAX_SEGMENTS, choose_parts, superfluous, write_merged
from casstore.objects.index.pack_table import PackTable
from casstore.objects.index.segment import Segment
from casstore.objects.index.segment_cache import SegmentCache
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX, index_key, is_foreign, pack_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from casstore.backend.base import Backend, Entry
    from casstore.format.pack import Footer
    from casstore.format.rows import Rows

NOT_FOUND = np.uint32(0xFFFFFFFF)
"""In the `pack` field of a located row: no usable frame of this object is known."""

_log = logging.getLogger("casstore")

_REQUEST = 64 << 10  # what a request costs, in bytes that would arrive meanwhile
_NO_RANK = 255
_FOOTERS = "footers/"  # keys of segments that only this process has; no store has such a key
_JOINED_ROWS = 1 << 18
_JOINED_PACKS = 1024
_LISTINGS = 5
_STALE = 0.1  # share of a segment's packs that are gone from which it is written again


@dataclass(frozen=True, slots=True)
class Located:
    """Where objects lie: one row for each id asked for, in order.

    `rows["pack"]` is a number for `Index.pack_id`, or NOT_FOUND; `lists[sources[i]]` are the base lists
    that the `bases` field of row i means.
    """

    rows: Rows
    sources: NDArray[np.int32]
    lists: tuple[BaseLists, ...]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which of the ids have a frame."""
        mask: NDArray[np.bool_] = self.rows["pack"] != NOT_FOUND
        return mask

    def bases(self, at: int) -> tuple[bytes, ...]:
        """Return the base ids of row `at`."""
        number = int(self.rows["bases"][at])
        return self.lists[self.sources[at]].get(number) if number else ()


class Index(ForkAware):
    """Everything known about where objects lie in one store; safe in threads.

    A segment that cannot be read or proves damaged is set aside with a warning, and the footers of
    the packs that no other segment covers answer instead (invariant 13).
    """

    def __init__(self, backend: Backend, *, copies: str | None = None) -> None:
        """`copies` is the directory in which segments of a remote store are kept, None for none."""
        self._backend = backend
        self._cache = SegmentCache(backend, copies)
        self._lock = threading.RLock()
        self._segments: dict[str, Segment] = {}
        self._packs = PackTable()
        self._aside: dict[str, Exception] = {}
        self._loaded = False
        self._hinted: set[bytes] = set()
        self._fetching_costs: int | None = None
        self._joined = itertools.count()
        self._busy_from = 0
        watch_forks(self)

    def pack_id(self, number: int) -> bytes:
        """Return the pack that a located row's number means."""
        return self._packs.id_of(number)

    def number_of(self, pack_id: bytes) -> int:
        """Return the number that stands for a pack in located rows."""
        return int(self._packs.numbers_of([pack_id])[0])

    def pack_size(self, number: int) -> int | None:
        """Return the exact size in bytes that a pack must have, by its number; a pack of another size is damaged.

        None for a pack that no segment covers and whose footer was not read, or about which they disagree and
        whose footer cannot be read.
        """
        if self._packs.is_disputed(number):
            # Invariant 13: a hint is damaged, so the pack itself is asked.
            footer = self._footer_of(self._packs.id_of(number))
            if footer is not None:
                self._packs.note_footer(number, footer)
        return self._packs.size_of(number)

    @property
    def pack_count(self) -> int:
        """How many packs are known; the store may hold others."""
        return len(self._packs)

    # ---- loading

    def learn(self, packs: Sequence[bytes]) -> None:
        """Read the footers of packs, if those cost less than the segments that were never fetched.

        For a store that is a network away, and the packs that a record names (design §6). The names are hints:
        a pack that is gone or damaged is left out, and what is in none of them the segments answer.
        """
        with self._lock:
            fresh = [pack for pack in packs if pack not in self._hinted]
            if self._loaded or not fresh or not is_far(self._backend):
                return
            listed: dict[str, int] | None = None
            if self._fetching_costs is None:
                listed = self._listed()
                self._fetching_costs = self._cache.cost_of(listed, request=_REQUEST)
            # Footers of earlier calls count, too: for many records the segments are cheaper.
            if (len(self._hinted) + len(fresh)) * (2 * _REQUEST + FOOTER_GUESS) >= self._fetching_costs:
                self._load(listed)
                return
            footers = zip(fresh, ask_all(self._footer_of, fresh), strict=True)
            self._keep_footers([(pack, footer) for pack, footer in footers if footer is not None])
            self._hinted.update(fresh)

    def _footer_of(self, pack: bytes) -> Footer | None:
        try:
            return read_footer(self._backend, pack)
        except (ObjectNotFound, FormatError):
            return None  # Invariant 5: this is only a hint; a read that needs the pack looks further and raises the error.

    def _listed(self) -> dict[str, int]:
        return {
            entry.key: entry.size for entry in self._backend.list(INDEX_PREFIX) if not is_foreign(entry.key)
        }

    def refresh(self) -> None:
        """Load segments that are new in the store, drop those that are gone."""
        self._load(None)

    def _load(self, listed: Mapping[str, int] | None) -> None:
        """Refresh; `listed` are the store's segments, if the caller has just listed them."""
        with self._lock:
            aside = len(self._aside)
            for _ in range(_LISTINGS):
                listed = self._listed() if listed is None else listed
                known = self._segments.keys() | self._aside.keys()
                fresh = {key: size for key, size in listed.items() if key not in known}
                if not self._open(fresh):
                    break
                # A segment was merged away while we read; the next listing names its successor. Where that happens
                # again and again, the packs answer (invariant 13).
                listed = None
            listed = listed if listed is not None else self._listed()
            for key in self._segments.keys() - listed.keys():
                if key.startswith(INDEX_PREFIX) or self._is_covered(
                    key, by=self._segments.keys() & listed.keys()
                ):
                    del self._segments[key]
            if fresh:
                self._cache.prune(listed)
            self._loaded = True
            if len(self._aside) > aside:
                self._ask_the_packs()

    def _open(self, sizes: Mapping[str, int]) -> bool:
        """Load these segments of the store; say whether one of them is gone."""
        segments, failed = self._cache.open_all(sizes)
        for segment in segments:
            self._keep(segment)
        gone = False
        for key, error in failed.items():
            if isinstance(error, ObjectNotFound):
                gone = True
            else:
                self._set_aside(key, error)
        return gone

    def _is_covered(self, key: str, *, by: Iterable[str]) -> bool:
        """Say whether segments cover all packs whose footers were read directly."""
        covered = self._covered_packs(self._segments[other] for other in by)
        return bool(covered[self._segments[key].numbers].all())

    def _covered_packs(self, segments: Iterable[Segment]) -> NDArray[np.bool_]:
        """Say of each pack, by number, whether one of `segments` covers it."""
        covered = np.zeros(len(self._packs), np.bool_)
        for segment in segments:
            covered[segment.numbers] = True
        return covered

    def _keep(self, segment: Segment) -> None:
        segment.numbers = self._packs.numbers_of(segment.head.packs)
        self._packs.note_sizes(segment.numbers, segment.head.sizes)
        self._segments[segment.key] = segment

    def _keep_footers(self, packs: Sequence[tuple[bytes, Footer]]) -> None:
        """Join the footers of packs that no segment covers into one segment in memory, since look-ups ask every segment."""
        if packs:
            data = join_footers(packs)
            self._keep(Segment(f"{_FOOTERS}{next(self._joined)}", memoryview(data), None))

    # ---- looking up

    def glance(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find the frames of objects as `locate` does, but only in the packs that `learn` read, if there are any."""
        with self._lock:
            hinted = bool(self._hinted) and not self._loaded and not self._packs.avoided
        return self._locate(ids, usable=None, load=False) if hinted else self.locate(ids)

    def locate(self, ids: Sequence[bytes] | bytes, *, usable: Callable[[int], bool] | None = None) -> Located:
        """Find the frames of objects, of several the one of lowest rank; no pack is opened.

        `usable` judges packs by their number. Without it, packs that are to be avoided are used only for objects that no
        other pack holds.
        """
        if usable is not None or not self._packs.avoided:
            return self._locate(ids, usable=usable)
        located = self._locate(
            ids, usable=lambda n: n not in self._packs.avoided and n not in self._packs.gone
        )
        missing = np.flatnonzero(~located.found)
        if not missing.size:
            return located
        joined = ids if isinstance(ids, bytes) else b"".join(ids)
        left = b"".join(joined[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE] for at in missing.tolist())
        again = self._locate(left, usable=None)
        located.rows[missing] = again.rows
        located.sources[missing] = again.sources + len(located.lists)
        return Located(located.rows, located.sources, located.lists + again.lists)

    def _locate(
        self, ids: Sequence[bytes] | bytes, *, usable: Callable[[int], bool] | None, load: bool = True
    ) -> Located:
        words = id_words(ids)
        while True:
            with self._lock:
                if load and not self._loaded:
                    self.refresh()
                # Most objects are found in the largest, and then the others are not asked.
                segments = sorted(self._segments.values(), key=len, reverse=True)
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
        for source, segment in enumerate(segments):
            if not open_.size or not len(segment):
                continue
            try:
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
                self._set_aside(segment.key, error)
                self._ask_the_packs()
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
        if usable is None and not self._packs.gone:
            return np.ones(len(numbers), np.bool_)
        gone = self._packs.gone
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
        with self._lock:
            segments = list(self._segments.values())
            return self._sort_out(segments, lambda segment: segment.check(segment.head.bucket_of(words)))

    def all_rows(self) -> Iterator[Rows]:
        """Yield the rows of every segment and of every pack that none covers, those of each pack once."""
        self.refresh()
        while self.read_uncovered():
            pass  # A damaged pack is raised only once nothing else is left to read.
        done: set[str] = set()
        yielded = np.zeros(0, np.bool_)
        while True:
            with self._lock:
                left = [segment for key, segment in self._segments.items() if key not in done]
            if not left:
                return
            segment = max(left, key=len)
            done.add(segment.key)
            if self._sort_out([segment]):
                continue
            yielded = np.append(yielded, np.zeros(len(self._packs) - len(yielded), np.bool_))
            new = ~yielded[segment.numbers]
            yielded[segment.numbers] = True
            for rows in segment.batches() if new.any() else ():
                yield rows if new.all() else rows[new[rows["pack"]]]

    # ---- packs that are gone, damaged, or that no segment covers

    def forget_pack(self, number: int) -> None:
        """Treat a pack that was not there as gone: its rows mean nothing (invariant 5).

        Also lists which other packs are gone and which have come back, so that one surprise updates the whole picture.
        """
        if number not in self._packs.gone:
            self._note_packs(self._backend.list_keys(PACK_PREFIX))
            self._packs.gone.add(number)

    def gone_packs(self) -> frozenset[int]:
        """Return the packs that were absent when last looked for, by number."""
        return frozenset(self._packs.gone)

    def is_avoided(self, number: int) -> bool:
        """Say whether damage was found in a pack (`avoid_pack`)."""
        return number in self._packs.avoided

    def avoid_pack(self, number: int) -> bool:
        """Prefer any other copy of what a damaged pack holds; say whether that is new."""
        with self._lock:
            new = number not in self._packs.avoided
            self._packs.avoided.add(number)
            return new

    def _note_packs(self, keys: Iterable[str]) -> NDArray[np.uint32]:
        """List which packs are there; return their numbers."""
        known = len(self._packs)
        numbers = self._packs.numbers_of([pack_id_of(key) for key in keys if not is_foreign(key)])
        self._packs.note_listing(numbers, known)
        return numbers

    def read_uncovered(self) -> bool:
        """Read the footers of packs that no segment covers; say whether there were any.

        Raises FormatError for a damaged one only once nothing else is left to be read: a caller that looks for an
        object in another pack is not concerned.
        """
        with self._lock:
            gone = self._packs.gone
            entries = [entry for entry in self._backend.list(PACK_PREFIX) if not is_foreign(entry.key)]
            numbers = self._note_packs(entry.key for entry in entries)
            # A pack that has come back counts, too: what it holds is found now.
            found = bool(gone & set(numbers.tolist()))
            covered = self._covered_packs(self._segments.values())
            left = [entries[at] for at in np.flatnonzero(~covered[numbers]).tolist()]
            damage: FormatError | None = None
            pending: list[tuple[bytes, Footer]] = []
            rows = 0
            for start in range(0, len(left), _JOINED_PACKS):
                for answer in ask_each(self._backend, self._try_footer, left[start : start + _JOINED_PACKS]):
                    if isinstance(answer, FormatError):
                        damage = (
                            damage or answer
                        )  # Invariant 8: raised below, unless there is more to look at.
                    elif answer is not None:
                        pending.append(answer)
                        rows += len(answer[1].rows)
                        if rows >= _JOINED_ROWS:
                            self._keep_footers(pending)
                            found, pending, rows = True, [], 0
            self._keep_footers(pending)
            found = found or bool(pending)
            if damage is not None and not found:
                raise damage
            return found

    def _try_footer(self, entry: Entry) -> tuple[bytes, Footer] | FormatError | None:
        pack_id = pack_id_of(entry.key)
        try:
            return pack_id, read_footer(self._backend, pack_id, size=entry.size)
        except ObjectNotFound:
            return None  # Invariant 5: a pack that went since the listing does not exist.
        except FormatError as error:
            return error

    def _set_aside(self, key: str, error: IntegrityError | BackendError) -> None:
        """Stop using a segment in this process; raise `error` if it is about something else."""
        if not key.startswith(INDEX_PREFIX) or (isinstance(error, BackendError) and error.retryable):
            raise error
        with self._lock:
            self._segments.pop(key, None)
            if key in self._aside:
                return
            self._aside[key] = error
        # Invariant 13: only a hint.
        _log.warning("An index segment is damaged; packs are read instead, which is slower: %s", error)

    def _ask_the_packs(self) -> None:
        """Read the footers of what segments that were set aside covered."""
        with contextlib.suppress(FormatError):
            # Invariant 13: a damaged pack is an error for the read that needs it, not here.
            self.read_uncovered()

    # ---- writing

    def publish(self, packs: Sequence[tuple[bytes, Footer]]) -> None:
        """Write one durable segment over new packs (invariant 3), and use it from now on."""
        data = join_footers(packs)
        key = index_key(data)
        with contextlib.suppress(ObjectExists):
            # Invariant 5: its name is its hash, so another writer's file has the same bytes.
            self._backend.put(key, [data])
        with self._lock:
            self._keep(self._cache.opened(data))
            self.keep_house()

    def merge(self) -> None:
        """Join small segments when there are many, so that look-ups stay cheap.

        The merged segment is durable before its parts go; a part that another process deleted first is
        not needed, since segments are hints (invariant 5).
        """
        with self._lock:
            durable = self._durable()
            spare = superfluous(durable)
            parts = choose_parts([segment for segment in durable if segment.key not in spare])
            merged = self._write_merged(parts) if parts else None
            if merged is not None:
                spare |= {segment.key for segment in parts}
            elif len(durable) <= MAX_SEGMENTS:
                return
            # Invariant 5: a larger segment, durable by now, has all rows of these.
            self._delete(spare - {merged})

    def retire(self, packs: Sequence[bytes]) -> None:
        """Replace segments that list packs which were deleted by ones without them.

        One in which they are few is left alone: their rows mean nothing (invariant 5), and are dropped by a merge.
        """
        with self._lock:
            self.refresh()
            # Packs that earlier collections deleted are left out as well.
            self._note_packs(self._backend.list_keys(PACK_PREFIX))
            self._packs.gone.update(self._packs.numbers_of(packs).tolist())
            gone = np.fromiter(self._packs.gone, np.uint32, len(self._packs.gone))
            without = frozenset(map(self._packs.id_of, gone.tolist()))
            empty: set[str] = set()
            parts: list[Segment] = []
            for segment in self._durable():
                share = np.isin(segment.numbers, gone).mean() if len(segment.numbers) else 1.0
                if share == 1.0:
                    empty.add(segment.key)
                elif share >= _STALE:
                    parts.append(segment)
            if parts and (merged := self._write_merged(parts, without=without)) is not None:
                empty |= {segment.key for segment in parts} - {merged}
            # Invariant 5: what these list and is not gone, another segment lists, durable by now.
            self._delete(empty)

    def _durable(self) -> list[Segment]:
        return [segment for key, segment in self._segments.items() if key.startswith(INDEX_PREFIX)]

    def keep_house(self) -> None:
        """Merge segments to keep look-ups cheap; never fails (invariant 13)."""
        with self._lock:
            if len(self._segments) >= self._busy_from:
                self._try_to_keep_house()

    def _try_to_keep_house(self) -> None:
        try:
            self.merge()
            self._replace_damaged()
        except (IntegrityError, BackendError) as error:
            # Invariant 13: the segments stay as they were; look-ups are only slower.
            _log.warning("Index segments could not be merged, so look-ups take longer: %s", error)
            # Not tried again with each of many adds: it may cost as much each time.
            self._busy_from = len(self._segments) + MAX_SEGMENTS

    def _replace_damaged(self) -> None:
        """Write a segment over packs that none covers, and remove damaged segments."""
        if not self._loaded:
            return  # Packs that `learn` read are covered by segments that were never fetched.
        covered = self._covered_packs(self._durable())
        by_hand = [segment for key, segment in self._segments.items() if not key.startswith(INDEX_PREFIX)]
        parts = [segment for segment in by_hand if not covered[segment.numbers].all()]
        if parts and self._write_merged(parts) is None:
            return
        for segment in by_hand:
            del self._segments[segment.key]
        damaged = {key for key, error in self._aside.items() if _is_damage(error)}
        if not damaged:
            return
        try:
            if self.read_uncovered():
                return  # Packs that arrived meanwhile are covered next time.
        except FormatError:
            # Invariant 5: where a pack is damaged as well, the damaged segment may be the only list of its frames.
            return
        # Invariant 5: every pack is covered without them.
        self._delete(damaged)

    def _write_merged(
        self, parts: Sequence[Segment], *, without: frozenset[bytes] = frozenset()
    ) -> str | None:
        """Write one durable segment with the rows of `parts`, use it and return its key; None if it cannot be used."""
        for _ in range(2):
            with contextlib.ExitStack() as stack:
                copy = self._cache.new_copy()
                if copy is not None:
                    stack.enter_context(copy)
                try:
                    key, size, new = write_merged(self._backend, parts, copy, without=without)
                except IntegrityError:
                    # Invariant 13: a part is damaged; it is only a hint.
                    if self._sort_out(parts):
                        return None
                    raise
            if new:
                self._aside.pop(key, None)
            if key not in self._segments and key not in self._aside:
                self._open({key: size})
            if key in self._segments:
                return key
            if key not in self._aside or not _is_damage(self._aside[key]):
                break  # Another process has merged it further already, or a damaged file that has this name is left alone.
            # Invariant 5: a damaged file has this name, and this process has its right bytes.
            self._delete([key])
        self._load(None)
        return None

    def _sort_out(
        self, segments: Sequence[Segment], verify: Callable[[Segment], None] = Segment.verify
    ) -> bool:
        """Set aside those that are damaged; say whether any is."""
        aside = len(self._aside)
        for segment in segments:
            try:
                verify(segment)
            except (IntegrityError, BackendError) as error:  # noqa: PERF203  # few segments
                self._set_aside(segment.key, error)
        if len(self._aside) == aside:
            return False
        self._ask_the_packs()
        return True

    def _delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._segments.pop(key, None)
            self._aside.pop(key, None)
        for key in keys:
            self._backend.delete(key)  # Invariant 5: each caller says why the same rows are known elsewhere.

    def after_fork_in_child(self) -> None:
        """Replace the locks in a forked child, where another thread of the parent may have held them."""
        self._lock = threading.RLock()
        self._packs.renew_lock()
        self._cache.renew_lock()


def _with_lists(found: Rows, segment: Segment) -> tuple[Rows, BaseLists]:
    """Return found rows, and the base lists that they refer to, renumbered."""
    some = np.flatnonzero(found["bases"])
    if not some.size:
        return found, BaseLists.empty()
    lists = segment.lists(found["bases"][some].astype(np.int64) - 1)
    found = found.copy()
    found["bases"][some] = np.arange(1, len(some) + 1)
    return found, lists


def _is_damage(error: Exception) -> bool:
    return isinstance(error, FormatError) and not isinstance(error, UnsupportedVersion)
