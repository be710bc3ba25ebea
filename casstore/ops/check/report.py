"""The report of a check: each problem with its place, and counts of what was examined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casstore.errors import BackendError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.ops.check.reading import DataRead
    from casstore.ops.leftovers import Leftovers

_FOREIGN_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, and what."""

    key: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Counts of what was examined, and every problem found; `ok` if there is none. Leftovers are no problem.

    `deltas` of the frames need bases; of those, `deltas_without_bases` lack one, so they are no copies of their objects.
    `data` says how far the bytes of packs were read, None if they were not asked for. `apart` are damaged packs that have a
    quarantine note, if all that refs need is whole in other packs: no problem, but a collector's work. `notes` are no problem either, but somebody may wonder: the mark of a private store that is another machine's.
    `foreign` are the first of `foreign_files` files that are not casstore's and are ignored.
    """

    packs: int
    frames: int
    segments: int
    records: int
    models: int
    bytes_read: int
    read_data: bool
    problems: tuple[Problem, ...]
    leftovers: Leftovers
    deltas: int = 0
    deltas_without_bases: int = 0
    data: DataRead | None = None
    apart: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()
    foreign: tuple[Problem, ...] = ()
    foreign_files: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(slots=True)
class Progress:
    """The report while it is being made."""

    packs: int = 0
    frames: int = 0
    segments: int = 0
    records: int = 0
    models: int = 0
    bytes_read: int = 0
    deltas: int = 0
    deltas_without_bases: int = 0
    problems: list[Problem] = field(default_factory=list)
    apart: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    foreign: list[Problem] = field(default_factory=list)
    foreign_files: int = 0

    def note_foreign(self, key: str) -> None:
        """Note a file that is not casstore's."""
        self.foreign_files += 1
        if len(self.foreign) < _FOREIGN_SHOWN:
            self.foreign.append(
                Problem(key, f"{key} is not a file of the store and is ignored. Move it out.")
            )

    def attempt(self, key: str, action: Callable[[], None], *, apart: bool = False) -> bool:
        """Run `action`; note damage and go on, so that one report names all of it.

        Damage of a pack that is set `apart` is kept by itself, until it is known whether anything needs that pack.
        """
        try:
            action()
        except (IntegrityError, BackendError) as error:
            # Invariant 8: what cannot be read is in the report, never skipped.
            found = self.apart if apart and isinstance(error, IntegrityError) else self.problems
            found.append(Problem(key, str(error)))
            return False
        return True
