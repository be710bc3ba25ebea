"""Other stores that may have what one store lacks, such as its remotes: opened when they are needed, and asked in turn."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.concurrency.forks import ForkAware, watch_forks
from casstore.errors import CasstoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casstore.store.model_store import ModelStore

_PAUSE = 60.0
"""Seconds in which a store that failed is not asked again: each attempt may take as long as a time-out."""


@dataclass(frozen=True, slots=True)
class Place:
    """A store that has not been opened yet: `name` is for people."""

    name: str
    open: Callable[[], ModelStore]


class OtherStores(ForkAware):
    """The places that `find` returns, in order, opened once each; safe in threads. As OtherCopies, they raise nothing."""

    def __init__(self, find: Callable[[], Sequence[Place]]) -> None:
        self._find = find
        self._places: Sequence[Place] | None = None
        self._opened: dict[str, ModelStore] = {}
        self._failed: dict[str, tuple[float, CasstoreError]] = {}
        self.after_fork_in_child()
        watch_forks(self)

    def after_fork_in_child(self) -> None:
        """Replace the lock in a forked child, where another thread of the parent may have held it."""
        self._lock = threading.RLock()

    def stores(self) -> Iterator[tuple[str, ModelStore]]:
        """Yield the name and the store of each place that can be opened, and has not failed just now."""
        for place in self._all():
            with self._lock:
                store = self._opened.get(place.name)
                failed = self._failed.get(place.name)
                if failed is not None and time.monotonic() - failed[0] < _PAUSE:
                    continue
                if store is None:
                    try:
                        store = self._opened[place.name] = place.open()
                    except CasstoreError as error:
                        # Invariant 11: the caller has an error of its own already; `answer` adds this one.
                        self.fail(place.name, error)
                        continue
            yield place.name, store

    def fail(self, name: str, error: CasstoreError) -> None:
        """Note that a store failed; it is left alone for a while."""
        self._failed[name] = time.monotonic(), error

    @property
    def failures(self) -> dict[str, str]:
        """Why stores could not be asked, by their names."""
        return {name: str(error) for name, (_, error) in self._failed.items()}

    def lengths(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Return the plain lengths of those of these objects that another store has."""
        lengths: dict[bytes, int] = {}
        for name, store in self.stores():
            left = [object_id for object_id in ids if object_id not in lengths]
            if not left:
                break
            try:
                absent = store.objects.absent(left)
                there = [item for item in left if item not in absent]
                found = store.objects.find(there)
            except CasstoreError as error:
                # Invariant 11: as in `stores`.
                self.fail(name, error)
                continue
            lengths.update(zip(there, found.rows["raw"].tolist(), strict=True))
        return lengths

    def read(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the verified plain bytes of those of these objects that another store can give."""
        plain: dict[bytes, bytes] = {}
        for name, store in self.stores():
            left = [object_id for object_id in ids if object_id not in plain]
            if not left:
                break
            try:
                found, _ = store.objects.read_present(left)
            except CasstoreError as error:
                # Invariant 11: as in `stores`.
                self.fail(name, error)
                continue
            plain.update(found)
        return plain

    def answer(self) -> str:
        """Say which stores do not have it, and which could not be asked."""
        lacking = [place.name for place in self._all() if place.name not in self._failed]
        parts = [f"Not in its remotes either: {', '.join(lacking)}."] if lacking else []
        parts += [f"{name} could not be asked: {error}" for name, error in self.failures.items()]
        return " ".join(parts)

    def close(self) -> None:
        """Close the stores that were opened."""
        with self._lock:
            opened, self._opened = self._opened, {}
        for store in opened.values():
            store.close()

    def _all(self) -> Sequence[Place]:
        with self._lock:
            if self._places is None:
                try:
                    self._places = self._find()
                except CasstoreError as error:
                    # Invariant 11: as in `stores`; the list of remotes may be unreadable.
                    self._places = ()
                    self.fail("Its list of remotes", error)
            return self._places
