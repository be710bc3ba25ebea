"""What this machine keeps of a store that is far away, so that the next mark need not fetch it again.

Footers, manifests and layouts never change. Each is verified whenever it is used, by its own checksum or its id.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING

from casstore.backend.round_trips import is_far
from casstore.machine.state import machine_folder

if TYPE_CHECKING:
    from collections.abc import Collection

    from casstore.store.store import Store


class Copies:
    """Small files by name in one folder of the user's cache; without a folder, nothing is kept. Never raises OSError."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    @classmethod
    def of(cls, store: Store, kind: str) -> Copies:
        """Return the copies of one kind for a store; none where the store itself is near."""
        place = None
        if is_far(store.backend):
            place = machine_folder(bytes.fromhex(store.store_id), store.backend.url)
        return cls(None if place is None else os.path.join(place, "gc", kind))

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
            temporary = os.path.join(self._folder, f".{uuid.uuid4().hex}")
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                # Invariant 4: it is verified whenever it is read, so no fsync is needed.
                os.rename(temporary, os.path.join(self._folder, name))
            except OSError:
                # Invariant 4: it is incomplete.
                os.unlink(temporary)
                raise

    def prune(self, names: Collection[str]) -> None:
        """Remove all copies but these."""
        if self._folder is None:
            return
        # Invariant 13: what stays only takes space.
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):
                if name not in names:
                    os.unlink(os.path.join(self._folder, name))
