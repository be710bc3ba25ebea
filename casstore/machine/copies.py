"""What this machine keeps of a store that is far away, so that the next mark need not fetch it again.

Footers, manifests and layouts never change. Each is verified whenever it is used, by its own checksum or its id.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from casstore.machine.atomic_write import atomic_write

if TYPE_CHECKING:
    from collections.abc import Collection


class Copies:
    """Small files by name in one folder of the user's cache; without a folder, nothing is kept. Never raises OSError."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    def get(self, name: str) -> bytes | None:
        """Return a copy, which the caller verifies; None if there is none."""
        if self._folder is None:
            return None
        try:
            with open(os.path.join(self._folder, name), "rb") as file:
                return file.read()
        except OSError:
            return None  # Invariant 13: it is fetched instead.

    def put(self, name: str, data: bytes) -> None:
        """Keep a copy, if there is room."""
        if self._folder is None:
            return
        # Invariant 13: a copy that cannot be written costs another fetch.
        with contextlib.suppress(OSError):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            # Invariant 4: it is verified whenever it is read, so no fsync is needed.
            with atomic_write(os.path.join(self._folder, name)) as file:
                file.write(data)

    def prune(self, names: Collection[str]) -> None:
        """Remove all copies but these."""
        if self._folder is None:
            return
        # Invariant 13: what stays only takes space.
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):
                if name not in names:
                    os.unlink(os.path.join(self._folder, name))
