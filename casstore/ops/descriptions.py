"""Reads what describes models, manifests and layouts, for many at once.

For a store that is far away, this machine keeps copies of them, so that the next collection fetches only new ones.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from casstore.digest import digest
from casstore.machine.copies import Copies
from casstore.machine.state import machine_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from casstore.errors import CasstoreError
    from casstore.store.model_store import ModelStore

MANIFESTS = 1024
"""Manifests that are read at once."""

LAYOUTS = 128
"""Layouts that are read at once: each may have megabytes."""


class Descriptions:
    """Reads small objects of one store. For one thread."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._copies = kept_copies(store, "objects")

    def read(
        self, ids: Sequence[bytes], *, batch: int, failed: Callable[[bytes, CasstoreError], None]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield objects with their verified bytes; `failed` is called for those that cannot be read, with the reason.

        So many are read at once as `batch` says. Raises BackendError for a store that fails.
        """
        fetch: list[bytes] = []
        for object_id in ids:
            data = self._copies.get(object_id.hex())
            # Invariant 4: whatever happened to the copy, its id tells.
            if data is not None and digest(data) == object_id:
                yield object_id, data
            else:
                fetch.append(object_id)
        for start in range(0, len(fetch), batch):
            found, damaged = self._store.objects.read_present(fetch[start : start + batch])
            for object_id, error in damaged.items():
                failed(object_id, error)
            for object_id, data in found.items():
                self._copies.put(object_id.hex(), data)
                yield object_id, data

    def prune(self, needed: Collection[bytes]) -> None:
        """Keep no copies of others than these."""
        self._copies.prune({object_id.hex() for object_id in needed})


def kept_copies(store: ModelStore, kind: str) -> Copies:
    """Return what this machine keeps of one kind for a store; nothing where the store itself is near."""
    place = None
    if store.backend.is_remote:
        place = machine_folder(bytes.fromhex(store.store_id), store.backend.url)
    return Copies(None if place is None else os.path.join(place, "gc", kind))
