"""Makes a private store fit a size: chooses the cache entries that go for it, and how many packs are rewritten."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from casstore.format import names
from casstore.format import record as record_format
from casstore.objects import INDEX_PREFIX, pack_overhead
from casstore.ops.gc.candidates import choose, repack_to_free, to_copy, unmovable
from casstore.ops.gc.policies.deletion import Deletion
from casstore.ops.gc.policies.entries import costs, is_entry, read_runs
from casstore.ops.gc.policies.eviction import Holders, victims
from casstore.ops.gc.policies.reach import Reach
from casstore.ops.gc.roots import trimmable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from casstore.format.record import Record
    from casstore.ops.gc.policies.deletion import Kept
    from casstore.ops.gc.survey import Survey

_SEGMENT = 4 << 10
_INDEX_ROW = 80
"""What an index segment takes beside its rows, and for each of them, at most, as a rule."""

MADE_AGAIN = "to fit the size: a recorded run can make it again"
LAST_USED = "to fit the size: not used for the longest time"


@dataclass(frozen=True, slots=True)
class Fit:
    """The refs that go so that a store fits, and by how many bytes it will be too large all the same."""

    deletions: tuple[Deletion, ...] = ()
    excess: int = 0


@dataclass(slots=True)
class _Group:
    """The refs of one model, all of which are cache entries: the model's bytes go with the last of them."""

    refs: list[Record]
    used: float = 0.0
    is_outdated: bool = True


def fit(
    survey: Survey,
    max_size: int,
    kept: Kept,
    *,
    going: Iterable[Deletion],
    written: Mapping[str, float],
    used: Mapping[bytes, float],
) -> Fit:
    """Choose the cache entries that must go so that packs, index and records take `max_size` bytes at most.

    `going` are refs that other policies delete: entries among them go first. `written` are the times of refs, `used` of
    models. Afterwards what the chosen entries alone need is not needed any more, and `survey.repack` is such that the store fits.
    """
    going = list(going)
    outdated = {item.name: item.why for item in going}
    small = _small_files(survey) + sum(_deletion_bytes(item.record) for item in going)
    if _packs_after(survey) + small <= max_size:
        return Fit()
    # As on a disk that is nearly full, leftovers of failed adds go, however young they are.
    survey.is_short = True
    groups = _groups(survey, kept, outdated, written=written, used=used)
    entries = {record.name for group in groups.values() for record in group.refs}
    needed = _needed(survey)
    reach = Reach(survey)
    others = reach.mask(chain.from_iterable(needed[name] for name in needed.keys() - entries))
    held = [
        reach.of(chain.from_iterable(needed[record.name] for record in group.refs))
        for group in groups.values()
    ]
    holders = Holders(held, sizes=reach.sizes, kept=others)
    seconds = costs(
        read_runs(survey.roots), groups.keys(), _targets(survey, without=entries | outdated.keys())
    )
    order = victims(
        holders,
        costs=np.array(
            [
                0.0 if group.is_outdated else seconds.get(model, np.nan)
                for model, group in groups.items()
            ]
        ),
        used=np.array([group.used for group in groups.values()]),
    )  # fmt: skip
    # What remains if every pack is rewritten.
    least = int(reach.sizes[others | holders.held()].sum()) + _unmovable_bytes(survey) + small
    models = list(groups)
    chosen: list[int] = []
    deletions: list[Deletion] = []
    while True:
        while least > max_size and (found := next(order, None)) is not None:
            number, freed = found
            chosen.append(number)
            group = groups[models[number]]
            more = sum(_deletion_bytes(record) for record in group.refs if record.name not in outdated)
            small += more
            least += more - freed
            why = MADE_AGAIN if models[number] in seconds else LAST_USED
            last = used.get(models[number], 0.0)
            deletions += [
                Deletion(record, outdated.get(record.name, why), at_once=not survey.two_phases, used=last)
                for record in group.refs
            ]
        if survey.two_phases:
            # What they need stays readable for a while, and a collection meanwhile does not count it.
            return Fit(tuple(deletions), max(0, least - max_size))
        survey.release((record for item in deletions for record in needed[item.name]), holders.freed(chosen))
        excess = _packs_after(survey) + small - max_size
        if excess > 0:
            repack_to_free(survey, excess)
            excess = _packs_after(survey) + small - max_size
        if excess <= 0 or len(chosen) == len(models):
            return Fit(tuple(deletions), max(0, excess))
        least = max_size + excess


def _packs_after(survey: Survey) -> int:
    """Return what packs take after a collection, with what fresh ones add to the index."""
    found = choose(survey)
    packs = survey.packs
    going = {*found.unneeded, *found.sparse, *survey.condemned()}
    copied = to_copy(survey)
    kept = sum(packs.size(number) for number in packs.numbers() if number not in going)
    kept += found.kept_bytes + copied.packed
    rows = found.kept_frames + len(copied.rows)
    return kept + (rows * _INDEX_ROW + _SEGMENT if rows else 0)


def _small_files(survey: Survey) -> int:
    """Return what the index and the records take, without records that are trimmed."""
    index = sum(entry.size for entry in survey.store.backend.list(INDEX_PREFIX))
    records = sum(item.size for group in survey.roots.refs.values() for item in group)
    trimmed = trimmable(survey.roots, survey.policy, survey.now())
    return index + records - sum(item.size for group in trimmed for item in group)


def _deletion_bytes(record: Record) -> int:
    """Return what the record takes that deletes the ref of another one."""
    deletion = replace(
        record, writer=platform.node(), target=None, manifest=None, inline=None, base=None, metadata={}, packs=(),
        origin=None, extra={},
    )  # fmt: skip
    return len(record_format.encode(deletion))


def _unmovable_bytes(survey: Survey) -> int:
    """Return what packs take that stay whatever goes, and the headers of all others."""
    packs = survey.packs
    stay = sum(packs.size(number) for number in unmovable(survey))
    return stay + pack_overhead(0) * len(packs.numbers())


def _groups(
    survey: Survey,
    kept: Kept,
    outdated: Collection[str],
    *,
    written: Mapping[str, float],
    used: Mapping[bytes, float],
) -> dict[bytes, _Group]:
    """Return the models of which every ref is a cache entry that may go, with those refs, the least recently used first."""
    groups: dict[bytes, _Group] = {}
    others: set[bytes] = set()
    may_go = {heads[-1].name for heads in kept.others(survey.roots) if is_entry(heads)}
    for name, heads in survey.roots.heads.items():
        if not name.startswith("models/") or not heads or heads[-1].target is None:
            continue
        targets = {record.target for record in heads if record.target is not None}
        if name not in may_go or len(targets) > 1:
            others |= targets
            continue
        group = groups.setdefault(heads[-1].target, _Group([]))
        group.refs.append(heads[-1])
        group.used = max(group.used, written[name], used.get(heads[-1].target, 0.0))
        group.is_outdated &= name in outdated
    found = [(model, group) for model, group in groups.items() if model not in others]
    return dict(sorted(found, key=lambda item: (item[1].used, item[0])))


def _needed(survey: Survey) -> dict[str, list[Record]]:
    """Return the records of each ref that count: where values stay readable for a while, only the newest ones do."""
    found: dict[str, list[Record]] = {}
    for record in survey.roots.records.values():
        if not survey.two_phases or record in survey.roots.heads.get(record.name, ()):
            found.setdefault(record.name, []).append(record)
    return found


def _targets(survey: Survey, *, without: set[str]) -> set[bytes]:
    """Return the models that all other refs name."""
    return {
        record.target
        for name, heads in survey.roots.heads.items()
        if names.names_model(name) and name not in without
        for record in heads
        if record.target is not None
    }
