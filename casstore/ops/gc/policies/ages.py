"""Refs that go because nobody wrote them, or used their models, for long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.format import names
from casstore.ops.gc.policies.deletion import Deletion, Kept
from casstore.ops.gc.policy import DAY, HOUR

if TYPE_CHECKING:
    from casstore.format.record import Record
    from casstore.ops.gc.policy import GcPolicy
    from casstore.ops.gc.roots import Roots


def outdated(
    roots: Roots, policy: GcPolicy, kept: Kept, *, now: float, used: dict[bytes, float]
) -> list[Deletion]:
    """Return the refs that `older_than` and `unused_for` delete.

    `now` is by the storage's clock; `used` are last uses of models, by this machine's, in POSIX seconds.
    """
    if policy.older_than is None and policy.unused_for is None:
        return []
    found = []
    written = last_written(roots)
    for heads in kept.others(roots):
        record = heads[-1]
        assert record.target is not None
        age = now - written[record.name]
        last = used.get(record.target, 0.0)
        if policy.older_than is not None and age >= policy.older_than:
            found.append(Deletion(record, f"older than {_age(policy.older_than)}", used=last))
        elif policy.unused_for is not None and min(age, now - last) >= policy.unused_for:
            found.append(Deletion(record, f"not used for {_age(policy.unused_for)}", used=last))
    return found


def last_written(roots: Roots) -> dict[str, float]:
    """Return when each ref was last written, the later of what the storage and the writer say, in POSIX seconds."""
    found: dict[str, float] = {}
    for group in roots.refs.values():
        name = names.parse_key(group[0].key).name
        heads: tuple[Record, ...] = roots.heads.get(name, ())
        stored = [item.written for item in group if item.replaced is None]
        found[name] = max([*stored, *(record.time / 1e9 for record in heads)])
    return found


def _age(seconds: float) -> str:
    count, unit = (seconds / DAY, "day") if seconds >= DAY else (seconds / HOUR, "hour")
    return f"{count:g} {unit}{'' if count == 1 else 's'}"
