"""What a repair found, and what it did or would do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Health(str, Enum):
    """How a ref is after a repair, or would be.

    WHOLE: nothing of it was missing. HEALED: what was missing is there again. MISSING: something of it stays missing.
    UNREADABLE: nobody knows what its newest record said.
    """

    WHOLE = "whole"
    HEALED = "healed"
    MISSING = "missing"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class RefHealth:
    """The health of one ref.

    `objects` are those that it needs, as far as its description can be read; `healed` and `missing` of them are those of
    which no pack had a good copy. `files` are the paths of the files that stay incomplete. `reason` says what else is wrong.
    """

    name: str
    model_id: str | None
    health: Health
    objects: int = 0
    healed: int = 0
    missing: int = 0
    files: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RecordRepair:
    """A newest record that cannot be read: `key` is its file.

    `model_id` is the value that it had for certain, as `source` knows, and which is written anew; it is None for a ref
    that was deleted. Where nobody knows for certain, `source` is None, and `candidates` are the values that it may have had.
    """

    name: str
    key: str
    reason: str
    source: str | None = None
    model_id: str | None = None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The result of a repair, or with `dry_run`, what it would be.

    `packs` are damaged ones that are quarantined, with the reasons. `sources` says how many objects were taken from
    where: files of this store, and other stores. `segments` are damaged index segments that are replaced, `uncovered` packs
    that get one. `unreachable` are other stores that could not be asked, with the reasons; `problems` are sentences.
    """

    dry_run: bool
    refs: tuple[RefHealth, ...]
    packs: dict[str, str]
    sources: dict[str, int]
    bytes_written: int
    segments: dict[str, str]
    uncovered: int
    records: tuple[RecordRepair, ...]
    unreachable: dict[str, str]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stays missing."""
        return all(ref.health in (Health.WHOLE, Health.HEALED) for ref in self.refs) and not self.problems

    def count(self, health: Health) -> int:
        """Return how many refs are in this state."""
        return sum(ref.health is health for ref in self.refs)
