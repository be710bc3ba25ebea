"""The plan of a collection: what goes, what that frees, and why. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casstore.format import names
from casstore.objects import pack_overhead
from casstore.ops.gc.candidates import Candidates, choose, rows_to_copy
from casstore.ops.gc.policy import DAY, HOUR, WEEK, GcPolicy
from casstore.ops.gc.roots import ListedRecord, trimmable
from casstore.ops.gc.survey import Survey

if TYPE_CHECKING:
    from collections.abc import Collection

    from casstore.backend.base import Entry
    from casstore.format.record import Record
    from casstore.ops.gc.tombstones import ListedTombstone
    from casstore.store.model_store import ModelStore


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One kind of thing: how many there are, the bytes that this collection frees with them, and why they go or stay."""

    what: str
    count: int
    bytes_freed: int
    why: str


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What a collection would do.

    `items` is all of it for people. `refs` are deleted by the policy. `missing` names refs that need objects which
    no pack holds, with their number: they cannot be read any more, and everything else of them is kept.
    """

    items: tuple[PlanItem, ...]
    refs: tuple[str, ...]
    missing: dict[str, int]
    problems: tuple[str, ...]
    two_phases: bool
    policy: GcPolicy
    survey: Survey = field(repr=False, compare=False)
    temporaries: tuple[Entry, ...] = field(repr=False, default=())
    trims: tuple[tuple[ListedRecord, ...], ...] = field(repr=False, default=())
    candidates: Candidates = field(repr=False, default_factory=Candidates)
    outdated: dict[str, Record] = field(repr=False, default_factory=dict)

    @property
    def bytes_freed(self) -> int:
        """Bytes that the collection frees, beside those of the index."""
        return sum(item.bytes_freed for item in self.items)


def plan_gc(
    store: ModelStore,
    policy: GcPolicy | None = None,
    *,
    now: float | None = None,
    by_index: bool = False,
) -> GcPlan:
    """Find out what a collection would remove from a store; nothing is changed and no lock is taken.

    `now` replaces the storage's clock, in POSIX seconds. With `by_index`, the index is believed instead of packs being
    opened: an estimate, which cannot be executed. Raises an IntegrityError that names the ref for anything that
    cannot be read, and BackendError for a store that fails: then nothing may be deleted (invariant 8).
    """
    policy = policy or GcPolicy()
    survey = Survey(store, policy, now=now, by_index=by_index)
    if policy.older_than is not None:
        survey.read_refs_first()
    outdated = outdated_refs(survey, policy)
    survey.left_out = frozenset(outdated)
    survey.look()
    trims = trimmable(survey.roots, policy, survey.now())
    doomed = ripe_packs(survey)
    candidates = choose(survey)
    limit = 0.0 if policy.orphans_now else DAY
    temporaries = tuple(store.backend.list_abandoned(older_than=limit))
    items = [
        _temporaries_item(temporaries),
        PlanItem("refs", len(outdated), 0, _older(policy)),
        PlanItem(
            "records", sum(map(len, trims)), sum(item.size for group in trims for item in group),
            "replaced or deleted for 7 days",
        ),
        _condemned_item(survey, doomed),
        *_candidate_items(survey, candidates),
    ]  # fmt: skip
    missing: dict[str, int] = {}
    for name in survey.mark.absent.values():
        missing[name] = missing.get(name, 0) + 1
    return GcPlan(
        items=tuple(item for item in items if item.count),
        refs=tuple(sorted(outdated)),
        missing=missing,
        problems=tuple(survey.roots.problems) + tuple(_unreadable_packs(survey)),
        two_phases=survey.two_phases,
        policy=policy,
        survey=survey,
        temporaries=temporaries,
        trims=tuple(tuple(group) for group in trims),
        candidates=candidates,
        outdated=outdated,
    )


def outdated_refs(survey: Survey, policy: GcPolicy) -> dict[str, Record]:
    """Return the refs that the policy deletes, with the record by which that was decided."""
    if policy.older_than is None:
        return {}
    now = survey.now()
    found: dict[str, Record] = {}
    for group in survey.roots.refs.values():
        name = names.parse_key(group[0].key).name
        heads = survey.roots.heads.get(name, ())
        if not name.startswith("models/") or not heads or heads[-1].target is None:
            continue
        written = max(item.written for item in group if item.replaced is None)
        newest = max(written, *(record.time / 1e9 for record in heads))
        if now - newest >= policy.older_than:
            found[name] = heads[-1]
    return found


def ripe_packs(survey: Survey, *, alone: bool | None = None, own: Collection[str] = ()) -> set[int]:
    """Return the condemned packs that may go now, as far as the age of their tombstones says.

    The tombstones that were written just now are our `own`.
    """
    now, grace = survey.now(), survey.policy.grace
    waits = survey.two_phases if alone is None else not alone
    if waits and grace > 0:
        ripe = [item for item in survey.tombstones if now - item.written >= grace and item.key not in own]
    else:
        ripe = survey.tombstones
    return {
        survey.packs.number_of(pack) for item in ripe for pack in item.packs if survey.packs.is_listed(pack)
    }


def _temporaries_item(temporaries: Collection[Entry]) -> PlanItem:
    size = sum(entry.size for entry in temporaries)
    return PlanItem("temporary files", len(temporaries), size, "left by writers that ended")


def _older(policy: GcPolicy) -> str:
    days = (policy.older_than or 0.0) / DAY
    return f"older than {days:g} days"


def _condemned_item(survey: Survey, doomed: set[int]) -> PlanItem:
    table = survey.packs.table
    rows = rows_to_copy(survey)
    copied = int(table.sizes[rows].sum(dtype="i8")) + (pack_overhead(len(rows)) if rows.size else 0)
    freed = sum(survey.packs.size(number) for number in doomed) - (copied if doomed else 0)
    return PlanItem("condemned packs", len(doomed), freed, "condemned by an earlier collection")


def _candidate_items(survey: Survey, found: Candidates) -> list[PlanItem]:
    packs = survey.packs
    unneeded = sum(packs.size(number) for number in found.unneeded)
    sparse = sum(packs.size(number) for number in found.sparse) - found.kept_bytes
    share = f"less than {survey.policy.repack:.0%} of them is needed, which is copied"
    needless = "nothing needs them"
    if survey.two_phases and survey.policy.grace > 0:
        later = f"; condemned now, deleted by a collection in {survey.policy.grace / HOUR:g} h"
        return [
            PlanItem("packs", len(found.unneeded), 0, needless + later),
            PlanItem("sparse packs", len(found.sparse), -found.kept_bytes, share + later),
            PlanItem("young packs", len(found.young), 0, _young(survey)),
        ]
    return [
        PlanItem("packs", len(found.unneeded), unneeded, needless),
        PlanItem("sparse packs", len(found.sparse), sparse, share),
        PlanItem("young packs", len(found.young), 0, _young(survey)),
    ]


def _young(survey: Survey) -> str:
    hours = survey.policy.grace / HOUR if survey.two_phases else 1
    return f"stay: younger than {hours:g} h, so an add that is tried again may use them"


def _unreadable_packs(survey: Survey) -> list[str]:
    return [f"{item.error} It stays." for item in survey.packs.unreadable.values()]


def finished_tombstones(survey: Survey) -> list[ListedTombstone]:
    """Return the tombstones of which every pack has been gone for long enough."""
    now = survey.now()
    return [
        item
        for item in survey.tombstones
        if now - item.written >= WEEK and not any(survey.packs.is_listed(pack) for pack in item.packs)
    ]
