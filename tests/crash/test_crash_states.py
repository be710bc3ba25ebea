"""Crashes in collections, deletions, syncs and adds: whatever of the unsynced the disk keeps, nothing acknowledged is lost."""

from __future__ import annotations

import logging
from contextlib import suppress

import pytest
from fakes import counts
from fakes.collector import condemn, delete_packs, packs_of
from fakes.crash_states import WatchedDisk, survivors
from fakes.operations import (
    NEW,
    OLD,
    OPERATIONS,
    STAYS,
    judge,
    remove,
    retry,
    value,
)
from fakes.posix_model import LOSE_ALL, SimulatedCrash
from fakes.stores import ROOT, Disk, assert_clean, open_on, repeat_randomness

from casstore import GcPolicy, execute_gc, plan_gc
from casstore.errors import CasstoreError
from casstore.ops.check import check

NAMES = ("add", "gc", "gc by age", "rm", "rm of a tag", "tag", "sync into it")

KILL_EVERY = 20 if counts.CRASH_STATES < 1000 else 4
"""Calls between two kills, after which another process does it again."""

pytestmark = pytest.mark.usefixtures("work_small")

_log = logging.getLogger(__name__)


def acting(name, setting, monkeypatch):
    """Return the operation on a disk, with the same random bytes each time, and what it may leave behind."""
    operation, changes = OPERATIONS[name]
    restart = repeat_randomness(monkeypatch)

    def act(disk):
        restart()
        operation(open_on(disk), setting)

    return operation, act, STAYS | changes


@pytest.mark.parametrize("name", NAMES)
def test_crash_states(setting, name, monkeypatch):
    operation, act, allowed = acting(name, setting, monkeypatch)
    count = -(-counts.CRASH_STATES // len(NAMES))
    found, _ = survivors(setting.disk, act, count=count, kill_every=KILL_EVERY)
    judged = set()
    for survivor in found:
        judge(survivor.disk, survivor.acknowledged, allowed, survivor.where, judged)
        retry(survivor.disk, operation, setting, allowed, survivor.where)
    _log.info("%s: %d states taken, %d different", name, count, len(found))
    assert {survivor.acknowledged for survivor in found} == {False, True}


# What a crash loses if these are left out is no loss.
HARMLESS = {
    "LocalWriter._make_name_durable index": "segments are hints (invariant 5)",
    "StoreDirectory._make_directory index": "segments are hints (invariant 5)",
    "StoreDirectory._make_directory gc": "it holds the lock, and tombstones",
    "LocalWriter._make_name_durable gc": "what a lost tombstone names is gone, or condemned once more",
    "LocalBackend.delete_many gc": "a tombstone that comes back names packs that are gone",
    "LocalBackend.delete_many index": "segments are hints (invariant 5)",
    "LocalBackend.delete_many packs": "a pack that comes back goes with the next collection",
}
NAMES_OF_PACKS = "LocalWriter._make_name_durable packs"
NAMES_OF_OTHERS = "LocalBackend.make_durable packs"
RECORDS_OF_OTHERS = "LocalBackend.make_durable refs"
ELSEWHERE = {"add": {NAMES_OF_OTHERS}, "gc": {NAMES_OF_OTHERS, RECORDS_OF_OTHERS, NAMES_OF_PACKS}}
"""Needed where another writer was killed, as below. A collection syncs all packs that it relies on, new ones once more."""


@pytest.mark.parametrize("name", ["add", "gc"])
def test_every_fsync_is_needed(setting, name, monkeypatch):
    operation, act, allowed = acting(name, setting, monkeypatch)
    _, places = survivors(setting.disk, act, count=1)

    def loses(place):
        found, _ = survivors(setting.disk, act, count=40, unsynced=place, kill_every=KILL_EVERY)
        judged = set()
        try:
            for survivor in found:
                judge(survivor.disk, survivor.acknowledged, allowed, survivor.where, judged)
            for survivor in found:
                if survivor.killed:
                    retry(survivor.disk, operation, setting, allowed, survivor.where)
        except (AssertionError, CasstoreError):
            return True
        return False

    needed = places - HARMLESS.keys() - ELSEWHERE[name]
    assert len(needed) > 3
    assert {place for place in sorted(needed) if not loses(place)} == set()


def move(store, setting):
    store.add(setting.folders["new"], ref="models/old")


class RecordedDisk(Disk):
    """Crashes so many calls `past` the one that gives the first record its name: 0 is before that call."""

    past = None

    def _enter(self, name, path=None):
        if name == "link" and path.startswith(f"{ROOT}/refs/") and self.crash_at is None:
            self.crash_at = len(self.calls) + self.past
        return super()._enter(name, path)


@pytest.mark.parametrize(("act", "after"), [(remove, None), (move, NEW)])
def test_a_collection_after_a_killed_writer(setting, act, after):
    """What a ref no longer needs goes only once the record that says so is durable."""
    disk = Disk.holding(setting.disk.crash(LOSE_ALL))
    open_on(disk).rm("tags/stable")
    before = disk.crash(LOSE_ALL)
    seen = []
    for past in range(6):
        disk = RecordedDisk.holding(before.crash(LOSE_ALL))
        disk.past = past
        with suppress(SimulatedCrash):
            act(open_on(disk), setting)
        alive = Disk.holding(disk.kill())
        store = open_on(alive)
        execute_gc(store, plan_gc(store, GcPolicy(orphans_now=True)))
        left = open_on(Disk.holding(alive.crash(LOSE_ALL)))
        assert_clean(left)
        seen.append(value(left, "models/old"))
    # The first one is before the record has its name; the others are after that, whether it is durable or not.
    assert seen == [OLD] + [after] * 5


@pytest.mark.parametrize("syncs", [True, False])
@pytest.mark.parametrize("name", ["add", "gc"])
def test_who_relies_on_a_pack_makes_its_name_durable(setting, name, syncs):
    """Its writer was killed before that. An add takes it for known, a collection deletes the other copy."""
    disk = WatchedDisk.holding(setting.disk.crash(LOSE_ALL))
    first = open_on(disk)
    first.rm("models/aged")
    older = packs_of(first.backend)
    tombstone = condemn(first.backend, older)
    disk.unsynced = NAMES_OF_PACKS
    open_on(disk).add(setting.folders["old"], ref="models/again")
    disk.unsynced = None if syncs else NAMES_OF_OTHERS
    store = open_on(disk)
    if name == "add":
        store.add(setting.folders["old"], ref="models/new")
        delete_packs(first.backend, older)
    else:
        first.backend.delete(tombstone)
        condemn(first.backend, older)
        execute_gc(store, plan_gc(store, GcPolicy(orphans_now=True)))
        assert not set(older) & set(packs_of(store.backend))
    left = open_on(Disk.holding(disk.crash(LOSE_ALL)))
    assert check(left).ok is syncs
