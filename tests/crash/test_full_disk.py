"""Real disks that are full, or get full at any moment: nothing that was acknowledged is lost, and they get free again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
from fakes.counts import FULL_DISKS
from fakes.small_disk import small_disk
from fakes.stores import assert_clean, model_of, noise, read_model, small_packs, write_model

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.backend.base import LOCKLESS
from casstore.errors import BackendError, RefNotFound
from casstore.store.adding import blocks

PAGE = 4096
LARGEST = 200 * PAGE
"""More than any of the operations needs, so that the last ones succeed."""

KEPT = model_of(own=noise(1, 150_000), config=b"{}")
VICTIM = model_of(**{f"part{number}": noise(10 + number, 30_000) for number in range(30)})
NEW = model_of(own=noise(3, 400_000), shared=KEPT.files["own"][0])
ALL = model_of(one=KEPT.files["own"][0], two=noise(4, 400_000))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The models, and `source`, a store of the new one."""
    top = tmp_path_factory.mktemp("models")
    models = {"kept": KEPT, "victim": VICTIM, "new": NEW, "all": ALL}
    found = {name: write_model(content, top / name) for name, content in models.items()}
    with Store(top / "source", create=True, durability="none") as store:
        store.add(found["new"], ref="models/new")
    return found | {"source": top / "source"}


@pytest.fixture(scope="module")
def prepared(folders, tmp_path_factory):
    """A store with a model to keep, one of several packs to delete, and a pack that is mostly unneeded."""
    place = tmp_path_factory.mktemp("prepared") / "store"
    with Store(place, create=True) as store, pytest.MonkeyPatch.context() as patch:
        store.add(folders["all"], ref="models/all")
        store.add(folders["kept"], ref="models/kept")
        small_packs(patch, 30_000)
        patch.setattr(blocks, "BLOCK", 30_000)
        store.add(folders["victim"], ref="models/victim")
        store.rm("models/all")
    return place


def casstore(*arguments, home=None, fails=False):
    """Run a command whose state of this machine is in `home`."""
    environment = {"HOME": str(home), "XDG_CACHE_HOME": f"{home}/cache", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "casstore", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == int(fails), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("scarce", ["bytes", "files"])
def test_commands_on_a_disk_without_room(tmp_path, folders, prepared, scarce):
    """The state of this machine is on the same disk."""
    with small_disk(tmp_path / "disk", size="8m", files=150 if scarce == "files" else None) as disk:
        shutil.copytree(prepared, disk.store)
        home = disk.place / "home"
        at = ("--store", disk.store)
        casstore(*at, "ls", home=home)
        if scarce == "bytes":
            disk.leave(0)
        else:
            disk.use_up_files()
        assert "full" in casstore(*at, "add", folders["new"], "--ref", "models/new", home=home, fails=True)
        assert "Deleted" in casstore(*at, "rm", "models/victim", home=home)
        assert "Freed" in casstore(*at, "gc", home=home)
        casstore(*at, "add", folders["new"], "--ref", "models/new", home=home)
        with Store(disk.store) as store:
            assert_clean(store)
            assert read_model(store, "models/new") == NEW
            assert read_model(store, "models/kept") == KEPT


def test_deleting_leaves_room_for_the_collection(tmp_path, prepared, folders):
    """Somebody else uses whatever gets free meanwhile."""
    with small_disk(tmp_path / "disk", size="8m") as disk:
        shutil.copytree(prepared, disk.store)
        with Store(disk.store) as store:
            store.rm("models/victim")
            names = [f"tags/{number}" for number in range(8)]
            for name in names:
                store.tag(name, "models/kept")
            with pytest.raises(BackendError, match="gc"):  # noqa: PT012  # some of them work
                for name in names:
                    disk.leave(0)
                    store.rm(name)
            assert 0 < len(store.refs("tags/")) < len(names)
            disk.leave(0)
            assert store.gc().packs_deleted


@pytest.mark.parametrize("scarce", ["bytes", "files"])
def test_a_store_without_ballast_gets_free(tmp_path, prepared, scarce):
    """One that an earlier version made: the smallest index segments go for the tombstone."""
    with small_disk(tmp_path / "disk", size="8m", files=150 if scarce == "files" else None) as disk:
        shutil.copytree(prepared, disk.store)
        with Store(disk.store) as store:
            store.rm("models/victim")
        shutil.rmtree(disk.store / ".ballast")
        if scarce == "bytes":
            disk.leave(0)
        else:
            disk.use_up_files()
        with Store(disk.store) as store:
            assert store.gc().packs_deleted
            assert_clean(store)
            assert read_model(store, "models/kept") == KEPT


def test_a_collection_by_age_deletes_refs_and_makes_its_lock_on_a_full_disk(tmp_path, prepared):
    with small_disk(tmp_path / "disk", size="8m") as disk:
        shutil.copytree(prepared, disk.store)
        (disk.store / "gc" / ".lock").unlink()
        with Store(disk.store) as store:
            disk.leave(0)
            report = store.gc(GcPolicy(older_than=0.0))
            assert sorted(report.refs_deleted) == ["models/kept", "models/victim"]
            assert all("stay as they are" in problem for problem in report.problems)
            assert store.gc().mode == "alone"
            assert plan_gc(store).items == ()
            assert disk.free > 500_000
            assert len(list((disk.store / ".ballast").iterdir())) == 8, "restored"


def test_a_store_with_writers_without_the_lock_condemns_on_a_full_disk(tmp_path, prepared):
    with small_disk(tmp_path / "disk", size="8m") as disk:
        shutil.copytree(prepared, disk.store)
        (disk.store / LOCKLESS).write_bytes(b"")
        with Store(disk.store) as store:
            store.rm("models/victim")
            disk.leave(0)
            report = execute_gc(store, plan_gc(store, GcPolicy(grace=0, superseded=0)))
            assert report.packs_condemned + report.packs_deleted
            assert_clean(store)


def add(store, folders):
    store.add(folders["new"], ref="models/new")


def pull(store, folders):
    store.pull(folders["source"])


def collect(store, folders):
    """It rewrites what is needed of a pack, if there is room."""
    assert plan_gc(store).candidates.sparse
    store.gc()


def remove(store, folders):
    store.rm("models/victim")


@pytest.mark.parametrize("act", [add, pull, collect, remove])
def test_a_disk_that_gets_full_at_every_size(tmp_path, folders, prepared, act, monkeypatch):
    small_packs(monkeypatch, 100_000)
    outcomes = []
    with small_disk(tmp_path / "disk", size="8m") as disk:
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk.place / "cache"))
        for number in range(FULL_DISKS):
            for path in disk.place.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.copytree(prepared, disk.store)
            disk.leave(LARGEST * number // (FULL_DISKS - 1) // PAGE * PAGE)
            acknowledged = False
            with Store(disk.store) as store, suppress(BackendError):
                act(store, folders)
                acknowledged = True
            outcomes.append(acknowledged)
            with Store(disk.store) as store:
                judge(store, act, acknowledged)
                with suppress(RefNotFound):
                    store.rm("models/victim")
                before = disk.free
                store.gc()
                assert disk.free >= before
                act_again = add if act is not pull else pull
                act_again(store, folders)
                assert read_model(store, "models/new") == NEW
                assert read_model(store, "models/kept") == KEPT
                assert_clean(store)
    assert outcomes[-1]
    if act in (add, pull):
        assert outcomes == sorted(outcomes)
        assert not outcomes[0]
    else:
        assert all(outcomes), "what frees space works without any"


def judge(store, act, acknowledged):
    """Whatever has its final name is whole, and everything that was acknowledged is there."""
    assert_clean(store)
    assert not list(store.backend.list_temporaries())
    assert read_model(store, "models/kept") == KEPT
    refs = set(store.refs("models/"))
    assert ("models/victim" in refs) is (act is not remove)
    if act is not remove:
        assert read_model(store, "models/victim") == VICTIM
    assert ("models/new" in refs) is (act in (add, pull) and acknowledged)
    if "models/new" in refs:
        assert read_model(store, "models/new") == NEW
