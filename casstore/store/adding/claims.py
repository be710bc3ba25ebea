"""A publication as the workers of one add use it: one at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.objects import Publication


class Claims:
    """Which objects an add must write, and which may be bases. Safe in threads."""

    def __init__(self, publication: Publication) -> None:
        self._publication = publication
        self._lock = threading.Lock()

    def claim(self, ids: Sequence[bytes]) -> list[int]:
        """Return the positions of the objects that the caller must write (`Publication.claim`)."""
        with self._lock:
            return self._publication.claim(ids)

    def ranks(self, ids: Sequence[bytes]) -> list[int | None]:
        """Return the rank of the frame of each object that may be a base (`Publication.ranks`)."""
        with self._lock:
            return self._publication.ranks(ids)
