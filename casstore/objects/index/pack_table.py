"""The packs that an index knows: a number for each, its exact size, and which of them are gone or damaged."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.format.pack import Footer


class PackTable:
    """Numbers stand for packs in located rows, and never change. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._sizes: list[int | None] = []
        self._disputed: set[int] = set()
        self.gone: set[int] = set()
        """Packs that were not there when they were last looked for (invariant 5)."""
        self.avoided: set[int] = set()
        """Packs in which damage was found."""

    def __len__(self) -> int:
        return len(self._ids)

    def id_of(self, number: int) -> bytes:
        """Return the pack that a number means."""
        return self._ids[number]

    def numbers_of(self, packs: Sequence[bytes]) -> NDArray[np.uint32]:
        """Return the numbers of packs, new ones for those that are new."""
        with self._lock:
            for pack in packs:
                if pack not in self._numbers:
                    # In this order: a child that is forked in between has an unused number rather than a wrong one.
                    self._sizes.append(None)
                    self._ids.append(pack)
                    self._numbers[pack] = len(self._ids) - 1
            return np.fromiter(map(self._numbers.__getitem__, packs), np.uint32, len(packs))

    def note_sizes(self, numbers: NDArray[np.uint32], sizes: Sequence[int]) -> None:
        """Record the sizes in bytes that one segment gives for its packs."""
        with self._lock:
            for number, size in zip(numbers.tolist(), sizes, strict=True):
                if self._sizes[number] is None:
                    self._sizes[number] = size
                elif self._sizes[number] != size:
                    self._disputed.add(number)

    def size_of(self, number: int) -> int | None:
        """Return the size that segments give for a pack, None if there is none or it `is_disputed`."""
        return None if number in self._disputed else self._sizes[number]

    def is_disputed(self, number: int) -> bool:
        """Say whether segments disagree about a pack's size."""
        return number in self._disputed

    def note_footer(self, number: int, footer: Footer) -> None:
        """Record the size that the pack itself states."""
        with self._lock:
            self._sizes[number] = footer.pack_size
            self._disputed.discard(number)

    def note_listing(self, there: NDArray[np.uint32], known: int) -> None:
        """Record which packs a listing showed, `there`; all others of the first `known` are gone."""
        absent = np.ones(len(self), np.bool_)
        absent[there] = False
        absent[known:] = False
        # A pack that was gone may have come back from a backup.
        self.gone = set(np.flatnonzero(absent).tolist())

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where another thread of the parent may have held it."""
        self._lock = threading.Lock()
