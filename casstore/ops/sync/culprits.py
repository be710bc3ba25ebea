"""Refs that a sync leaves out because they cannot be read: the first is raised, or all are reported in the end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from casstore.errors import IntegrityError
from casstore.objects import Damage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.errors import CasstoreError


class Culprits:
    """Refs that are left out. Safe in threads: single list operations only."""

    def __init__(self, *, keep_going: bool) -> None:
        self.keep_going = keep_going
        self.found: list[Damage] = []

    def blame(self, name: str, error: CasstoreError) -> None:
        """Note why a ref is left out; raise the error unless the sync keeps going."""
        if not self.keep_going:
            raise error
        self.found.append(Damage(name, "", str(error)))

    @contextmanager
    def about(self, name: str) -> Iterator[None]:
        """Attribute damage inside the block to a ref. A store that fails is an error for all (invariant 8)."""
        try:
            yield
        except IntegrityError as error:
            # Invariant 11: no error is lost: it is raised or reported.
            self.blame(name, error)
