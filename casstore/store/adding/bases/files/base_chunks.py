"""Chunks as bases, of the store or of the same add: those that are needed again are read and decoded once while they are of use."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from casstore.errors import IntegrityError, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casstore.objects import Base, ObjectStore
    from casstore.store.adding.bases.files.own_files import OwnChunks

KEPT = 32 << 20
"""Plain bytes of bases that stay in memory; those in use come on top."""


class BaseChunks:
    """Reads bases of one store; safe in threads. The least recently used ones go first."""

    def __init__(self, objects: ObjectStore, *, own: OwnChunks, kept: int = KEPT) -> None:
        """`own` are the chunks of the add itself, which the store does not know yet."""
        self._objects = objects
        self._own = own
        self._limit = kept
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Base] = OrderedDict()
        self._size = 0

    def read(self, ids: Iterable[bytes], *, again: bool = False) -> dict[bytes, Base]:
        """Return those of these chunks that can be read, by id; the others are missing or damaged.

        What is named more than once, or with `again` all of it, is kept: as a rule the next ones need it, too. Most bases
        are needed once, and memory that is used over and over stays in the processor's cache.
        """
        wanted = Counter(ids)
        found: dict[bytes, Base] = {}
        with self._lock:
            for chunk_id in wanted:
                if chunk_id in self._kept:
                    self._kept.move_to_end(chunk_id)
                    found[chunk_id] = self._kept[chunk_id]
        # Two threads may read the same chunk: that costs less than waiting for each other.
        own, fresh = self._own.read([chunk_id for chunk_id in wanted if chunk_id not in found])
        kept = own + self._read([chunk_id for chunk_id in fresh if again or wanted[chunk_id] > 1], lent=False)
        once = [] if again else [chunk_id for chunk_id in fresh if wanted[chunk_id] == 1]
        found.update((base.object_id, base) for base in (*kept, *self._read(once, lent=True)))
        with self._lock:
            for base in kept:
                if base.object_id not in self._kept:
                    self._kept[base.object_id] = base
                    self._size += len(base.plain)
            while self._size > self._limit:
                _, gone = self._kept.popitem(last=False)
                self._size -= len(gone.plain)
        return found

    def _read(self, ids: list[bytes], *, lent: bool) -> list[Base]:
        """Read chunks all at once; by halves if something is wrong with one of them."""
        if not ids:
            return []
        try:
            return self._objects.read_bases(ids, lent=lent)
        except (IntegrityError, ObjectNotFound):
            # Invariant 11: nothing is hidden: without the base, the chunk is encoded alone.
            if len(ids) == 1:
                return []
        middle = len(ids) // 2
        return self._read(ids[:middle], lent=lent) + self._read(ids[middle:], lent=lent)
