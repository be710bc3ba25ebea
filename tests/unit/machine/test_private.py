"""What one machine notes about a store that it alone uses: its mark, last uses, and leases of running pipelines."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time

import fsspec
import pytest
from fakes.stores import model_of, noise, write_model

from casstore import GcPolicy, OliveCache, Store, plan_gc
from casstore.backend.local.syscalls import SystemCalls
from casstore.errors import BackendError, ConfigError
from casstore.format import marks
from casstore.machine.this_machine import machine_id, store_folder
from casstore.machine.uses.last_use import LastUse
from casstore.machine.uses.leases import Leases
from casstore.ops.gc.policy import DAY

MODEL = model_of(own=noise(1, 30_000))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as opened:
        opened.add(write_model(MODEL, tmp_path / "model"), ref="models/m")
        yield opened


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Be another machine, whose user has folders of his own."""

    def go(name="elsewhere"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))

    return go


# ---- the mark


@pytest.mark.parametrize("data", [b"", b"{}", b"casspriv" + bytes(60)])
def test_check_reports_a_damaged_or_foreign_file_in_the_place_of_the_mark(store, data):
    store.mark_private()
    store.backend.delete(marks.PRIVATE_KEY)
    store.backend.put(marks.PRIVATE_KEY, [data])
    [problem] = store.check().problems
    assert problem.key == marks.PRIVATE_KEY
    assert f"casstore init --private {store.backend.url}" in problem.message
    store.mark_private()
    assert store.check().ok


def test_check_mentions_the_mark_of_another_machine(store, elsewhere):
    store.mark_private()
    assert store.check().notes == ()
    elsewhere()
    report = store.check()
    assert report.ok
    [note] = report.notes
    assert note.key == marks.PRIVATE_KEY
    assert "another machine or user" in note.message
    store.mark_private()
    assert store.check().notes == ()


def test_a_store_is_private_to_the_machine_that_marked_it_last(store, elsewhere):
    assert not store.is_private
    store.mark_private()
    first = store.backend.read(marks.PRIVATE_KEY)
    store.mark_private()
    assert store.backend.read(marks.PRIVATE_KEY) == first
    assert store.is_private
    assert store.check().ok
    assert store.check().foreign == ()
    elsewhere()
    assert not store.is_private
    with pytest.raises(ConfigError, match="marked as that of another machine"):
        plan_gc(store, GcPolicy(unused_for=0))
    store.mark_private()
    assert store.is_private
    plan_gc(store, GcPolicy(unused_for=0))


def test_another_way_to_the_same_store_is_private_too(store, tmp_path):
    store.mark_private()
    os.symlink(tmp_path / "store", tmp_path / "link")
    for place in (tmp_path / "link", f"file://{tmp_path / 'store'}", f"local://{tmp_path / 'store'}"):
        try:
            other = Store(place, read_only=True)
        except ConfigError:
            continue
        with other:
            assert other.is_private
            assert store_folder(other.store_id) == store_folder(store.store_id)


def test_a_lost_state_makes_it_shared_and_says_what_to_do(store, own_home):
    store.mark_private()
    for path in (own_home / "state").rglob("machine-id"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"own id was lost.*casstore init --private"):
        plan_gc(store, GcPolicy(max_size=0))


@pytest.mark.parametrize("content", [b"", b"zz", b"00" * 15])
def test_a_damaged_id_is_none_and_is_made_anew(own_home, content):
    first = machine_id(create=True)
    assert machine_id() == machine_id(create=True) == first
    (path,) = (own_home / "state").rglob("machine-id")
    path.write_bytes(content)
    assert machine_id() is None
    assert machine_id(create=True) not in (None, first)
    assert sorted(item.name for item in path.parent.iterdir()) == ["machine-id"]


def test_a_damaged_mark_is_replaced(store, caplog):
    store.backend.put(marks.PRIVATE_KEY, [b"torn"])
    assert not store.is_private
    with pytest.raises(ConfigError, match="its mark is damaged"):
        plan_gc(store, GcPolicy(unused_for=0))
    caplog.set_level(logging.WARNING)
    store.mark_private()
    assert store.is_private
    assert "marked anew" in caplog.text


def test_machines_that_share_a_home_have_ids_of_their_own(monkeypatch):
    monkeypatch.setattr(SystemCalls, "file_system_type", lambda self, path: "nfs4")
    monkeypatch.setattr("platform.node", lambda: "one")
    one = machine_id(create=True)
    monkeypatch.setattr("platform.node", lambda: "other")
    assert machine_id() is None
    assert machine_id(create=True) != one


def test_without_a_home_nothing_can_be_private(store, monkeypatch):
    monkeypatch.setattr("casstore.machine.this_machine.state_folder", lambda: None)
    with pytest.raises(ConfigError, match="XDG_STATE_HOME"):
        store.mark_private()
    assert store_folder(store.store_id) is None
    store.gc(GcPolicy(older_than=DAY))


def test_a_state_folder_that_cannot_be_written(store, own_home):
    (own_home / "state").write_bytes(b"a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        store.mark_private()
    assert store.gc(GcPolicy(older_than=DAY)).refs_deleted == [], (
        "where nobody can have leases, there are none"
    )


def test_sync_never_copies_the_mark(store, tmp_path):
    store.mark_private()
    with Store(tmp_path / "other", create=True) as other:
        store.push(other)
        assert not other.is_private
        other.mark_private()
        store.pull(other)


def test_a_pipelines_own_store_is_private_and_a_given_one_is_not(store, tmp_path, monkeypatch):
    with OliveCache(tmp_path / "cache") as cache:
        assert cache.local.is_private
    os.makedirs(tmp_path / "given" / "in-use")
    os.rename(tmp_path / "store", tmp_path / "given" / "store")
    with OliveCache(tmp_path / "given") as cache:
        assert not cache.local.is_private
    monkeypatch.setattr(SystemCalls, "file_system_type", lambda self, path: "nfs4")
    with OliveCache(tmp_path / "shared") as cache:
        assert not cache.local.is_private, "other machines may reach its folder"


def test_a_pipeline_without_a_state_folder_works(tmp_path, monkeypatch):
    monkeypatch.setattr("casstore.machine.this_machine.state_folder", lambda: None)
    with OliveCache(tmp_path / "cache") as cache:
        assert not cache.local.is_private
        cache.cache_model("m", {"type": "x", "config": {}})
        assert cache.load_model("m") is not None
        assert not cache.problems


# ---- last uses


def reads(store, tmp_path):
    return {
        "get": lambda: store.get("m", tmp_path / f"out{time.monotonic_ns()}"),
        "cat": lambda: store.cat("m", "own"),
        "open_file": lambda: store.open_file("m", "own").close(),
        "get_file": lambda: store.get_file("m", "own", tmp_path / f"file{time.monotonic_ns()}"),
        "cas": lambda: fsspec.filesystem("cas", store=str(tmp_path / "store"), skip_instance_cache=True).cat(
            "models/m/own"
        ),
    }


@pytest.mark.parametrize("how", ["get", "cat", "open_file", "get_file", "cas"])
def test_reading_a_model_of_a_private_store_is_a_use(store, tmp_path, how):
    model_id = bytes.fromhex(store.resolve("m").model_id)
    reads(store, tmp_path)[how]()
    assert store.last_use.times() == {}, "nobody needs it of a shared store"
    store.mark_private()
    before = time.time()
    reads(store, tmp_path)[how]()
    assert set(store.last_use.times()) == {model_id}
    assert before - 1 < store.last_use.time(model_id) < time.time() + 1


def test_hits_of_a_pipeline_are_uses(tmp_path):
    model = tmp_path / "m.bin"
    model.write_bytes(b"m" * 1000)

    def copy(source, output):
        (output / "out.bin").write_bytes(source.read_bytes())

    with OliveCache(tmp_path / "cache") as cache:
        cache.run_pass("copy", copy, model, version="1")
    for hit in ("run", "model"):
        with OliveCache(tmp_path / "cache") as cache:
            (row,) = cache.local.ls("models/")
            cache.local.last_use.forget(bytes.fromhex(row.model_id))
            name = row.name.removeprefix("models/")
            assert (cache.load_run(name) if hit == "run" else cache.load_model(name)) is not None
            assert bytes.fromhex(row.model_id) in cache.local.last_use.times()


def test_a_use_is_noted_once_an_hour(tmp_path, monkeypatch):
    uses = LastUse(str(tmp_path))
    uses.keep()
    calls = []
    monkeypatch.setattr("os.utime", calls.append)
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for seconds in (0, 10, 3589, 3601, 3602):
        now[0] = 1000.0 + seconds
        uses.note(b"x" * 32)
    assert len(calls) == 2


def test_last_use_without_a_folder_or_with_a_broken_one(tmp_path):
    for folder in (None, str(tmp_path / "none")):
        uses = LastUse(folder)
        uses.note(b"x" * 32)
        uses.forget(b"x" * 32)
        assert (uses.times(), uses.time(b"x" * 32)) == ({}, 0.0)
    (tmp_path / "used").write_bytes(b"a file")
    uses = LastUse(str(tmp_path))
    uses.keep()
    uses.note(b"x" * 32)
    assert uses.times() == {}


def test_foreign_files_among_last_uses(tmp_path):
    uses = LastUse(str(tmp_path))
    uses.keep()
    (tmp_path / "used" / "desktop.ini").write_bytes(b"")
    uses.note(b"x" * 32)
    assert set(uses.times()) == {b"x" * 32}


def test_unused_models_go_and_others_stay(store, tmp_path):
    store.mark_private()
    for name in ("used", "unused", "pinned"):
        content = model_of(own=name.encode() * 100)
        store.add(write_model(content, tmp_path / name), ref=f"models/{name}")
    store.pin("pinned")
    store.rm("models/m")
    later = time.time() + 20 * DAY
    path = os.path.join(store_folder(store.store_id), "used", store.resolve("used").model_id)
    open(path, "wb").close()
    os.utime(path, (later - 5 * DAY,) * 2)
    policy = GcPolicy(unused_for=14 * DAY)
    assert plan_gc(store, policy).refs == ()
    plan = plan_gc(store, policy, now=later)
    assert [(item.name, item.why) for item in plan.deletions] == [("models/unused", "not used for 14 days")]
    both = GcPolicy(unused_for=14 * DAY, older_than=21 * DAY)
    assert plan_gc(store, both, now=later).refs == ("models/unused",)
    assert plan_gc(store, both, now=later + 2 * DAY).refs == ("models/unused", "models/used")
    os.unlink(path)
    assert plan_gc(store, policy, now=later).refs == ("models/unused", "models/used"), "then records count"


# ---- leases


def test_leases_end_with_close_and_with_the_process(tmp_path):
    one, other = Leases(str(tmp_path)), Leases(str(tmp_path))
    one.take("models/a")
    one.take("models/a")
    other.take("models/b")
    program = """
        import sys
        from casstore.machine.uses.leases import Leases
        leases = Leases(sys.argv[1])
        leases.take("models/c")
        print("taken", flush=True)
        sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"taken\n"
    with one.held() as held:
        assert held == {"models/a", "models/b", "models/c"}
    process.kill()
    process.communicate()
    other.close()
    with one.held() as held:
        assert held == {"models/a"}
    other.take("models/b")
    one.close()
    with one.held() as held:
        assert held == {"models/b"}
    other.close()


def test_nobody_takes_a_lease_while_a_collector_decides(tmp_path):
    pipeline, collector = Leases(str(tmp_path)), Leases(str(tmp_path))
    with collector.held() as held:
        assert held == frozenset()
        thread = threading.Thread(target=pipeline.take, args=("models/a",))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join()
    with collector.held() as held:
        assert held == {"models/a"}
    pipeline.close()


def test_a_forked_child_keeps_what_its_parent_leased(tmp_path):
    leases, collector = Leases(str(tmp_path)), Leases(str(tmp_path))
    leases.take("models/a")
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def child():
        leases.take("models/b")
        ready.set()
        done.wait(30)

    process = context.Process(target=child)
    process.start()
    assert ready.wait(30)
    leases.close()
    with collector.held() as held:
        assert held == {"models/a", "models/b"}
    done.set()
    process.join()
    with collector.held() as held:
        assert held == frozenset()


def test_where_leases_cannot_be_read_nothing_is_deleted(store, monkeypatch):
    os.makedirs(os.path.join(store_folder(store.store_id), "leases", "list.lock"))
    with pytest.raises(BackendError, match="running pipelines"):
        store.gc(GcPolicy(older_than=0))
    assert store.record("models/m") is not None
    store.gc()


def test_a_pipeline_leases_what_it_makes_and_what_it_hits(tmp_path):
    model = tmp_path / "m.bin"
    model.write_bytes(b"m" * 1000)

    def copy(source, output):
        (output / "out.bin").write_bytes(source.read_bytes())

    for _ in ("makes", "hits"):
        with OliveCache(tmp_path / "cache") as cache:
            cache.run_pass("copy", copy, model, version="1")
            (row,) = cache.local.ls("models/")
            with Store(tmp_path / "cache" / "store") as store:
                assert plan_gc(store, GcPolicy(max_size=0, older_than=0, unused_for=0)).refs == ()
    with Store(tmp_path / "cache" / "store") as store:
        assert plan_gc(store, GcPolicy(max_size=0)).refs == (row.name,)


def test_an_alias_leases_the_run_that_it_means(tmp_path):
    with OliveCache(tmp_path / "cache") as cache:
        name = cache.get_output_model_id("Pass", {"a": 1}, "input", None)
        cache.cache_model(name, {"type": "x", "config": {}})
        cache.cache_run("Pass", {"a": 1}, "input", name, None)
        short = cache.runs.load_run(name).recorded["alias"]
    with OliveCache(tmp_path / "cache") as cache:
        assert cache.load_run(short).name == name
        with cache.leases.held() as held:
            assert f"models/{name}" in held
