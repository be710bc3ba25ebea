"""The store on a disk that crashes at every call: a ref is absent or whole, and there once acknowledged."""

from __future__ import annotations

import errno
import itertools

import pytest
from fakes.counts import CRASH_SEEDS
from fakes.posix_model import KEEP_ALL, LOSE_ALL, SimulatedCrash
from fakes.stores import (
    Disk,
    assert_clean,
    commit_inline,
    model_of,
    noise,
    open_on,
    read_model,
    repeat_randomness,
    small_packs,
    visible,
    write_model,
)

from casstore.errors import CasstoreError, ConfigError, RefNotFound
from casstore.store.adding import blocks

THOROUGH = CRASH_SEEDS > 2
CHOICES = (LOSE_ALL, KEEP_ALL, *range(CRASH_SEEDS))
KILLED = "killed"
MAX_CALLS = 2000

OLD = model_of(config=b"{}", weights__a=noise(1, 700), weights__b=noise(2, 900))
NEW = model_of(config=b"{}", weights__a=noise(1, 700), weights__c=noise(3, 1500), weights__d=noise(4, 300))
OTHER = model_of(weights__c=noise(3, 1500), tail=noise(5, 50))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Several packs for a few kilobytes, several blocks for a few files."""
    small_packs(monkeypatch, 400)
    monkeypatch.setattr(blocks, "BLOCK", 1024)


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


def survivors(disk, choices=CHOICES):
    """Yield (what happened, the disk afterwards): power failures of every kind, and a mere kill."""
    for choice in choices:
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


class Crashes:
    """Stops an action at every call, or at some, and judges every state that a disk can be left in.

    Equal states are judged once: with `restart`, runs repeat the same random bytes, so that they recur.
    """

    def __init__(self, before, *, restart=None, every=1, after_kill=True, inspect=None):
        self.before = before
        self.restart = restart
        self.every = every
        self.after_kill = after_kill
        self.inspect = inspect
        self.outcomes = set()
        self._judged = set()
        self._continued = set()

    def of(self, action, allowed, *, again=None):
        """`allowed` maps a ref to its contents before and after; `again` is what the next process does."""
        for k in itertools.count(0, self.every):
            assert k < MAX_CALLS
            if self.restart:
                self.restart()
            disk, acknowledged, crashed = run(action, self.before, k)
            lost = visible(disk.crash(LOSE_ALL))
            for choice, survivor in survivors(disk):
                where = f"call {k} ({disk.calls[-1:]}), {choice}, acknowledged: {acknowledged}"
                self._judge(survivor, acknowledged, allowed, where)
                if again is not None and (self.after_kill or choice != KILLED):
                    self._go_on(again, survivor, lost if choice == KILLED else None, allowed, where)
            if not crashed:
                break
        assert k > 10
        for name, (old, new) in allowed.items():
            if old != new:
                assert {(name, False, False), (name, False, True), (name, True, True)} <= self.outcomes

    def _judge(self, survivor, acknowledged, allowed, where):
        state = (visible(survivor), acknowledged)
        if state in self._judged:
            return
        self._judged.add(state)
        store = open_on(Disk.holding(survivor))
        assert_clean(store)
        if self.inspect:
            self.inspect(store)
        for name, (old, new) in allowed.items():
            found = value(store, name)
            assert found in ((new,) if acknowledged else (old, new)), f"{name} at {where}"
            self.outcomes.add((name, acknowledged, found == new))

    def _go_on(self, again, survivor, lost, allowed, where):
        """The next process does it again; what it acknowledges survives another power failure."""
        state = (visible(survivor), lost)
        if state in self._continued:
            return
        self._continued.add(state)
        disk = Disk.holding(survivor)
        again(open_on(disk))
        store = open_on(Disk.holding(disk.crash(LOSE_ALL)))
        assert_clean(store)
        for name, (_, new) in allowed.items():
            assert value(store, name) == new, f"{name} after another go from {where}"


@pytest.mark.parametrize("committer", ["inline", "threaded"])
def test_a_crash_at_every_call_of_an_add(before, folders, committer, monkeypatch):
    """With its own thread, as in life, the committer's calls fall between others differently each time."""
    restart, every = None, 1 if THOROUGH else 9
    if committer == "inline":
        commit_inline(monkeypatch)
        restart, every = repeat_randomness(monkeypatch), 1

    def add(store):
        store.add(folders["new"], ref="models/new", base="models/old", metadata={"step": 1})

    def add_knowing_all_packs(store):
        store.objects._index.read_uncovered()  # finds packs whose names are not durable yet
        add(store)

    allowed = {"models/old": (OLD, OLD), "tags/stable": (OLD, OLD), "models/new": (None, NEW)}
    again = add_knowing_all_packs if committer == "inline" else add
    Crashes(before, restart=restart, every=every).of(add, allowed, again=again)


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
    Crashes(before, restart=repeat_randomness(monkeypatch)).of(add, allowed, again=add)


def test_a_crash_at_every_call_of_a_tag_that_moves(before, folders, monkeypatch):
    commit_inline(monkeypatch)
    disk = Disk.holding(before)
    open_on(disk).add(folders["new"], ref="models/new")
    ready = disk.crash(LOSE_ALL)

    def tag(store):
        store.tag("stable", "models/new")

    allowed = {"models/old": (OLD, OLD), "models/new": (NEW, NEW), "tags/stable": (OLD, NEW)}
    Crashes(ready, restart=repeat_randomness(monkeypatch)).of(tag, allowed, again=tag)


def test_a_crash_at_every_call_of_a_deletion(before, monkeypatch):
    commit_inline(monkeypatch)

    def delete(store):
        store.rm("models/old")

    def delete_again(store):
        if value(store, "models/old") is not None:
            store.rm("models/old")

    allowed = {"models/old": (OLD, None), "tags/stable": (OLD, OLD)}
    # After a mere kill the deletion may be visible and not durable yet. Who then asks for it again is told
    # that there is no such ref, which acknowledges nothing.
    crashes = Crashes(before, restart=repeat_randomness(monkeypatch), after_kill=False)
    crashes.of(delete, allowed, again=delete_again)


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
        for choice, survivor in survivors(disk, CHOICES if THOROUGH else (LOSE_ALL, KEEP_ALL)):
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
    restart = repeat_randomness(monkeypatch)
    small_packs(monkeypatch, 1 << 20)

    def segments(store):
        return len(list(store.backend.list("index/")))

    disk = Disk.holding(before.crash(LOSE_ALL))
    store = open_on(disk)
    models, counts = {}, [segments(store)]
    while len(counts) < 2 or counts[-1] > counts[-2]:
        name = f"models/m{len(models)}"
        models[name] = model_of(one=noise(100 + len(models), 40))
        folder = write_model(models[name], tmp_path / f"m{len(models)}")
        ready = disk.crash(LOSE_ALL)
        store.add(folder, ref=name)
        counts.append(segments(store))
    restart()
    allowed = {other: (content, content) for other, content in models.items()} | {name: (None, models[name])}
    seen = set()
    crashes = Crashes(ready, restart=restart, inspect=lambda store: seen.add(segments(store)))
    crashes.of(lambda store: store.add(folder, ref=name), allowed)
    before_merge, after_merge = counts[-2], counts[-1]
    assert seen >= {before_merge, before_merge + 2, (before_merge + after_merge) // 2, after_merge}


@pytest.mark.parametrize(
    "case",
    [
        ("inline", errno.EIO, 1),
        ("inline", errno.ENOSPC, 1 if THOROUGH else 3),
        ("inline", errno.EROFS, 1 if THOROUGH else 7),
        ("threaded", errno.EIO, 1 if THOROUGH else 7),
    ],
    ids=lambda case: f"{case[0]}-{errno.errorcode[case[1]]}",
)
def test_an_error_at_every_call_of_an_add(before, folders, case, monkeypatch):
    committer, number, every = case
    restart = None
    if committer == "inline":
        commit_inline(monkeypatch)
        restart = repeat_randomness(monkeypatch)
    failed, judged = 0, set()
    for k in itertools.count(0, every):
        assert k < MAX_CALLS
        if restart:
            restart()
        disk = Disk.holding(before.crash(LOSE_ALL))
        store = open_on(disk)
        begin = len(disk.calls)
        disk.errors = {begin + k: number}
        acknowledged = True
        try:
            store.add(folders["new"], ref="models/new", base="models/old")
        except CasstoreError:
            acknowledged = False
            failed += 1
        if len(disk.calls) <= begin + k:
            assert acknowledged
            break
        where = f"call {k}: {disk.calls[begin + k : begin + k + 1]}"
        assert disk.open_descriptors() == 0, f"a descriptor leaked at {where}"
        disk.errors = {}
        state = (acknowledged, visible(disk), visible(disk.crash(LOSE_ALL)))
        if state in judged:
            continue
        judged.add(state)
        alive = open_on(disk)
        assert_clean(alive)
        found = value(alive, "models/new")
        assert found == NEW if acknowledged else found in (None, NEW), where
        assert read_model(alive, "models/old") == OLD
        if acknowledged:
            lost = open_on(Disk.holding(disk.crash(LOSE_ALL)))
            assert_clean(lost)
            assert value(lost, "models/new") == NEW, where
        again = open_on(disk)
        again.add(folders["new"], ref="models/new", base="models/old")
        again.add(folders["other"], ref="models/other")
        last = open_on(Disk.holding(disk.crash(LOSE_ALL)))
        assert_clean(last)
        assert (value(last, "models/new"), value(last, "models/other")) == (NEW, OTHER), where
    assert failed > 80 // every  # of some 180 calls; the errors of the others are harmless


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
