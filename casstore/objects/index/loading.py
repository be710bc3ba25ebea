"""The index segments that this process has loaded, and the footers of packs that none of them covers.

Segments are hints (invariant 5): a row whose pack is gone means nothing, and an object that no row names may still
be in a pack. A segment that cannot be read or proves damaged is set aside with a warning, and the footers of
the packs that no other segment covers answer instead (invariant 13).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.fan_out import ask_all
from casstore.concurrency.forks import ForkAware, watch_forks
from casstore.errors import BackendError, FormatError, IntegrityError, ObjectNotFound
from casstore.objects.footers import FOOTER_GUESS, join_footers, read_footer
from casstore.objects.index.pack_table import PackTable
from casstore.objects.index.segment import Segment
from casstore.objects.index.segment_cache import SegmentCache
from casstore.objects.index.segment_file import HELD, SegmentFile, open_segment
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX, is_foreign, pack_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from casstore.backend.base import Backend, Entry
    from casstore.format.pack import Footer

_log = logging.getLogger("casstore")

_REQUEST = 64 << 10  # what a request costs, in bytes that would arrive meanwhile
_FOOTERS = "footers/"  # keys of segments that only this process has; no store has such a key
_JOINED_ROWS = 1 << 18
_JOINED_PACKS = 1024
_LISTINGS = 5


class LoadedSegments(ForkAware):
    """What this process knows of the index of one store; safe in threads."""

    def __init__(self, backend: Backend, *, copies: str | None = None) -> None:
        """`copies` is the directory in which segments of a remote store are kept, None for none."""
        self.backend = SegmentCache(backend, copies)
        self.lock = threading.RLock()
        self.packs = PackTable()
        self.segments: dict[str, Segment] = {}
        self.aside: dict[str, Exception] = {}
        """Segments that are not used, by key, and why."""
        self.loaded = False
        """Whether the store's segments were listed and fetched; until then only hints may be known."""
        self.hinted: set[bytes] = set()
        self._fetching_costs: int | None = None
        self._joined = itertools.count()
        watch_forks(self)

    def after_fork_in_child(self) -> None:
        """Replace the locks in a forked child, where another thread of the parent may have held them."""
        self.lock = threading.RLock()
        self.packs.renew_lock()
        self.backend.renew_lock()

    def read_hinted(self, packs: Sequence[bytes]) -> None:
        """Read the footers of packs, if those cost less than the segments that were never fetched.

        For a store that is a network away, and the packs that a record names (design §6). The names are hints:
        a pack that is gone or damaged is left out, and what is in none of them the segments answer.
        """
        with self.lock:
            fresh = [pack for pack in packs if pack not in self.hinted]
            if self.loaded or not fresh or not self.backend.is_remote:
                return
            listed: dict[str, int] | None = None
            if self._fetching_costs is None:
                listed = self._listed()
                away = [size for key, size in listed.items() if not self.backend.is_here(key)]
                self._fetching_costs = sum(away) + len(away) * _REQUEST
            # Footers of earlier calls count, too: for many records the segments are cheaper.
            if (len(self.hinted) + len(fresh)) * (2 * _REQUEST + FOOTER_GUESS) >= self._fetching_costs:
                self.load(listed)
                return
            footers = zip(fresh, ask_all(self._footer_of, fresh), strict=True)
            self.keep_footers([(pack, footer) for pack, footer in footers if footer is not None])
            self.hinted.update(fresh)

    def _footer_of(self, pack: bytes) -> Footer | None:
        try:
            return read_footer(self.backend, pack)
        except (ObjectNotFound, FormatError):
            return None  # Invariant 5: this is only a hint; a read that needs the pack looks further and raises the error.

    def refresh(self) -> None:
        """Load segments that are new in the store, drop those that are gone."""
        self.load(None)

    def _listed(self) -> dict[str, int]:
        known = self.segments.keys() | self.aside.keys()
        return {
            entry.key: entry.size
            for entry in self.backend.list(INDEX_PREFIX)
            if entry.key in known or not is_foreign(entry.key)
        }

    def load(self, listed: Mapping[str, int] | None) -> None:
        """Refresh; `listed` are the store's segments, if the caller has just listed them."""
        with self.lock:
            aside = len(self.aside)
            for _ in range(_LISTINGS):
                listed = self._listed() if listed is None else listed
                known = self.segments.keys() | self.aside.keys()
                fresh = [key for key in listed if key not in known]
                if not self.open(fresh):
                    break
                # A segment was merged away while we read; the next listing names its successor. Where that happens
                # again and again, the packs answer (invariant 13).
                listed = None
            listed = listed if listed is not None else self._listed()
            for key in self.segments.keys() - listed.keys():
                if key.startswith(INDEX_PREFIX) or self._is_covered(
                    key, by=self.segments.keys() & listed.keys()
                ):
                    del self.segments[key]
            if fresh:
                self.backend.prune(listed)
            self.loaded = True
            if len(self.aside) > aside:
                self.ask_the_packs()

    def open(self, keys: Sequence[str]) -> bool:
        """Load these segments of the store; say whether one of them is gone."""
        gone = False
        for key, answer in zip(
            keys, ask_all(self._try_open, keys, at_once=self.backend.is_remote), strict=True
        ):
            if isinstance(answer, Segment):
                self.keep(answer)
            elif isinstance(answer, ObjectNotFound):
                gone = True
            else:
                self.set_aside(key, answer)
        return gone

    def _try_open(self, key: str) -> Segment | IntegrityError | BackendError:
        try:
            return Segment(open_segment(key, self.backend))
        except (IntegrityError, BackendError) as error:
            return error  # Invariant 13: whether that matters is decided where it is returned.

    def _is_covered(self, key: str, *, by: Iterable[str]) -> bool:
        """Say whether segments cover all packs whose footers were read directly."""
        covered = self.covered_packs(self.segments[other] for other in by)
        return bool(covered[self.segments[key].numbers].all())

    def covered_packs(self, segments: Iterable[Segment]) -> NDArray[np.bool_]:
        """Say of each pack, by number, whether one of `segments` covers it."""
        covered = np.zeros(len(self.packs), np.bool_)
        for segment in segments:
            covered[segment.numbers] = True
        return covered

    def keep(self, segment: Segment) -> None:
        """Use a segment from now on."""
        segment.numbers = self.packs.numbers_of(segment.head.packs)
        self.packs.note_sizes(segment.numbers, segment.head.sizes)
        self.segments[segment.key] = segment

    def keep_own(self, key: str, data: bytes) -> None:
        """Use a segment with these bytes, which this process has just written to the store."""
        file = SegmentFile(key, memoryview(data))
        # Invariant 13: another process may have merged it away already; the bytes are here.
        with contextlib.suppress(IntegrityError, BackendError):
            if len(data) > HELD and self.backend.local_path(key) is not None:
                file = open_segment(key, self.backend)
        self.keep(Segment(file))

    def keep_footers(self, packs: Sequence[tuple[bytes, Footer]]) -> None:
        """Join the footers of packs that no segment covers into one segment in memory, since look-ups ask every segment."""
        if packs:
            data = join_footers(packs)
            self.keep(Segment(SegmentFile(f"{_FOOTERS}{next(self._joined)}", memoryview(data))))

    def note_packs(self, keys: Iterable[str]) -> NDArray[np.uint32]:
        """List which packs are there; return their numbers."""
        known = len(self.packs)
        numbers = self.packs.numbers_of([pack_id_of(key) for key in keys if not is_foreign(key)])
        self.packs.note_listing(numbers, known)
        return numbers

    def read_uncovered(self) -> bool:
        """Read the footers of packs that no segment covers; say whether there were any.

        Raises FormatError for a damaged one only once nothing else is left to be read: a caller that looks for an
        object in another pack is not concerned.
        """
        with self.lock:
            for _ in range(_LISTINGS):
                found, vanished, damage = self._read_listed()
                if found or not vanished:
                    break
                # What a collector rewrites goes to a pack that may be newer than the listing (invariant 8).
            if damage is not None and not found:
                raise damage
            return found

    def _read_listed(self) -> tuple[bool, bool, FormatError | None]:
        """List the packs, and read the footers of those that no segment covers.

        Returns whether there were any, whether one of them vanished before its footer was read, and what is wrong with
        the first that is damaged.
        """
        with self.lock:
            gone = self.packs.gone
            entries = [entry for entry in self.backend.list(PACK_PREFIX) if not is_foreign(entry.key)]
            numbers = self.note_packs(entry.key for entry in entries)
            # A pack that has come back counts, too: what it holds is found now.
            found = bool(gone & set(numbers.tolist()))
            covered = self.covered_packs(self.segments.values())
            left = [entries[at] for at in np.flatnonzero(~covered[numbers]).tolist()]
            damage: FormatError | None = None
            vanished = False
            pending: list[tuple[bytes, Footer]] = []
            rows = 0
            for start in range(0, len(left), _JOINED_PACKS):
                for answer in ask_all(
                    self._try_footer, left[start : start + _JOINED_PACKS], at_once=self.backend.is_remote
                ):
                    if isinstance(answer, FormatError):
                        # Invariant 8: raised by the caller, unless there is more to look at.
                        damage = damage or answer
                    elif answer is None:
                        vanished = True
                    else:
                        pending.append(answer)
                        rows += len(answer[1].rows)
                        if rows >= _JOINED_ROWS:
                            self.keep_footers(pending)
                            found, pending, rows = True, [], 0
            self.keep_footers(pending)
            found = found or bool(pending)
            return found, vanished, damage

    def _try_footer(self, entry: Entry) -> tuple[bytes, Footer] | FormatError | None:
        pack_id = pack_id_of(entry.key)
        try:
            return pack_id, read_footer(self.backend, pack_id, size=entry.size)
        except ObjectNotFound:
            return None  # Invariant 5: a pack that went since the listing does not exist.
        except FormatError as error:
            return error

    def forget_pack(self, number: int) -> frozenset[int]:
        """Treat a pack that was not there as gone: its rows mean nothing (invariant 5). Return all that are gone.

        Also lists which other packs are gone and which have come back, so that one surprise updates the whole picture.
        """
        if number not in self.packs.gone:
            self.note_packs(self.backend.list_keys(PACK_PREFIX))
            self.packs.gone.add(number)
        return frozenset(self.packs.gone)

    def pack_size(self, number: int) -> int | None:
        """Return the exact size in bytes that a pack must have, by its number; a pack of another size is damaged.

        None for a pack that no segment covers and whose footer was not read, or about which they disagree and
        whose footer cannot be read.
        """
        if self.packs.is_disputed(number):
            # Invariant 13: a hint is damaged, so the pack itself is asked.
            footer = self._footer_of(self.packs.id_of(number))
            if footer is not None:
                self.packs.note_footer(number, footer)
        return self.packs.size_of(number)

    def set_aside(self, key: str, error: IntegrityError | BackendError) -> None:
        """Stop using a segment in this process; raise `error` if it is about something else."""
        if not key.startswith(INDEX_PREFIX) or (isinstance(error, BackendError) and error.retryable):
            raise error
        with self.lock:
            self.segments.pop(key, None)
            if key in self.aside:
                return
            self.aside[key] = error
        # Invariant 13: only a hint.
        _log.warning("An index segment is damaged; packs are read instead, which is slower: %s", error)

    def ask_the_packs(self) -> None:
        """Read the footers of what segments that were set aside covered."""
        with contextlib.suppress(FormatError):
            # Invariant 13: a damaged pack is an error for the read that needs it, not here.
            self.read_uncovered()

    def sort_out(
        self, segments: Sequence[Segment], verify: Callable[[Segment], None] = Segment.verify
    ) -> bool:
        """Set aside those that are damaged; say whether any is."""
        aside = len(self.aside)
        for segment in segments:
            try:
                verify(segment)
            except (IntegrityError, BackendError) as error:  # noqa: PERF203  # few segments
                self.set_aside(segment.key, error)
        if len(self.aside) == aside:
            return False
        self.ask_the_packs()
        return True
