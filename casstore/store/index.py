"""Look-up of objects: index segments first, footers of packs that no segment covers when needed.

Segments are hints (invariant 5): a row whose pack is gone means nothing, and what no row names may still
be in a pack.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.errors import BackendError, FormatError, ObjectNotFound
from casstore.format import index as index_format
from casstore.format import pack as pack_format
from casstore.format.rows import ROW, BaseLists, id_words, merge_base_lists
from casstore.store.keys import INDEX_PREFIX, PACK_PREFIX, index_key, pack_id_of, pack_key
from casstore.store.merging import choose_parts, write_merged
from casstore.store.round_trips import ask_all, ask_each, is_far
from casstore.store.segment import Segment
from casstore.store.segment_cache import SegmentCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.backend.base import Backend
    from casstore.format.pack import Footer
    from casstore.format.rows import Rows

_log = logging.getLogger("casstore")

NOT_FOUND = np.uint32(0xFFFFFFFF)
"""In the `pack` field of a located row: no usable frame of this object is known."""

_FOOTER_GUESS = 64 << 10
_REQUEST = 64 << 10  # bytes that would arrive while a request is on its way, as costs are compared


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


class Index:
    """All that is known of where objects lie in one store; safe in threads."""

    def __init__(self, backend: Backend, *, copies: str | None = None) -> None:
        """`copies` is the directory in which segments of a remote store are kept, None for none."""
        self._backend = backend
        self._cache = SegmentCache(backend, copies)
        self._lock = threading.RLock()
        self._segments: dict[str, Segment] = {}
        self._pack_numbers: dict[bytes, int] = {}
        self._pack_ids: list[bytes] = []
        self._gone: set[int] = set()
        self._avoided: set[int] = set()
        self._loaded = False
        self._hinted: set[bytes] = set()
        self._fetching_costs: int | None = None
        _indexes.add(self)

    def pack_id(self, number: int) -> bytes:
        """Return the pack that a located row's number means."""
        return self._pack_ids[number]

    def number_of(self, pack_id: bytes) -> int:
        """Return the number that stands for a pack in located rows."""
        return int(self._numbers_of([pack_id])[0])

    def _numbers_of(self, packs: Sequence[bytes]) -> NDArray[np.uint32]:
        with self._lock:
            numbers = np.empty(len(packs), np.uint32)
            for at, pack in enumerate(packs):
                number = self._pack_numbers.setdefault(pack, len(self._pack_ids))
                if number == len(self._pack_ids):
                    self._pack_ids.append(pack)
                numbers[at] = number
            return numbers

    def learn(self, packs: Sequence[bytes]) -> None:
        """Get to know packs by their footers, if those cost less than the segments that were never fetched.

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
            # Those of earlier calls count, too: many records together are worth the segments.
            if (len(self._hinted) + len(fresh)) * (2 * _REQUEST + _FOOTER_GUESS) >= self._fetching_costs:
                self._load(listed)
                return
            for pack, footer in zip(fresh, ask_all(self._footer_of, fresh), strict=True):
                if footer is not None:
                    self.add_footer(pack, footer)
            self._hinted.update(fresh)

    def _footer_of(self, pack: bytes) -> Footer | None:
        try:
            return read_footer(self._backend, pack)
        except (ObjectNotFound, FormatError):
            return None  # Invariant 5: only a hint; whoever needs what was in it looks further, and is told.

    def _listed(self) -> dict[str, int]:
        return {entry.key: entry.size for entry in self._backend.list(INDEX_PREFIX)}

    def refresh(self) -> None:
        """Load segments that are new in the store, drop those that are gone."""
        self._load(None)

    def _load(self, listed: dict[str, int] | None) -> None:
        """Do so; `listed` is what the store has, where that was asked a moment ago."""
        with self._lock:
            for attempt in range(5):
                if listed is None or attempt:
                    listed = self._listed()
                fresh = {key: size for key, size in listed.items() if key not in self._segments}
                try:
                    for segment in self._cache.open_all(fresh):
                        self._keep(segment)
                except ObjectNotFound:
                    # A segment was merged away while we read; the next listing names its successor.
                    if attempt == 4:
                        raise
                    continue
                for key in self._segments.keys() - listed.keys():
                    if key.startswith(INDEX_PREFIX) or self._is_covered(key, by=listed):
                        del self._segments[key]
                if fresh:
                    self._cache.prune(listed)
                self._loaded = True
                return

    def _is_covered(self, key: str, *, by: Iterable[str]) -> bool:
        """Say whether segments cover what a footer that was read by hand says."""
        return all(
            any(number in self._segments[other].numbers for other in by)
            for number in self._segments[key].numbers.tolist()
        )

    def glance(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find the frames of objects as `locate` does, but with what `learn` knows, if it knows anything."""
        with self._lock:
            hinted = bool(self._hinted) and not self._loaded and not self._avoided
        return self._locate(ids, usable=None, load=False) if hinted else self.locate(ids)

    def locate(self, ids: Sequence[bytes] | bytes, *, usable: Callable[[int], bool] | None = None) -> Located:
        """Find the frames of objects; no pack is opened. `usable` judges packs by their number.

        Without it, packs that are to be avoided are named only for what no other pack holds.
        """
        if usable is not None or not self._avoided:
            return self._locate(ids, usable=usable)
        located = self._locate(ids, usable=lambda number: number not in self._avoided)
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
        rows = np.zeros(len(words), ROW)
        rows["pack"] = NOT_FOUND
        sources = np.zeros(len(words), np.int32)
        with self._lock:
            if load and not self._loaded:
                self.refresh()
            # Most is found in the largest, and then the others are not asked.
            segments = sorted(self._segments.values(), key=len, reverse=True)
        missing = np.arange(len(words))
        lists: list[BaseLists] = []
        for source, segment in enumerate(segments):
            lists.append(BaseLists.empty())
            if not missing.size or not len(segment):
                continue
            queries, found = segment.matches(words[missing])
            numbers = segment.numbers[found["pack"]]
            good = self._judge(numbers, usable)
            queries, found, numbers = missing[queries[good]], found[good], numbers[good]
            if not queries.size:
                continue
            if found["bases"].any():
                lists[source] = segment.base_lists
            # Lowest rank last, so that it is the one that stays where an object has several frames.
            order = np.argsort(found["rank"], kind="stable")[::-1]
            rows[queries[order]] = found[order]
            rows["pack"][queries[order]] = numbers[order]
            sources[queries[order]] = source
            missing = missing[rows["pack"][missing] == NOT_FOUND]
        return Located(rows, sources, tuple(lists))

    def check_absent(self, object_id: bytes) -> None:
        """Raise FormatError if this object seems to be absent because a segment is damaged."""
        words = id_words([object_id])
        with self._lock:
            segments = list(self._segments.values())
        for segment in segments:
            segment.check(segment.head.bucket_of(words))

    def add_footer(self, pack_id: bytes, footer: Footer) -> None:
        """Make a pack known that no segment covers yet."""
        with self._lock:
            key = pack_key(pack_id)
            data = index_format.encode(footer.rows, footer.bases, [pack_id])
            self._keep(Segment(key, memoryview(data), None))

    def publish(self, packs: Sequence[tuple[bytes, Footer]]) -> None:
        """Write one durable segment over new packs (invariant 3), and use it from now on."""
        parts: list[tuple[Rows, BaseLists]] = []
        for position, (_, footer) in enumerate(packs):
            rows = footer.rows.copy()
            rows["pack"] = position
            parts.append((rows, footer.bases))
        rows, bases = merge_base_lists(parts)
        data = index_format.encode(rows, bases, [pack_id for pack_id, _ in packs])
        self._backend.put(index_key(data), [data])
        with self._lock:
            self._keep(self._cache.opened(data))
            self.merge()

    def all_rows(self) -> Iterator[Rows]:
        """Yield the rows of every segment and of every pack that none covers; objects may recur."""
        self.refresh()
        while self.read_uncovered():
            pass  # Until a damaged pack, if there is one, is all that is left, and is raised.
        with self._lock:
            segments = list(self._segments.values())
        for segment in segments:
            yield from segment.batches()

    def forget_pack(self, number: int) -> None:
        """Treat a pack as gone for good: its rows mean nothing (invariant 5) and its id never recurs (invariant 6)."""
        with self._lock:
            self._gone.add(number)

    def avoid_pack(self, number: int) -> bool:
        """Prefer any other copy of what a damaged pack holds; say whether that is new."""
        with self._lock:
            new = number not in self._avoided
            self._avoided.add(number)
            return new

    def read_uncovered(self) -> bool:
        """Read the footers of packs that no segment covers; say whether there were any.

        Raises FormatError for a damaged one only once nothing else is left to be read: who looks for an
        object that another pack holds need not care.
        """
        with self._lock:
            covered = {n for segment in self._segments.values() for n in segment.numbers.tolist()}
            found = False
            damage: FormatError | None = None
            for entry in self._backend.list(PACK_PREFIX):
                try:
                    pack_id = pack_id_of(entry.key)
                    if self.number_of(pack_id) not in covered:
                        self.add_footer(pack_id, read_footer(self._backend, pack_id))
                        found = True
                except ObjectNotFound:  # noqa: PERF203  # one footer each: the handler costs nothing beside it
                    continue  # Invariant 5: a pack that went since the listing does not exist.
                except FormatError as error:
                    damage = damage or error  # Invariant 8: raised below, unless there is more to look at.
            if damage is not None and not found:
                raise damage
            return found

    def cover_uncovered(self) -> bool:
        """Publish one segment over the packs that none covers; say whether there were any.

        Damaged packs and what is no pack are left alone: check names them.
        """
        with self._lock:
            covered = {
                number
                for key, segment in self._segments.items()
                if key.startswith(INDEX_PREFIX)
                for number in segment.numbers.tolist()
            }
            packs = [
                pack
                for key in self._backend.list_keys(PACK_PREFIX)
                if (pack := _pack_named(key)) is not None and self._pack_numbers.get(pack) not in covered
            ]
            footers = ask_each(self._backend, self._footer_of, packs)
            found = [
                (pack, footer) for pack, footer in zip(packs, footers, strict=True) if footer is not None
            ]
            if not found:
                return False
            try:
                self.publish(found)
            except BackendError as error:
                # Invariant 13: on a full disk, say, this process knows them all the same.
                _log.debug("No index segment covers %d packs: %s", len(found), error)
                for pack, footer in found:
                    self.add_footer(pack, footer)
            else:
                self.refresh()  # Footers that were read one by one are in the segment now.
            return True

    def merge(self) -> None:
        """Join small segments when there are many, so that look-ups stay cheap.

        The merged segment is durable before its parts go; a part that another process deleted first is
        no loss, for segments are hints (invariant 5).
        """
        with self._lock:
            durable = [segment for key, segment in self._segments.items() if key.startswith(INDEX_PREFIX)]
            parts = choose_parts(durable)
            if not parts:
                return
            with contextlib.ExitStack() as stack:
                copy = self._cache.new_copy()
                if copy is not None:
                    stack.enter_context(copy)
                key, size = write_merged(self._backend, parts, self._pack_ids, copy)
            if key not in self._segments:
                for segment in self._cache.open_all({key: size}):
                    self._keep(segment)
            for segment in parts:
                if segment.key != key:
                    # Invariant 5: the merged segment, durable now, says all that this one said.
                    self._backend.delete(segment.key)
                    del self._segments[segment.key]

    def _keep(self, segment: Segment) -> None:
        segment.numbers = self._numbers_of(segment.head.packs)
        self._segments[segment.key] = segment

    def _judge(self, numbers: NDArray[np.uint32], usable: Callable[[int], bool] | None) -> NDArray[np.bool_]:
        answers = {
            number: number not in self._gone and (usable is None or usable(number))
            for number in set(numbers.tolist())
        }
        return np.array([answers[number] for number in numbers.tolist()], np.bool_)

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where another thread of the parent may have held it."""
        self._lock = threading.RLock()


_indexes: weakref.WeakSet[Index] = weakref.WeakSet()


def _renew_locks() -> None:
    for index in _indexes:
        index.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)


def _pack_named(key: str) -> bytes | None:
    try:
        return pack_id_of(key)
    except FormatError:
        return None  # Invariant 13: somebody else's file concerns nobody who looks for packs.


def read_footer(backend: Backend, pack_id: bytes) -> Footer:
    """Read and check a pack's footer with one or two range reads from its end."""
    key = pack_key(pack_id)
    size = backend.stat(key).size
    begin = max(0, size - _FOOTER_GUESS)
    tail = memoryview(backend.read(key, start=begin, length=size - begin))
    trailer = pack_format.decode_trailer(tail, pack_size=size, key=key)
    if trailer.begin < begin:
        body = backend.read(key, start=trailer.begin, length=trailer.size)
    else:
        body = bytes(tail[trailer.begin - begin : trailer.begin - begin + trailer.size])
    return pack_format.decode_footer(body, trailer, key=key)
