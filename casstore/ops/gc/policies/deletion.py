"""A ref that a policy deletes, and what no policy deletes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casstore.format.record import Record
    from casstore.ops.gc.roots import Roots

TAGS = "tags/"
_MODELS = "models/"


@dataclass(frozen=True, slots=True)
class Deletion:
    """A ref that goes, the record that decided it, and why, for people.

    With `at_once`, what only this ref needs is freed by the same collection; else by a later one, and `undelete` works
    until then. `used` is when this machine last used the model, in POSIX seconds, 0 if that is not known.
    """

    record: Record
    why: str
    at_once: bool = False
    used: float = 0.0

    @property
    def name(self) -> str:
        """The ref."""
        return self.record.name


@dataclass(frozen=True, slots=True)
class Kept:
    """What no policy deletes: refs of models that a tag or a pin names, and refs that a running pipeline uses."""

    tagged: frozenset[bytes]
    leased: frozenset[str]

    @classmethod
    def of(cls, roots: Roots, leased: frozenset[str]) -> Kept:
        """Return what the tags of a store and the leases of this machine keep."""
        tagged = (
            record.target
            for name, heads in roots.heads.items()
            if name.startswith(TAGS)
            for record in heads
            if record.target is not None
        )
        return cls(frozenset(tagged), leased)

    def keeps(self, heads: Iterable[Record]) -> bool:
        """Say whether a ref with these newest records stays."""
        return any(record.target in self.tagged or record.name in self.leased for record in heads)

    def others(self, roots: Roots) -> Iterator[tuple[Record, ...]]:
        """Yield the newest records of each ref below `models/` that has a value and may go, the value last."""
        for name, heads in roots.heads.items():
            is_model = name.startswith(_MODELS) and heads and heads[-1].target is not None
            if is_model and not self.keeps(heads):
                yield heads
