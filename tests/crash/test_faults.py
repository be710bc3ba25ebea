"""A fault at every call of every operation: success or an error of casstore's, never wrong data, and a retry completes."""

from __future__ import annotations

import itertools
import logging
import shutil
import uuid
from dataclasses import dataclass, field

import pytest
from fakes import counts
from fakes.faults import FAULTS, Rig
from fakes.posix_model import LOSE_ALL
from fakes.stores import (
    Disk,
    assert_clean,
    commit_inline,
    model_of,
    noise,
    open_on,
    read_folder,
    read_model,
    repeat_randomness,
    small_packs,
    visible,
    write_model,
)

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.errors import CasstoreError, RefNotFound
from casstore.ops.check import check
from casstore.ops.gc.policy import DAY
from casstore.ops.sync import execute, plan_sync
from casstore.store.adding import ingest

THOROUGH = counts.FAULTS > 1
MAX_CALLS = 3000

OLD = model_of(config=b"{}", weights__a=noise(1, 700), weights__b=noise(2, 900))
NEW = model_of(config=b"{}", weights__a=noise(1, 700), weights__c=noise(3, 1500), weights__d=noise(4, 300))
WIDE = model_of(part=OLD.files["weights/b"][0], other=noise(6, 2500))
GONE = model_of(own=noise(7, 900), more=noise(8, 900))

_log = logging.getLogger(__name__)


@dataclass
class Setting:
    """What operations work on: a disk as it was before, folders of models, and another store."""

    disk: Disk
    folders: dict[str, str]
    remote: str
    work: object
    counted: tuple[int, int] = (0, 0)
    numbers: itertools.count = field(default_factory=itertools.count)

    def new_folder(self):
        return str(self.work / f"{next(self.numbers)}")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A store with something to collect in every way: unneeded and sparse packs, replaced and deleted records."""
    top = tmp_path_factory.mktemp("faults")
    models = {"old": OLD, "new": NEW, "wide": WIDE, "gone": GONE}
    folders = {name: write_model(content, top / name) for name, content in models.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "BLOCK", 1024)
        commit_inline(patch)
        repeat_randomness(patch)
        disk = Disk()
        store = open_on(disk, create=True)
        store.add(folders["wide"], ref="models/wide")
        small_packs(patch, 400)
        store.add(folders["old"], ref="models/old")
        store.tag("stable", "models/old")
        store.add(folders["gone"], ref="models/gone")
        for name in ("wide", "gone"):
            store.rm(f"models/{name}")
        for number in range(2):
            store.put_manifest("runs/r", b"%d" % number)
        remote = f"memory://{uuid.uuid4().hex}"
        Store(remote, create=True).add(folders["new"], ref="models/new")
    report = assert_clean(store)
    yield Setting(disk.crash(LOSE_ALL), folders, remote, top / "work", (report.packs, report.records))
    shutil.rmtree(top)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small_packs(monkeypatch, 400)
    monkeypatch.setattr(ingest, "BLOCK", 1024)
    commit_inline(monkeypatch)


# ---- the operations


def add(store, setting):
    store.add(setting.folders["new"], ref="models/new", base="models/old")


def tag(store, setting):
    store.tag("stable", "models/old")
    store.tag("other", "models/old")


def remove(store, setting):
    if value(store, "models/old") is not None:
        store.rm("models/old")


def remove_tag(store, setting):
    if value(store, "tags/stable") is not None:
        store.rm("tags/stable")


def collect(store, setting):
    execute_gc(store, plan_gc(store), wait=0)


def collect_by_age(store, setting):
    execute_gc(store, plan_gc(store, GcPolicy(older_than=DAY)), wait=0)


def pull(store, setting):
    with Store(setting.remote) as other:
        execute(plan_sync(other, store))


def push(store, setting):
    place = f"memory://{uuid.uuid4().hex}"
    with Store(place, create=True) as other:
        try:
            execute(plan_sync(store, other))
            assert value(other, "models/old") == OLD
            assert value(other, "tags/stable") == OLD
        finally:
            assert_clean(other)
            assert value(other, "models/old") in (None, OLD)


def get(store, setting):
    place = setting.new_folder()
    store.get("models/old", place)
    assert read_folder(place) == OLD


def check_all(store, setting):
    report = check(store, read_data=True)
    assert not report.ok or (report.packs, report.records) == setting.counted


STAYS = {"models/old": (OLD, OLD), "tags/stable": (OLD, OLD), "models/gone": (None, None)}

# Each with what refs are before and after; whatever is not named stays.
OPERATIONS = {
    "add": (add, {"models/new": (None, NEW)}),
    "gc": (collect, {}),
    "gc by age": (collect_by_age, {"models/old": (OLD, None)}),
    "tag": (tag, {"tags/other": (None, OLD)}),
    "rm": (remove, {"models/old": (OLD, None)}),
    "rm of a tag": (remove_tag, {"tags/stable": (OLD, None)}),
    "sync into it": (pull, {"models/new": (None, NEW)}),
    "sync out of it": (push, {}),
    "get": (get, {}),
    "check": (check_all, {}),
}
WHOLE = ("add", "gc")
"""Operations of which every call fails once, also in short runs."""
READERS = ("sync out of it", "get", "check")


def value(store, name):
    try:
        return read_model(store, name)
    except RefNotFound:
        return None


@pytest.mark.parametrize("level", ["calls", "backend"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_at_every_call(setting, name, level, monkeypatch):
    operation, changes = OPERATIONS[name]
    allowed = STAYS | changes
    faults = [fault for fault in FAULTS if level == "calls" or fault.number is not None]
    every = 1 if THOROUGH or name in WHOLE else 9
    restart = repeat_randomness(monkeypatch)
    judged, retried, failed, tried = set(), set(), 0, 0
    for k in itertools.count(0, every):
        assert k < MAX_CALLS
        reached = False
        for turn in range(min(counts.FAULTS, len(faults))):
            fault = faults[(k // every + turn) % len(faults)]
            where = f"{fault} at call {k} of {name}"
            restart()
            rig = Rig(setting.disk, level)
            rig.arm(fault, k)
            acknowledged = True
            try:
                operation(rig.store, setting)
            except CasstoreError:
                acknowledged = False
                failed += 1
            assert rig.disk.open_descriptors() == 0, f"a descriptor leaked: {where}"
            tried += rig.was_reached
            reached |= rig.was_reached
            if not acknowledged and not fault.lasting:
                assert not rig.records_after_the_fault(), where
            rig.heal()
            if name in READERS:
                assert visible(rig.disk) == visible(setting.disk), where
            judge(rig.disk, acknowledged, allowed, where, judged)
            state = visible(rig.disk)
            if state not in retried:
                retried.add(state)
                retry(rig.disk, operation, setting, allowed, where)
        if not reached:
            assert acknowledged
            break
    _log.info("%s, %s: %d faults, %d failures, %d states", name, level, tried, failed, len(judged))
    assert failed


def judge(disk, acknowledged, allowed, where, judged):
    """Everything that was acknowledged is there, and stays there when the power fails; equal states are `judged` once."""
    for survivor in (disk, Disk.holding(disk.crash(LOSE_ALL))):
        state = (acknowledged, visible(survivor))
        if state in judged:
            continue
        judged.add(state)
        store = open_on(survivor)
        report = check(store, read_data=True)
        assert report.ok, f"{report.problems}: {where}"
        for ref, (before, after) in allowed.items():
            assert value(store, ref) in ((after,) if acknowledged else (before, after)), f"{ref}: {where}"


def retry(disk, operation, setting, allowed, where):
    operation(open_on(disk), setting)
    judge(disk, True, allowed, f"another go after {where}", set())  # noqa: FBT003  # acknowledged
    if operation is collect:
        assert not plan_gc(open_on(disk)).items, where
