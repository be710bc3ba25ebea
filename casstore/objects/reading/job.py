"""What a reader is asked for, and what it finds out meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casstore.errors import IntegrityError
    from casstore.objects.index.located import Located
    from casstore.objects.reading.base_cache import BaseCache


@dataclass(slots=True)
class Job:
    """Objects that are still to be read, by position in `located`: where their bytes belong, and what may be done for them.

    With `elsewhere`, other copies may be read, of a rank below the object's limit. `barred` are the packs in which an
    object cannot be read, by position, for objects that are deltas without a base somewhere; `reasons` says why something
    could not be read. `gone` are packs that the current round of reads found to be absent. `cache` has bases of earlier reads.
    `below` gets the plain bytes of all bases of deltas.
    """

    located: Located
    pending: dict[int, tuple[int, int]]
    buffer: memoryview
    elsewhere: bool
    verify: bool
    limits: dict[int, int] = field(default_factory=dict)
    barred: dict[int, set[int]] = field(default_factory=dict)
    reasons: dict[int, IntegrityError] = field(default_factory=dict)
    misses: Counter[int] = field(default_factory=Counter)
    gone: frozenset[int] = frozenset()
    cache: BaseCache | None = None
    below: dict[int, int] | None = None

    def bar(self, positions: Iterable[int], reason: IntegrityError) -> None:
        """Do not look for objects again where they were located: nothing is wrong with that pack."""
        for at in positions:
            self.reasons[at] = reason
            self.barred.setdefault(at, set()).add(int(self.located.rows["pack"][at]))

    def note(self, positions: Iterable[int], reason: IntegrityError) -> None:
        """Note objects that are damaged where they were located; the index avoids that pack by now."""
        self.reasons.update(dict.fromkeys(positions, reason))
        self.bar([at for at in positions if at in self.barred], reason)
