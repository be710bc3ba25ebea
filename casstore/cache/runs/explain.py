"""Why a run was a miss: what differs from the nearest earlier run of the same pass."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.errors import IntegrityError, RefNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.cache.run_cache import RunCacheManager
    from casstore.format.run import RunKey

_log = logging.getLogger("casstore.cache")

_LOOKED_AT = 200
"""Earlier runs that are compared, the newest first."""

_ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of a run key that differs; "(absent)" where it was or is missing."""

    field: str
    earlier: Any
    now: Any


@dataclass(frozen=True, slots=True)
class Explanation:
    """The nearest earlier run, "" if there is none, and what differs; nothing differs if it should be a hit."""

    run: str
    pass_name: str
    nearest: str
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        if not self.nearest:
            return f"No earlier run of {self.pass_name} is recorded."
        if not self.differences:
            return f"The run {self.nearest} has the same key: check whether its output is still there."
        listed = "; ".join(f"{item.field}: {item.earlier!r} → {item.now!r}" for item in self.differences)
        return f"Compared with the run {self.nearest} of {self.pass_name}: {listed}"


def explain_run(runs: RunCacheManager, name: str, *, key: RunKey | None = None) -> Explanation:
    """Compare a run, recorded or known by its `key`, with earlier runs. Raises RefNotFound for neither."""
    recorded = runs.load_run(name)
    if recorded is not None:
        name, key = recorded.name, recorded.key
    if key is None:
        raise RefNotFound(f"No run named {name!r}.")
    document = key.document()
    nearest: tuple[int, str, tuple[Difference, ...]] | None = None
    for row in runs.list_runs(pass_name=key.pass_name, limit=_LOOKED_AT):
        if row.name == name or (recorded is not None and row.started > recorded.started):
            continue
        try:
            other = runs.load_run(row.name)
        except IntegrityError as error:
            # Invariant 13: one damaged run does not hide the others.
            _log.error("The run %s is damaged and was not compared: %s", row.name, error)  # for people
            continue
        if other is None:
            continue
        found = tuple(compare(other.key.document(), document))
        if nearest is None or len(found) < nearest[0]:
            nearest = (len(found), row.name, found)
    if nearest is None:
        return Explanation(name, key.pass_name, "", ())
    return Explanation(name, key.pass_name, nearest[1], nearest[2])


def compare(earlier: Any, now: Any, field: str = "") -> Iterator[Difference]:
    """Yield the innermost fields in which two plain values differ."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in sorted(earlier.keys() | now.keys()):
            inner = f"{field}.{key}" if field else key
            yield from compare(earlier.get(key, _ABSENT), now.get(key, _ABSENT), inner)
    elif isinstance(earlier, list) and isinstance(now, list) and len(earlier) == len(now):
        for at, (one, other) in enumerate(zip(earlier, now, strict=True)):
            yield from compare(one, other, f"{field}[{at}]")
    elif earlier != now and repr(earlier) != repr(now):
        yield Difference(field, earlier, now)
