"""Carries out a collection: what needs no room first, then packs, and last what only makes look-ups cheaper."""

from __future__ import annotations

import contextlib
import enum
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from casstore.backend.oserrors import is_disk_full
from casstore.errors import BackendError, ConfigError, ConflictError
from casstore.format import marks
from casstore.ops.gc.candidates import Candidates, choose
from casstore.ops.gc.plan import GcPlan, finished_tombstones, ripe_packs
from casstore.ops.gc.policies.deletion import TAGS
from casstore.ops.gc.policy import DAY, WEEK
from casstore.ops.gc.roots import trim
from casstore.ops.gc.sweep import Sweep
from casstore.refs.refs import Refs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casstore.backend.base import Backend
    from casstore.ops.gc.policies.deletion import Deletion
    from casstore.ops.gc.survey import Survey
    from casstore.store.model_store import ModelStore

LOCK_WAIT = 60.0
"""Seconds for which a collection waits until nobody publishes."""

BUSY_PAUSE = 10.0
"""Seconds between condemning packs and looking again where others hold the lock.

Acknowledged records are safe without it. A writer that dies right after it put its record would leave one that cannot be read.
"""

_POLL = 0.1
_DELETIONS = 16

_log = logging.getLogger("casstore")


class Mode(enum.Enum):
    """Who else may be publishing while packs are deleted."""

    ALONE = "alone"
    BUSY = "busy"
    """Others hold the lock: what they may have just written stays."""
    TWO_PHASES = "two-phases"
    """Others may work without the lock: packs go some time after their tombstone."""


@dataclass(slots=True)
class GcReport:
    """What a collection did. `bytes_freed` are those of packs, temporary files and records, less what was written.

    `bytes_condemned` go with a later collection. `kept` are condemned packs that had to stay, with the reason; `notes` are
    sentences about what the policy could not reach.
    """

    temporaries: int = 0
    refs_deleted: list[str] = field(default_factory=list)
    records_trimmed: int = 0
    packs_deleted: int = 0
    packs_condemned: int = 0
    bytes_freed: int = 0
    bytes_written: int = 0
    bytes_condemned: int = 0
    mode: str = ""
    missing: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing was found that somebody should look after."""
        return not (self.missing or self.problems or self.kept)


def execute_gc(
    store: ModelStore, plan: GcPlan, *, wait: float = LOCK_WAIT, tell: Callable[[str], None] | None = None
) -> GcReport:
    """Carry out a plan for this store. Everything is looked at once more before anything is deleted.

    Writers may work meanwhile; what they acknowledge stays. On a local store packs go while nobody publishes: that is
    waited for, `wait` seconds at most, and `tell` is given a sentence about it. Raises as `plan_gc` does; whatever
    is left then is found again by the next collection.
    """
    if plan.survey.store is not store:
        raise ConfigError(f"This plan is of {plan.survey.store!r}, not of {store!r}.")
    if plan.survey.by_index:
        raise ConfigError(
            "This plan rests on the index alone, which is enough for an estimate only: plan again."
        )
    started = time.perf_counter()
    report = GcReport(missing=dict(plan.missing), problems=list(plan.problems), notes=list(plan.notes))
    survey = plan.survey
    _remove_temporaries(store, plan, report)
    report.records_trimmed, size = trim(store, plan.trims)
    report.bytes_freed += size
    try:
        _delete_refs(store, plan, report)
    except BackendError as error:
        if not is_disk_full(error):
            raise
        # Invariant 13: with what is freed now, another collection can delete them.
        report.problems.append(f"Refs could not be deleted: {error}")
    say = tell or _log.info
    deleted: list[bytes] = []
    try:
        # What frees space without writing comes before what must be copied.
        _sweep(survey, plan.candidates, report, deleted, sparse=False, wait=wait, say=say)
        if plan.candidates.sparse:
            _sweep(survey, plan.candidates, report, deleted, sparse=True, wait=wait, say=say)
    finally:
        if deleted:
            survey.packs.forget(deleted, report.problems.append)
        store.backend.keep_spare_room()
    _remove_finished(store.backend, survey)
    _remove_old_notes(store.backend, survey)
    _forget_uses(store, survey)
    report.seconds = time.perf_counter() - started
    return report


def _remove_temporaries(store: ModelStore, plan: GcPlan, report: GcReport) -> None:
    if not plan.temporaries:
        return
    there = {entry.key for entry in store.backend.list_temporaries()}
    for entry in plan.temporaries:
        if entry.key in there:
            # Invariant 2: its writer is dead, or silent for so long, and it never had its final name.
            store.backend.remove_temporary(entry.key)
            report.temporaries += 1
            report.bytes_freed += entry.size


def _delete_refs(store: ModelStore, plan: GcPlan, report: GcReport) -> None:
    if not plan.deletions:
        return
    refs = Refs(store.backend, store.machine)
    # Somebody may have tagged or pinned a model since.
    tagged = {record.target for record in refs.values(TAGS, strict=True).values()}
    for start in range(0, len(plan.deletions), _DELETIONS):
        # For a few at a time nobody can begin to use one of them.
        with plan.survey.leases() as leased:
            for item in plan.deletions[start : start + _DELETIONS]:
                if item.name in leased or item.record.target in tagged:
                    continue
                deletion = refs.draft(item.name, target=None)
                if not _is_unchanged(store, refs, item) or deletion.seq != item.record.seq + 1:
                    continue  # Somebody has written it, or deleted it, or used its model.
                store.backend.in_spare_room(partial(refs.put, deletion))
                if refs.value(item.name) is None:
                    # Else somebody has written it at this moment, which wins over a deletion (§9).
                    report.refs_deleted.append(item.name)


def _is_unchanged(store: ModelStore, refs: Refs, item: Deletion) -> bool:
    """Say whether a ref has the value of the plan, and nobody has used its model since."""
    value, target = refs.value(item.name), item.record.target
    assert target is not None
    return (
        value is not None
        and value.write_id == item.record.write_id
        and store.last_use.time(target) <= item.used
    )


def _sweep(
    survey: Survey,
    planned: Candidates,
    report: GcReport,
    deleted: list[bytes],
    *,
    sparse: bool,
    wait: float,
    say: Callable[[str], None],
) -> None:
    """Condemn the planned packs of one kind, and delete what may go of all that is condemned."""
    if not (planned.sparse if sparse else planned.unneeded) and (sparse or not ripe_packs(survey)):
        return
    sweep = Sweep(survey)
    survey.look()
    numbers = _still(survey, planned, sparse=sparse)
    if not numbers and (sparse or not ripe_packs(survey)):
        return
    try:
        # Before the lock is taken, so that nobody waits for it.
        sweep.prepare(numbers)
    except BackendError as error:
        if not sparse:
            raise
        # Invariant 13: rewriting packs only saves space. The disk may be full.
        report.problems.append(f"Packs that are mostly unneeded stay as they are: {error}")
        return
    with _mode(survey.store.backend, wait, say) as found:
        mode = found
        if mode is Mode.TWO_PHASES and not survey.two_phases:
            # The lock does not work here, or somebody has left a marker since.
            survey.work_in_two_phases()
            survey.look()
            numbers = _still(survey, planned, sparse=sparse)
        if mode is Mode.BUSY:
            numbers &= {number for number in numbers if _age(survey, number) >= DAY}
        sweep.condemn({survey.packs.id_of(number) for number in numbers})
        if mode is Mode.BUSY and numbers:
            # A writer that had just checked its packs puts its record meanwhile; that record is read below.
            time.sleep(min(wait, BUSY_PAUSE))
        sweep.look()
        if mode is Mode.ALONE and survey.store.backend.has_lockless_writers():
            # Invariant 10: the lock says nothing about them, so these packs wait as on a remote.
            mode = Mode.TWO_PHASES
            survey.work_in_two_phases()
        doomed = ripe_packs(survey, alone=mode is not Mode.TWO_PHASES, own=sweep.own)
        if mode is Mode.BUSY:
            doomed = {number for number in doomed if _age(survey, number) >= DAY}
        try:
            sweep.finish(doomed)
        finally:
            deleted += sweep.deleted
            report.packs_deleted += len(sweep.deleted)
            report.bytes_written += sweep.bytes_written
            report.bytes_freed += sum(sweep.deleted.values()) - sweep.bytes_written
    report.mode = mode.value
    waiting = [number for number in numbers - doomed if survey.packs.is_listed(survey.packs.id_of(number))]
    report.packs_condemned += len(waiting)
    report.bytes_condemned += sum(survey.packs.size(number) for number in waiting)
    report.kept.update((pack.hex(), reason) for pack, reason in sweep.kept.items())


def _still(survey: Survey, planned: Candidates, *, sparse: bool) -> set[int]:
    """Return the planned packs that are candidates still."""
    found = choose(survey)
    now = found.sparse if sparse else found.unneeded
    return set(planned.sparse if sparse else planned.unneeded) & set(now)


def _age(survey: Survey, number: int) -> float:
    age = survey.now() - survey.packs.modified(number)
    return age if age == age else 0.0  # noqa: PLR0124  # nan: the storage has no clock


@contextlib.contextmanager
def _mode(backend: Backend, wait: float, say: Callable[[str], None]) -> Iterator[Mode]:
    """Wait until nobody publishes, `wait` seconds at most, and keep it so; say who else may be at work."""
    until = time.monotonic() + wait
    told = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                # The file that is locked may have to be made.
                alone = backend.in_spare_room(
                    lambda: stack.enter_context(backend.publish_lock(exclusive=True, blocking=False)),
                    last=True,
                )
            except ConflictError:  # noqa: PERF203  # it waits anyway
                # Invariant 10: the lock only saves time.
                if time.monotonic() >= until:
                    mode = Mode.BUSY
                    break
                if not told:
                    say(f"Waiting until nobody adds to {backend.url}, {wait:.0f} s at most.")
                    told = True
                time.sleep(_POLL)
            else:
                mode = Mode.ALONE if alone else Mode.TWO_PHASES
                break
        yield mode


def _forget_uses(store: ModelStore, survey: Survey) -> None:
    """Forget when models were used that no ref names any more."""
    named = {record.target for heads in survey.roots.heads.values() for record in heads}
    for model_id in store.last_use.times().keys() - named:
        store.last_use.forget(model_id)


def _remove_finished(backend: Backend, survey: Survey) -> None:
    """Delete tombstones that have done their work: no listing and no index may name their packs any more."""
    for item in finished_tombstones(survey):
        if not any(survey.packs.exists(pack) for pack in item.packs):
            # Invariant 5: what it condemned is gone, for longer than any listing can lag behind.
            backend.delete(item.key)


def _remove_old_notes(backend: Backend, survey: Survey) -> None:
    """Delete quarantine notes on packs that are gone."""
    for number in survey.quarantined:
        pack = survey.packs.id_of(number)
        if survey.packs.is_listed(pack):
            continue
        key = marks.quarantine_key(pack)
        try:
            age = survey.now() - backend.stat(key).modified
            if age >= WEEK and not survey.packs.exists(pack):
                # Invariant 9: there is no such pack that anybody could rely on.
                backend.delete(key)
        except BackendError as error:
            # Invariant 13: the note stays, which does no harm.
            _log.debug("%s could not be removed: %s", key, error)
