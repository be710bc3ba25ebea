"""A map of the entries that were put last."""

from __future__ import annotations

from typing import TypeVar

_V = TypeVar("_V")

_KEPT = 10_000


class Recent(dict[str, _V]):
    """A map that drops its oldest entries, so that what is never asked for again is not kept for ever."""

    def put(self, key: str, value: _V) -> None:
        """Set an entry, which is now the newest."""
        self.pop(key, None)
        self[key] = value
        if len(self) > _KEPT:
            del self[next(iter(self))]
