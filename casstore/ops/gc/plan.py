"""The plan of a collection: what goes, what that frees, and why. Changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casstore.ops.gc.candidates import Candidates, choose, superfluous, to_copy
from casstore.ops.gc.policies.ages import last_written, outdated
from casstore.ops.gc.policies.deletion import Deletion, Kept
from casstore.ops.gc.policies.size import fit
from casstore.ops.gc.policy import DAY, HOUR, WEEK, GcPolicy
from casstore.ops.gc.roots import ListedRecord, trimmable
from casstore.ops.gc.survey import Survey
from casstore.store.private import require_private

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from casstore.backend.base import Entry
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

    `items` is all of it for people, `deletions` are the refs that policies delete. `missing` names refs that need objects
    which no pack holds, with their number: they cannot be read any more, and everything else of them is kept. `notes` are
    sentences about what cannot be done.
    """

    items: tuple[PlanItem, ...]
    deletions: tuple[Deletion, ...]
    missing: dict[str, int]
    problems: tuple[str, ...]
    two_phases: bool
    policy: GcPolicy
    survey: Survey = field(repr=False, compare=False)
    temporaries: tuple[Entry, ...] = field(repr=False, default=())
    trims: tuple[tuple[ListedRecord, ...], ...] = field(repr=False, default=())
    candidates: Candidates = field(repr=False, default_factory=Candidates)
    notes: tuple[str, ...] = ()

    @property
    def refs(self) -> tuple[str, ...]:
        """The names of the refs that policies delete, in order."""
        return tuple(item.name for item in self.deletions)

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
    cannot be read, and BackendError for a store that fails: then nothing may be deleted (invariant 8). Raises ConfigError
    for a policy that needs a private store, and one that is not.
    """
    policy = policy or GcPolicy()
    if policy.needs_private:
        require_private(store.backend, policy.needs_private)
    survey = Survey(store, policy, now=now, by_index=by_index)
    survey.look()
    deletions, notes = _by_policy(survey)
    trims = trimmable(survey.roots, policy, survey.now())
    doomed = ripe_packs(survey)
    candidates = choose(survey)
    limit = 0.0 if policy.orphans_now else DAY
    temporaries = tuple(store.backend.list_abandoned(older_than=limit))
    items = [
        _temporaries_item(temporaries),
        *_deletion_items(survey, deletions),
        PlanItem(
            "records", sum(map(len, trims)), sum(item.size for group in trims for item in group),
            "replaced or deleted for 7 days",
        ),
        _condemned_item(survey, doomed),
        *_candidate_items(survey, candidates),
    ]  # fmt: skip
    evicted = {item.name for item in deletions if item.at_once}
    missing = Counter(name for name in survey.mark.absent.values() if name not in evicted)
    return GcPlan(
        items=tuple(item for item in items if item.count),
        deletions=tuple(sorted(deletions, key=lambda item: item.name)),
        missing=dict(missing),
        problems=tuple(survey.roots.problems) + tuple(_unreadable_packs(survey)),
        two_phases=survey.two_phases,
        policy=policy,
        survey=survey,
        temporaries=temporaries,
        trims=tuple(tuple(group) for group in trims),
        candidates=candidates,
        notes=notes,
    )


def _by_policy(survey: Survey) -> tuple[list[Deletion], tuple[str, ...]]:
    """Return the refs that the policy deletes, and sentences about what it cannot reach."""
    policy, roots = survey.policy, survey.roots
    if not policy.deletes_refs:
        return [], ()
    with survey.leases() as leased:
        kept = Kept.of(roots, leased)
    used = survey.store.last_use.times()
    going = outdated(roots, policy, kept, now=survey.now(), used=used)
    if policy.max_size is None:
        return going, ()
    found = fit(survey, policy.max_size, kept, going=going, written=last_written(roots), used=used)
    survey.mark.stop_counting()
    evicted = {item.name for item in found.deletions}
    notes: list[str] = []
    if found.excess:
        notes.append(
            f"The store cannot be as small as {_size(policy.max_size)}: what stays whatever its size takes "
            f"{_size(found.excess)} more. That is what tags and pins name, what people have added, and what running pipelines use."
        )
    return [*(item for item in going if item.name not in evicted), *found.deletions], tuple(notes)


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


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count} bytes"


def _temporaries_item(temporaries: Collection[Entry]) -> PlanItem:
    size = sum(entry.size for entry in temporaries)
    return PlanItem("temporary files", len(temporaries), size, "left by writers that ended")


def _deletion_items(survey: Survey, deletions: Sequence[Deletion]) -> list[PlanItem]:
    counts = Counter((item.why, item.at_once) for item in deletions)
    until = "for 7 days, and then" if survey.two_phases else "until the next gc, which"
    later = f"; `casstore undelete` brings them back {until} frees their bytes"
    return [
        PlanItem("refs", count, 0, why if at_once else why + later)
        for (why, at_once), count in sorted(counts.items())
    ]


def _condemned_item(survey: Survey, doomed: set[int]) -> PlanItem:
    freed = sum(survey.packs.size(number) for number in doomed) - (to_copy(survey).packed if doomed else 0)
    return PlanItem("condemned packs", len(doomed), freed, "condemned by an earlier collection")


def _candidate_items(survey: Survey, found: Candidates) -> list[PlanItem]:
    packs = survey.packs
    unneeded = sum(packs.size(number) for number in found.unneeded)
    sparse = sum(packs.size(number) for number in found.sparse) - found.kept_bytes
    share = f"less than {survey.repack:.0%} of them is needed, which is copied"
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
    going = superfluous(survey, once_copied=True)
    return [
        f"{item.error} It stays." for number, item in survey.packs.unreadable.items() if number not in going
    ]


def finished_tombstones(survey: Survey) -> list[ListedTombstone]:
    """Return the tombstones of which every pack has been gone for long enough."""
    now = survey.now()
    return [
        item
        for item in survey.tombstones
        if now - item.written >= WEEK and not any(survey.packs.is_listed(pack) for pack in item.packs)
    ]
