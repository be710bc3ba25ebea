"""The store on a disk that crashes at every call: a ref is absent or whole, and there once acknowledged."""

from __future__ import annotations

import errno
import itertools
import os

import pytest

from casstore.errors import CasstoreError, ConfigError, RefNotFound
from casstore.store import ingest
from fakes.posix_model import KEEP_ALL, LOSE_ALL, SimulatedCrash
from fakes.stores import (
    Disk,
    assert_clean,
    commit_inline,
    model_of,
    noise,
    open_on,
    read_model,
    small_packs,
    write_model,
)

SEEDS = int(os.environ.get("CASSTORE_CRASH_SEEDS", "2"))
CHOICES = (LOSE_ALL, KEEP_ALL, *range(SEEDS))
KILLED = "killed"
MAX_CALLS = 2000

OLD = model_of(config=b"{}", weights__a=noise(1, 700), weights__b=noise(2, 900))
NEW = model_of(config=b"{}", weights__a=noise(1, 700), weights__c=noise(3, 1500), weights__d=noise(4, 300))
OTHER = model_of(weights__c=noise(3, 1500), tail=noise(5, 50))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Several packs for a few kilobytes, several blocks for a few files."""
    small_packs(monkeypatch, 800)
    monkeypatch.setattr(ingest, "BLOCK", 1024)


@pytest.fixture
def folders(tmp_path):
    models = {"old": OLD, "new": NEW, "other": OTHER}
    return {name: write_model(content, tmp_path / name) for name, content in models.items()}


@pytest.fixture
def before(folders):
    """A disk with a durable store of one model and one tag."""
    disk = Disk()
    store = open_on(disk, create=True)
    store.add(folders["old"], ref="models/old")
    store.tag("stable", "models/old")
    return disk.crash(LOSE_ALL)


def survivors(disk):
    """Yield (what happened, the disk afterwards): power failures of every kind, and a mere kill."""
    for choice in CHOICES:
        yield choice, disk.crash(choice)
    yield KILLED, disk.kill()


def value(store, name):
    try:
        return read_model(store, name)
    except RefNotFound:
        return None


def run(action, before, k):
    """Stop `action` at call k; return the disk, whether it had returned, and whether k was ever reached."""
    disk = Disk.holding(before.crash(LOSE_ALL), crash_at=k)
    acknowledged = False
    try:
        action(open_on(disk))
        acknowledged = True
        open_on(disk)
    except SimulatedCrash:
        return disk, acknowledged, True
    return disk, acknowledged, False


def outcomes(action, before, names, allowed, *, again=None):
    """Crash `action` at every call. Each ref of `names` must be as before or as after, all of it.

    `allowed` maps a name to its contents (before, after). `again` is what the next process does.
    """
    seen = set()
    for k in itertools.count():
        assert k < MAX_CALLS
        disk, acknowledged, crashed = run(action, before, k)
        for choice, survivor in survivors(disk):
            where = f"call {k} ({disk.calls[-1:]}), {choice}, acknowledged: {acknowledged}"
            store = open_on(Disk.holding(survivor))
            assert_clean(store)
            for name in names:
                old, new = allowed[name]
                found = value(store, name)
                assert found in ((new,) if acknowledged else (old, new)), f"{name} at {where}"
                seen.add((name, acknowledged, found == new))
            if again is not None:
                _go_on(again, survivor, allowed, where)
        if not crashed:
            break
    for name in names:
        old, new = allowed[name]
        if old != new:
            assert {(name, False, False), (name, False, True), (name, True, True)} <= seen
    assert k > 10


def _go_on(again, survivor, allowed, where):
    """The next process does it again; what it acknowledges survives another power failure."""
    disk = Disk.holding(survivor)
    again(open_on(disk))
    last = Disk.holding(disk.crash(LOSE_ALL))
    store = open_on(last)
    assert_clean(store)
    for name, (_, new) in allowed.items():
        assert value(store, name) == new, f"{name} after another go from {where}"


@pytest.mark.parametrize("committer", ["inline", "threaded"])
def test_a_crash_at_every_call_of_an_add(before, folders, committer, monkeypatch):
    if committer == "inline":
        commit_inline(monkeypatch)

    def add(store):
        store.add(folders["new"], ref="models/new", base="models/old", metadata={"step": 1})

    allowed = {"models/old": (OLD, OLD), "tags/stable": (OLD, OLD), "models/new": (None, NEW)}
    outcomes(add, before, allowed, allowed, again=add)


def test_an_add_writes_several_packs(before, folders, monkeypatch):
    """What makes the crashes above worth something."""
    disk = Disk.holding(before.crash(LOSE_ALL))
    store = open_on(disk)
    packs = len(list(store.backend.list("packs/")))
    store.add(folders["new"], ref="models/new")
    assert len(list(store.backend.list("packs/"))) - packs >= 3


def test_a_crash_at_every_call_of_an_add_that_moves_a_ref(before, folders, monkeypatch):
    commit_inline(monkeypatch)

    def add(store):
        store.add(folders["new"], ref="models/old")

    allowed = {"models/old": (OLD, NEW), "tags/stable": (OLD, OLD)}
    outcomes(add, before, allowed, allowed, again=add)


def test_a_crash_at_every_call_of_a_tag_that_moves(before, folders, monkeypatch):
    commit_inline(monkeypatch)
    disk = Disk.holding(before)
    open_on(disk).add(folders["new"], ref="models/new")
    ready = disk.crash(LOSE_ALL)

    def tag(store):
        store.tag("stable", "models/new")

    allowed = {"models/old": (OLD, OLD), "models/new": (NEW, NEW), "tags/stable": (OLD, NEW)}
    outcomes(tag, ready, allowed, allowed, again=tag)


def test_a_crash_at_every_call_of_a_deletion(before, monkeypatch):
    commit_inline(monkeypatch)

    def delete(store):
        store.delete_ref("models/old")

    def delete_again(store):
        if value(store, "models/old") is not None:
            store.delete_ref("models/old")

    allowed = {"models/old": (OLD, None), "tags/stable": (OLD, OLD)}
    seen = set()
    for k in itertools.count():
        disk, acknowledged, crashed = run(delete, before, k)
        for choice, survivor in survivors(disk):
            store = open_on(Disk.holding(survivor))
            assert_clean(store)
            found = value(store, "models/old")
            assert found in ((None,) if acknowledged else (OLD, None)), f"call {k}, {choice}"
            assert value(store, "tags/stable") == OLD
            seen.add((acknowledged, found is None))
            if choice != KILLED:
                # After a mere kill the deletion may be visible and not durable: deleting what is gone
                # is an error that acknowledges nothing.
                _go_on(delete_again, survivor, allowed, f"call {k}, {choice}")
        if not crashed:
            break
    assert seen == {(False, False), (False, True), (True, True)}


def test_a_crash_at_every_call_of_making_a_store(folders, monkeypatch):
    commit_inline(monkeypatch)
    for k in itertools.count():
        disk = Disk(crash_at=k)
        acknowledged = False
        try:
            open_on(disk, create=True)
            acknowledged = True
            open_on(disk)
        except SimulatedCrash:
            pass
        for choice, survivor in survivors(disk):
            if acknowledged and choice != KILLED:
                open_on(Disk.holding(survivor))
            try:
                store = open_on(Disk.holding(survivor))
            except ConfigError:
                assert not acknowledged, f"call {k}, {choice}"
            else:
                assert_clean(store)
            next_disk = Disk.holding(survivor)
            open_on(next_disk, create=True).add(folders["old"], ref="models/old")
            last = open_on(Disk.holding(next_disk.crash(LOSE_ALL)))
            assert_clean(last)
            assert read_model(last, "models/old") == OLD
        if len(disk.calls) < k:
            break
    assert k > 15


def test_a_crash_at_every_call_of_a_merge_of_segments(before, tmp_path, monkeypatch):
    """Segments go one by one once their successor is durable; nothing is ever out of reach."""
    commit_inline(monkeypatch)
    small_packs(monkeypatch, 1 << 20)
    disk = Disk.holding(before.crash(LOSE_ALL))
    store = open_on(disk)
    models, segments = {}, []
    while True:
        name = f"models/m{len(models)}"
        models[name] = model_of(one=noise(100 + len(models), 40))
        folder = write_model(models[name], tmp_path / f"m{len(models)}")
        ready = disk.crash(LOSE_ALL)
        store.add(folder, ref=name)
        segments.append(len(list(store.backend.list("index/"))))
        if segments[-2:] and len(segments) > 1 and segments[-1] < segments[-2]:
            break
    deleted = 0
    for k in itertools.count():
        crashing, acknowledged, crashed = run(lambda store: store.add(folder, ref=name), ready, k)
        for _, survivor in survivors(crashing):
            store = open_on(Disk.holding(survivor))
            assert_clean(store)
            deleted += len(list(store.backend.list("index/"))) < segments[-2]
            for other, content in models.items():
                found = value(store, other)
                assert found == content or (found is None and other == name and not acknowledged)
        if not crashed:
            break
    assert deleted, "the merge was interrupted after it deleted something"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("committer", ["inline", "threaded"])
def test_an_error_at_every_call_of_an_add(before, folders, number, committer, monkeypatch):
    if committer == "inline":
        commit_inline(monkeypatch)
    failed = 0
    for k in itertools.count():
        assert k < MAX_CALLS
        disk = Disk.holding(before.crash(LOSE_ALL))
        store = open_on(disk)
        begin = len(disk.calls)
        disk.errors = {begin + k: number}
        acknowledged = True
        try:
            store.add(folders["new"], ref="models/new", base="models/old")
        except CasstoreError as error:
            acknowledged = False
            failed += 1
            assert str(error)
        reached = len(disk.calls) > begin + k
        where = f"call {k}: {disk.calls[begin + k : begin + k + 1]}"
        assert disk.open_descriptors() == 0, f"a descriptor leaked at {where}"
        disk.errors = {}
        alive = open_on(disk)
        assert_clean(alive)
        found = value(alive, "models/new")
        assert found == NEW if acknowledged else found in (None, NEW), where
        assert read_model(alive, "models/old") == OLD
        if acknowledged:
            lost = open_on(Disk.holding(disk.crash(LOSE_ALL)))
            assert_clean(lost)
            assert value(lost, "models/new") == NEW, where
        open_on(disk).add(folders["new"], ref="models/new", base="models/old")
        open_on(disk).add(folders["other"], ref="models/other")
        last = open_on(Disk.holding(disk.crash(LOSE_ALL)))
        assert_clean(last)
        assert (value(last, "models/new"), value(last, "models/other")) == (NEW, OTHER), where
        if not reached:
            break
    assert failed > 50


def test_an_error_leaves_the_store_object_of_use(before, folders, monkeypatch):
    """A full disk is cleaned up by somebody; the process that met it goes on."""
    commit_inline(monkeypatch)
    disk = Disk.holding(before.crash(LOSE_ALL))
    store = open_on(disk)
    disk.fail("write", errno.ENOSPC, nth=3)
    with pytest.raises(CasstoreError, match="full"):
        store.add(folders["new"], ref="models/new")
    store.add(folders["new"], ref="models/new")
    assert read_model(store, "models/new") == NEW
    assert_clean(open_on(Disk.holding(disk.crash(LOSE_ALL))))
