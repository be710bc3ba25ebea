"""Bases that are needed again soon: where many deltas rest on the same chunks, as those of a transposed tensor do."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from casstore.objects.reading.base_levels import KnownBases

BASE_CACHE = 48 << 20
"""Plain bytes of bases that one reader keeps, unless the bases of one group of deltas have more."""


class BaseCache:
    """The plain bytes of bases, by id, from one read of a model to the next. Safe in threads.

    The least recently used ones go first. Whether they were hashed is for the reader to know: a cache serves either those
    who verify or those who do not.
    """

    def __init__(self, *, limit: int = BASE_CACHE) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, memoryview] = OrderedDict()
        self._size = 0
        self.known: KnownBases | None = None
        """Where bases are that are read next (`ObjectStore.know_bases`)."""

    def get(self, ids: Iterable[bytes]) -> dict[bytes, memoryview]:
        """Return those of these bases that are here."""
        found: dict[bytes, memoryview] = {}
        with self._lock:
            if self._kept:
                for base in ids:
                    if base in self._kept:
                        self._kept.move_to_end(base)
                        found[base] = self._kept[base]
        return found

    def put(self, bases: Mapping[bytes, memoryview]) -> None:
        """Keep bases; their memory must stay as it is."""
        with self._lock:
            for base, plain in bases.items():
                if base not in self._kept:
                    self._kept[base] = plain
                    self._size += len(plain)
            while self._size > self._limit:
                _, gone = self._kept.popitem(last=False)
                self._size -= len(gone)
