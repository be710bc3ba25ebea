"""The operations of a store, on a small one with something to collect in every way, and what each may leave behind."""

from __future__ import annotations

import itertools
import shutil
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest
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
from casstore.errors import BackendError, RefNotFound
from casstore.ops.check import check
from casstore.ops.gc.policy import DAY
from casstore.ops.sync import execute, plan_sync
from casstore.store.adding import blocks

OLD = model_of(config=b"{}", weights__a=noise(1, 700), weights__b=noise(2, 900))
NEW = model_of(config=b"{}", weights__a=noise(1, 700), weights__c=noise(3, 1500), weights__d=noise(4, 300))
WIDE = model_of(part=OLD.files["weights/b"][0], other=noise(6, 2500))
AGED = model_of(own=noise(9, 300))
GONE = model_of(own=noise(7, 900), more=noise(8, 900))


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


@contextmanager
def make_setting(top):
    """Make a store with something to collect in every way: unneeded and sparse packs, replaced and deleted records."""
    models = {"old": OLD, "aged": AGED, "new": NEW, "wide": WIDE, "gone": GONE}
    folders = {name: write_model(content, top / name) for name, content in models.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 1024)
        commit_inline(patch)
        repeat_randomness(patch)
        disk = Disk()
        store = open_on(disk, create=True)
        store.add(folders["wide"], ref="models/wide")
        small_packs(patch, 400)
        store.add(folders["old"], ref="models/old")
        store.tag("stable", "models/old")
        store.add(folders["aged"], ref="models/aged")
        store.add(folders["gone"], ref="models/gone")
        for name in ("wide", "gone"):
            store.rm(f"models/{name}")
        for number in range(2):
            store.put_manifest("runs/r", b"%d" % number)
        remote = f"memory://{uuid.uuid4().hex}"
        Store(remote, create=True).add(folders["new"], ref="models/new")
    report = assert_clean(store)
    assert {item.what for item in plan_gc(store).items} == {"records", "packs", "sparse packs"}
    yield Setting(disk.crash(LOSE_ALL), folders, remote, top / "work", (report.packs, report.records))
    shutil.rmtree(top)


def work_small(monkeypatch):
    """Let packs and blocks be small, and calls come in one order."""
    small_packs(monkeypatch, 400)
    monkeypatch.setattr(blocks, "BLOCK", 1024)
    commit_inline(monkeypatch)


# ---- the operations


def add(store, setting):
    store.add(setting.folders["new"], ref="models/new", base="models/old")


def tag(store, setting):
    store.tag("stable", "models/old")
    store.tag("other", "models/old")


def remove(store, setting):
    with suppress(RefNotFound):  # deleted already, and durably
        store.rm("models/old")


def remove_tag(store, setting):
    with suppress(RefNotFound):
        store.rm("tags/stable")


def collect(store, setting):
    execute_gc(store, plan_gc(store), wait=0)


def collect_by_age(store, setting):
    """A disk without room for a deletion is a problem in the report, and no error: then the ref may be there still."""
    report = execute_gc(store, plan_gc(store, GcPolicy(older_than=DAY)), wait=0)
    left = [problem for problem in report.problems if problem.startswith("Refs could not be deleted")]
    if left:
        raise BackendError(left[0])


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


STAYS = {
    "models/old": (OLD, OLD),
    "models/aged": (AGED, AGED),
    "tags/stable": (OLD, OLD),
    "models/gone": (None, None),
}

# Each with what refs are before and after; whatever is not named stays.
OPERATIONS = {
    "add": (add, {"models/new": (None, NEW)}),
    "gc": (collect, {}),
    "gc by age": (collect_by_age, {"models/aged": (AGED, None)}),
    "tag": (tag, {"tags/other": (None, OLD)}),
    "rm": (remove, {"models/old": (OLD, None)}),
    "rm of a tag": (remove_tag, {"tags/stable": (OLD, None)}),
    "sync into it": (pull, {"models/new": (None, NEW)}),
    "sync out of it": (push, {}),
    "get": (get, {}),
    "check": (check_all, {}),
}
READERS = ("sync out of it", "get", "check")


def value(store, name):
    try:
        return read_model(store, name)
    except RefNotFound:
        return None


def judge(disk, acknowledged, allowed, where, judged, *, syncs=True):
    """Everything that was acknowledged is there, and stays there when the power fails; equal states are `judged` once.

    Without `syncs`, the file system refused every fsync of a directory, as some do that have none.
    """
    for survivor in (disk, Disk.holding(disk.crash(LOSE_ALL))) if syncs else (disk,):
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
    store = open_on(disk)
    # It finds packs that a killed writer left without a segment, and perhaps without a durable name.
    store.objects._index.read_uncovered()
    operation(store, setting)
    judge(disk, True, allowed, f"another go after {where}", set())  # acknowledged
    if operation is collect:
        assert not plan_gc(open_on(disk)).items, where
