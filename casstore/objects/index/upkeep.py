"""Writing index segments: over new packs, merged from small ones, and in the place of damaged ones."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import numpy as np

from casstore.errors import BackendError, FormatError, IntegrityError, ObjectExists, UnsupportedVersion
from casstore.objects.footers import join_footers
from casstore.objects.index.merging import MAX_SEGMENTS, choose_parts, superfluous, write_merged
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX, index_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from casstore.format.pack import Footer
    from casstore.objects.index.loading import LoadedSegments
    from casstore.objects.index.segment import Segment

_STALE = 0.1
"""Share of a segment's packs that are gone from which it is written again."""

_PACKS = 1024
"""Packs that one segment covers when an index is written anew."""

_log = logging.getLogger("casstore")


class Upkeep:
    """Writes and removes the segments of one store; safe in threads."""

    def __init__(self, known: LoadedSegments) -> None:
        self._known = known
        self._busy_from = 0

    def publish(
        self, packs: Sequence[tuple[bytes, Footer]], *, after: Callable[[], object] | None = None
    ) -> None:
        """Write one durable segment over new packs (invariant 3), and use it from now on.

        `after` waits until the packs are durable: it is called before the segment gets its name, and while it waits, the disk
        works on both.
        """
        data = join_footers(packs)
        key = index_key(data)
        # Invariant 5: its name is its hash, so another writer's file has the same bytes.
        with contextlib.suppress(ObjectExists):
            if after is None:
                self._known.backend.put(key, [data])
            else:
                with self._known.backend.open_writer() as writer:
                    writer.write([data])
                    writer.harden()
                    after()
                    writer.commit(key)
        with self._known.lock:
            self._known.keep_own(key, data)
            self.keep_house()

    def merge(self) -> None:
        """Join small segments when there are many, so that look-ups stay cheap.

        The merged segment is durable before its parts go; a part that another process deleted first is
        not needed, since segments are hints (invariant 5).
        """
        with self._known.lock:
            durable = self._durable()
            if len(durable) <= MAX_SEGMENTS:
                return
            spare = superfluous(durable)
            parts = choose_parts([segment for segment in durable if segment.key not in spare])
            merged = self._write_merged(parts) if parts else None
            if merged is not None:
                spare |= {segment.key for segment in parts}
            # Invariant 5: a larger segment, durable by now, has all rows of these.
            self._delete(spare - {merged})

    def retire(self, packs: Sequence[bytes]) -> None:
        """Replace segments that list packs which were deleted by ones without them.

        One in which they are few is left alone: their rows mean nothing (invariant 5), and are dropped by a merge.
        """
        known = self._known
        with known.lock:
            known.refresh()
            # Packs that earlier collections deleted are left out as well.
            known.note_packs(known.backend.list_keys(PACK_PREFIX))
            known.packs.gone.update(known.packs.numbers_of(packs).tolist())
            gone = np.fromiter(known.packs.gone, np.uint32, len(known.packs.gone))
            without = frozenset(map(known.packs.id_of, gone.tolist()))
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

    def replace(self, damaged: Mapping[str, IntegrityError], packs: Sequence[tuple[bytes, Footer]]) -> None:
        """Remove `damaged` segments, and publish segments over packs: all that these cover and that can be read."""
        for key, error in damaged.items():
            self._known.set_aside(key, error)
        # Invariant 5: hints; until the packs are covered again, their footers answer. The damaged ones go first, since a
        # segment over the same packs has the same name.
        self._delete(damaged)
        for start in range(0, len(packs), _PACKS):
            self.publish(packs[start : start + _PACKS])

    def _durable(self) -> list[Segment]:
        return [segment for key, segment in self._known.segments.items() if key.startswith(INDEX_PREFIX)]

    def keep_house(self) -> None:
        """Merge segments to keep look-ups cheap; never fails (invariant 13)."""
        with self._known.lock:
            if len(self._known.segments) >= self._busy_from:
                self._try_to_keep_house()

    def _try_to_keep_house(self) -> None:
        try:
            self.merge()
            self._replace_damaged()
        except (IntegrityError, BackendError) as error:
            # Invariant 13: the segments stay as they were; look-ups are only slower.
            _log.warning("Index segments could not be merged, so look-ups take longer: %s", error)
            # Not tried again with each of many adds: it may cost as much each time.
            self._busy_from = len(self._known.segments) + MAX_SEGMENTS

    def _replace_damaged(self) -> None:
        """Write a segment over packs that none covers, and remove damaged segments."""
        if not self._known.loaded:
            return  # Packs that `read_hinted` read are covered by segments that were never fetched.
        by_hand = [
            segment for key, segment in self._known.segments.items() if not key.startswith(INDEX_PREFIX)
        ]
        if not by_hand and not self._known.aside:
            return
        covered = self._known.covered_packs(self._durable())
        parts = [segment for segment in by_hand if not covered[segment.numbers].all()]
        if parts and self._write_merged(parts) is None:
            return
        for segment in by_hand:
            del self._known.segments[segment.key]
        damaged = {key for key, error in self._known.aside.items() if _is_damage(error)}
        if not damaged:
            return
        try:
            if self._known.read_uncovered():
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
            try:
                key, new = write_merged(self._known.backend, parts, without=without)
            except IntegrityError:
                # Invariant 13: a part is damaged; it is only a hint.
                if self._known.sort_out(parts):
                    return None
                raise
            if new:
                self._known.aside.pop(key, None)
            if key not in self._known.segments and key not in self._known.aside:
                self._known.open([key])
            if key in self._known.segments:
                return key
            if key not in self._known.aside or not _is_damage(self._known.aside[key]):
                break  # Another process has merged it further already, or a damaged file that has this name is left alone.
            # Invariant 5: a damaged file has this name, and this process has its right bytes.
            self._delete([key])
        self._known.load(None)
        return None

    def _delete(self, keys: Collection[str]) -> None:
        for key in keys:
            self._known.segments.pop(key, None)
            self._known.aside.pop(key, None)
        # Invariant 5: each caller says why the same rows are known elsewhere.
        self._known.backend.delete_many(sorted(keys))


def _is_damage(error: Exception) -> bool:
    return isinstance(error, FormatError) and not isinstance(error, UnsupportedVersion)
