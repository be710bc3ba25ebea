"""Entries that a listing leaves out because they cannot be read: they are reported, never silently dropped."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import BackendError

if TYPE_CHECKING:
    from casstore.errors import CasstoreError

_log = logging.getLogger("casstore.store")


@dataclass(frozen=True, slots=True)
class Damage:
    """Something of one ref that cannot be read: `key` names the record or the object, `reason` is for people."""

    name: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class DamageLog:
    """Warns of each damaged thing, once. Safe in threads: at worst one warning is given twice."""

    def __init__(self) -> None:
        self._told: set[Damage] = set()

    def __call__(self, damage: Damage) -> None:
        """Log what a listing left out."""
        if damage not in self._told:
            self._told.add(damage)
            _log.warning("%s", damage)


def is_refused(error: CasstoreError) -> bool:
    """Say whether this one file can never be read: one with another owner among many readable ones.

    Only where each file has its own mode: a server may refuse all of them for the same reason.
    """
    return isinstance(error, BackendError) and not error.retryable
