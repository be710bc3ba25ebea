"""Entries that a listing leaves out because they cannot be read: they are reported, never silently dropped."""

from __future__ import annotations

import errno
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import BackendError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.backend.base import Backend
    from casstore.errors import CasstoreError

_BAD_FILE = frozenset({errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENOTDIR})

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
        self._reported: set[Damage] = set()

    def __call__(self, damage: Damage) -> None:
        """Log what a listing left out."""
        if damage not in self._reported:
            self._reported.add(damage)
            _log.warning("%s", damage)


def is_refused(error: CasstoreError) -> bool:
    """Say whether this one file can never be read: one with another owner among many readable ones.

    Only where each file has its own mode: a server may refuse all of them for the same reason.
    """
    return isinstance(error, BackendError) and not error.retryable


def is_bad_file(backend: Backend, error: CasstoreError) -> bool:
    """Say whether one file on a disk cannot be read: it has bad sectors, or something else is in its place."""
    cause = error.__cause__
    return (
        isinstance(error, BackendError)
        and isinstance(cause, OSError)
        and cause.errno in _BAD_FILE
        and not backend.is_remote
    )


@contextmanager
def bad_file_is_damage(backend: Backend, advice: str = "") -> Iterator[None]:
    """Let a file on a disk that cannot be read be damage, as one with wrong bytes is: others may have what it had."""
    try:
        yield
    except BackendError as error:
        if not is_bad_file(backend, error):
            raise
        raise FormatError(
            f"{error} {advice}".rstrip()
        ) from error  # Invariant 11: the same, of another class.
