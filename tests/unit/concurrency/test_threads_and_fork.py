"""One store in many hands: threads, processes that add at once, children of a fork, and a broken machine state."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from fakes.fresh_files import trust_fresh_files
from fakes.model_files import safetensors_bytes
from fakes.stores import assert_clean, model_of, noise, read_folder, read_model, write_model

from casstore import CasstoreError, ConfigError, ConflictError, Store
from casstore.backend import BackendWrapper, open_backend
from casstore.errors import AccessDenied
from casstore.machine.state import MachineState
from casstore.ops.check import check
from casstore.store.model_store import ModelStore

# A fork beside running threads is what these tests are about; newer Pythons warn of it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
    pytest.mark.timeout(120),
]

THREADS = 8
TENSOR = np.random.default_rng(0).normal(0, 0.02, (400, 300)).astype(np.float32)
SHARED = safetensors_bytes({"w": TENSOR})


def model_number(number):
    """Models that share most of their chunks, and have some of their own."""
    return model_of(shared=SHARED, own=noise(number, 70_000), common=noise(number % 3, 90_000))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


@pytest.fixture
def models(tmp_path):
    return [write_model(model_number(number), tmp_path / f"m{number}") for number in range(THREADS)]


def state_file(store):
    return Path(store.machine._path)


# ---- threads


def test_threads_add_read_and_check_out_at_once(store, models, tmp_path):
    start = threading.Barrier(THREADS)

    def work(number):
        ref = f"models/m{number}"
        start.wait()
        for turn in range(3):
            store.add(models[number], ref=ref, metadata={"turn": turn}, stat_cache=turn == 1)
            assert read_model(store, ref) == model_number(number)
            assert np.array_equal(store.read_tensor(ref, "w", file="shared"), TENSOR)
            store.get(ref, tmp_path / f"out-{number}-{turn}")
            assert read_folder(tmp_path / f"out-{number}-{turn}") == model_number(number)
            assert ref in store.refs()
            store.tag(f"t{number}", ref)
            store.rm(f"tags/t{number}")
            assert store.stats().models >= 1

    with ThreadPoolExecutor(THREADS) as pool:
        for task in [pool.submit(work, number) for number in range(THREADS)]:
            task.result()
    assert sorted(store.refs()) == [f"models/m{number}" for number in range(THREADS)]
    assert_clean(store)
    with Store(store.backend.url) as again:
        assert_clean(again)
        for number in range(THREADS):
            assert read_model(again, f"models/m{number}") == model_number(number)


def test_threads_share_an_open_file_each_its_own(store, models):
    """Readers of one file in many threads, each with a file of its own, seek independently."""
    store.add(models[0], ref="models/m")

    def work(seed):
        chosen = np.random.default_rng(seed)
        with store.open_file("models/m", "shared") as file:
            for _ in range(60):
                at, size = int(chosen.integers(0, len(SHARED))), int(chosen.integers(1, 50_000))
                file.seek(at)
                assert file.read(size) == SHARED[at : at + size]

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


def test_threads_that_write_one_ref(store, models):
    """Nobody fails, and the ref means one of what was written, whole."""
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda path: store.add(path, ref="models/one"), models))
    value = store.resolve("models/one").model_id
    assert value in {result.model_id for result in results}
    [number] = [at for at, result in enumerate(results) if result.model_id == value]
    assert read_model(store, "models/one") == model_number(number)
    assert_clean(store)


def test_threads_that_move_one_tag(store, models):
    """One wins each place; others are told. What is there is whole."""
    for number, path in enumerate(models):
        store.add(path, ref=f"models/m{number}")
    start = threading.Barrier(THREADS)

    def work(number):
        start.wait()
        try:
            store.tag("best", f"models/m{number}")
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        won = list(pool.map(work, range(THREADS)))
    assert any(won)
    winner = store.resolve("tags/best").model_id
    assert winner in {store.resolve(f"models/m{number}").model_id for number in range(THREADS) if won[number]}
    assert_clean(store)


# ---- processes


def run_python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    """Wait for a process; nothing may have been said: warnings go to stderr."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert err == ""
    return out.split()


WAIT = """
import os, pathlib, sys, time
import casstore
start = pathlib.Path(sys.argv[1])
start.with_name(f"{start.name}.{os.getpid()}").touch()
while not start.exists():
    time.sleep(0.001)
"""


def start_together(path, processes):
    """Wait until all are ready, then let them go."""
    deadline = time.monotonic() + 60
    while len(list(path.parent.glob(f"{path.name}.*"))) < len(processes):
        assert time.monotonic() < deadline, "the processes do not come up"
        assert all(process.poll() is None for process in processes), [
            p.stderr.read() for p in processes if p.poll()
        ]
        time.sleep(0.005)
    path.touch()


MAKE = WAIT + "print(casstore.Store(sys.argv[2], create=True).store_id)"


def test_processes_that_make_one_store_at_once(tmp_path):
    processes = [run_python(MAKE, tmp_path / "start", tmp_path / "store") for _ in range(3)]
    start_together(tmp_path / "start", processes)
    assert len({finish(process)[0] for process in processes}) == 1


ADD = (
    WAIT
    + """
store = casstore.Store(sys.argv[2])
for path in sys.argv[4:]:
    name = os.path.basename(path)
    print(store.add(path, ref=f"models/{sys.argv[3]}-{name}").model_id)
    store.add(path, ref="models/contended")
store.close()
"""
)


def test_processes_that_add_overlapping_models_at_once(store, models):
    """Nothing is lost, and a third process reads all the while, as segments are merged away under it."""
    folder = Path(models[0]).parent
    writers = [run_python(ADD, folder / "start", store.backend.url, who, *models[:6]) for who in ("a", "b")]
    start_together(folder / "start", writers)
    read = 0
    while any(writer.poll() is None for writer in writers):
        with Store(store.backend.url) as reader:
            for name in reader.refs("models/a-"):
                assert read_model(reader, name) == model_number(int(name[-1]))
                read += 1
    ids = [finish(writer) for writer in writers]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 6
    assert sorted(store.refs()) == sorted(
        ["models/contended", *(f"models/{who}-m{number}" for who in "ab" for number in range(6))]
    )
    assert store.resolve("models/contended").model_id in ids[0]
    report = assert_clean(store)
    assert report.segments < 8 + 8
    for number in range(6):
        for who in "ab":
            assert read_model(store, f"models/{who}-m{number}") == model_number(number)
    assert integrity_of(state_file(store)) == "ok"
    assert read > 0


def integrity_of(path):
    connection = sqlite3.connect(path)
    try:
        return connection.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        connection.close()


def test_a_store_that_is_open_sees_what_other_processes_add(store, models):
    store.add(models[0], ref="models/mine")
    (Path(models[0]).parent / "start").touch()
    finish(run_python(ADD, Path(models[0]).parent / "start", store.backend.url, "other", models[1]))
    assert read_model(store, "models/other-m1") == model_number(1)
    assert store.add(models[1], ref="models/again").chunks_new == 0


# ---- forks


@contextmanager
def busy_threads(*works):
    """Threads that repeat these works until the block ends; what they raise is raised at its end."""
    stop = threading.Event()

    def repeat(work):
        turns = 0
        while not stop.is_set():
            work(turns)
            turns += 1
        return turns

    with ThreadPoolExecutor(len(works)) as pool:
        tasks = [pool.submit(repeat, work) for work in works]
        try:
            yield
        finally:
            stop.set()
        assert all(task.result() > 0 for task in tasks)


def in_child(work):
    """Run this in a forked child; say whether it went well. A child that hangs is ended after a while."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - a child must not run on into pytest
            os.write(2, f"child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


def test_children_read_while_threads_of_their_parent_work(store, models, tmp_path):
    store.add(models[0], ref="models/m")
    open_before = store.open_file("models/m", "shared")
    open_before.read(1000)

    def child():
        assert np.array_equal(store.read_tensor("models/m", "w", file="shared"), TENSOR)
        assert read_model(store, "models/m") == model_number(0)
        assert open_before.read(5000) == SHARED[1000:6000]
        assert check(store, read_data=True).ok
        store.get("models/m", tmp_path / f"child-{os.getpid()}")

    def add(turn):
        store.add(models[1 + turn % 7], ref=f"models/busy{turn % 3}", stat_cache=False)

    def read(_):
        assert np.array_equal(store.read_tensor("models/m", "w", file="shared"), TENSOR)

    with busy_threads(add, read, read):
        for _ in range(6):
            assert in_child(child)
    assert open_before.read(5000) == SHARED[1000:6000]
    open_before.close()
    assert_clean(store)


def test_a_child_of_a_fork_while_the_machine_state_is_used(store, models):
    """Connections are closed before a fork, and opened again on both sides."""
    store.add(models[0], ref="models/m")

    def ask(_):
        assert store.machine.run(lambda state: state.execute("SELECT * FROM records").fetchall(), [])

    with busy_threads(ask, ask):
        for _ in range(5):
            assert in_child(lambda: ask(0))
            ask(0)
    path = state_file(store)
    store.close()
    assert integrity_of(path) == "ok"


def test_a_child_of_a_fork_while_the_index_is_locked(store, models):
    """Another thread of the parent held the lock at the fork: nobody in the child will ever give it back."""
    store.add(models[0], ref="models/m")
    held, done = threading.Event(), threading.Event()

    def hold():
        with store.objects._index.lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    try:
        assert in_child(lambda: read_model(store, "models/m"))
    finally:
        done.set()
        thread.join()


def test_children_that_add(store, models):
    """Parent and children write to one store and one machine state, each with connections of its own."""
    store.add(models[0], ref="models/m0")
    with busy_threads(lambda turn: store.add(models[turn % 4], ref="models/parent", stat_cache=False)):
        for number in range(1, 5):
            assert in_child(lambda: store.add(models[number], ref=f"models/child{number}"))  # noqa: B023 - at once
    for number in range(1, 5):
        assert read_model(store, f"models/child{number}") == model_number(number)
    assert_clean(store)
    assert integrity_of(state_file(store)) == "ok"


_pool_store = None


def _read_in_pool(name):
    return float(_pool_store.read_tensor(name, "w", file="shared").sum()), os.getpid()


def test_a_fork_pool_like_that_of_a_data_loader(store, models, monkeypatch):
    for number in range(3):
        store.add(models[number], ref=f"models/m{number}")
    monkeypatch.setattr(sys.modules[__name__], "_pool_store", store)
    wanted = [f"models/m{number % 3}" for number in range(24)]
    with (
        busy_threads(lambda _: _read_in_pool("models/m0")),
        multiprocessing.get_context("fork").Pool(2) as pool,
    ):
        answers = pool.map_async(_read_in_pool, wanted, chunksize=1).get(timeout=60)
    assert {total for total, _ in answers} == {float(TENSOR.sum())}
    assert os.getpid() not in {pid for _, pid in answers}


# ---- stores that are only read


def files_below(path):
    return sorted(str(item.relative_to(path)) for item in Path(path).rglob("*"))


def test_a_readonly_store_refuses_writes_and_makes_nothing(store, models, tmp_path):
    store.add(models[0], ref="models/m")
    for name in ("gc", ".tmp"):  # nothing that a writer would find made already
        shutil.rmtree(tmp_path / "store" / name)
    before = files_below(tmp_path / "store")
    with Store(tmp_path / "store", read_only=True) as reader:
        writes = [
            lambda: reader.add(models[1]),
            lambda: reader.add(models[0], ref="models/m"),
            lambda: reader.tag("t", "models/m"),
            lambda: reader.rm("models/m"),
        ]
        for write in writes:
            with pytest.raises(AccessDenied, match="read_only"):
                write()
        assert read_model(reader, "models/m") == model_number(0)
        reader.get("models/m", tmp_path / "out")
        assert reader.stats().models == 1
        assert_clean(reader)
    assert files_below(tmp_path / "store") == before


def test_opening_readonly_makes_no_store(tmp_path):
    with pytest.raises(ConfigError):
        Store(tmp_path / "nothing", read_only=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="not a casstore store"):
        Store(tmp_path / "empty", read_only=True)
    assert files_below(tmp_path) == ["empty"]


# ---- machine state that is broken


def _garbage(path):
    path.write_bytes(b"this is no database" * 300)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _nothing(path):
    path.write_bytes(b"")


def _folder(path):
    path.unlink()
    path.mkdir()


def _other_tables(path):
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE files (what TEXT)")
    connection.execute("CREATE TABLE records (ever TEXT)")
    connection.commit()
    connection.close()


def _lies(path):
    """Every value is replaced by that of another row: no row means what its key says."""
    connection = sqlite3.connect(path)
    for table, key, column in (("files", "key", "value"), ("records", "key", "data")):
        rows = connection.execute(f"SELECT {key}, {column} FROM {table} ORDER BY {key}").fetchall()
        moved = [(rows[at - 1][1], rows[at][0]) for at in range(len(rows))]
        assert len(rows) > 1
        connection.executemany(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", moved)
    connection.commit()
    connection.close()


BROKEN = [_garbage, _cut, _nothing, _folder, _other_tables]


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_machine_state_costs_time_only(store, models, damage, caplog):
    for number in range(3):
        store.add(models[number], ref=f"models/m{number}")
    path = state_file(store)
    store.close()
    for name in (f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
    damage(path)
    with caplog.at_level(logging.WARNING, "casstore"), Store(store.backend.url) as again:
        for number in range(3):
            assert read_model(again, f"models/m{number}") == model_number(number)
        again.add(models[3], ref="models/m3")
        assert again.add(models[0], ref="models/m0").chunks_new == 0
        assert len(again.refs()) == 4
        assert_clean(again)
    messages = [record.getMessage() for record in caplog.records]
    assert all("safe to delete" in message and str(path) in message for message in messages)
    assert len(messages) <= 1


def test_a_machine_state_that_lies_is_not_believed(store, models, monkeypatch):
    """Records are checked like those from the store, and a file's id is bound to the file it was for."""
    trust_fresh_files(store)
    ids = [store.add(models[number], ref=f"models/m{number}").model_id for number in range(3)]
    path = state_file(store)
    store.close()
    _lies(path)
    with Store(store.backend.url) as again:
        trust_fresh_files(again)
        for number in range(3):
            with suppress(CasstoreError):  # an error is as good as the truth
                assert read_model(again, f"models/m{number}") == model_number(number)
            assert again.add(models[number], ref=f"models/again{number}").model_id == ids[number]
    path.unlink()
    with Store(store.backend.url) as again:
        for number in range(3):
            assert read_model(again, f"models/m{number}") == model_number(number)


def test_a_machine_state_that_cannot_be_made(tmp_path, models, monkeypatch, caplog):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "casstore"), Store(tmp_path / "s", create=True) as store:
        store.add(models[0], ref="models/m")
        assert read_model(store, "models/m") == model_number(0)
        assert store.add(models[0], ref="models/m").chunks_new == 0
    assert len(caplog.records) == 1


def test_a_machine_state_that_someone_else_locks(store, models, caplog):
    machine = MachineState(str(state_file(store)), patience=0.05)
    store.add(models[0], ref="models/m")
    blocker = sqlite3.connect(state_file(store), isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    try:
        with (
            caplog.at_level(logging.WARNING, "casstore"),
            ModelStore(
                open_backend(store.backend.url), store_id=bytes.fromhex(store.store_id), machine=machine
            ) as other,
        ):
            assert read_model(other, "models/m") == model_number(0)
            other.add(models[1], ref="models/n")
            assert read_model(other, "models/n") == model_number(1)
    finally:
        blocker.execute("ROLLBACK")
        blocker.close()
    assert len(caplog.records) <= 1


def test_nothing_stays_open(store, models):
    """Whatever threads did; newer Pythons warn of a connection that is left to the collector."""

    def work(number):
        store.add(models[number], ref=f"models/m{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = str(state_file(store))
    assert open_files(path)
    store.close()
    assert open_files(path) == []


def test_a_store_that_nobody_closed(tmp_path, models):
    forgotten = Store(tmp_path / "forgotten", create=True)
    forgotten.add(models[0])
    path = str(state_file(forgotten))
    assert open_files(path)
    del forgotten
    gc.collect()
    assert open_files(path) == []


def open_files(path):
    """Which of this process's descriptors lead to files whose path begins so."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own is closed by now
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [link for link in found if link.startswith(path)]


# ---- checks beside writers


class Interrupted(BackendWrapper):
    """Runs an action once a listing has come to the first key with this prefix."""

    def __init__(self, inner, prefix, action):
        super().__init__(inner)
        self._prefix = prefix
        self._action = action

    def list(self, prefix):
        for entry in self.inner.list(prefix):
            if entry.key.startswith(self._prefix):
                action, self._action = self._action, lambda: None
                action()
            yield entry


@pytest.mark.parametrize("prefix", ["index/", "packs/", "refs/"])
def test_check_beside_a_writer_finds_nothing_wrong(store, models, prefix):
    """What is published while `check` lists is either seen whole or not at all."""
    for number in range(8):
        store.add(models[number], ref=f"models/zero{number}")  # one more segment, and all are merged

    def publish():
        with Store(store.backend.url) as writer:
            for number in range(8):
                path = write_model(model_number(100 + number), f"{models[0]}-new{number}")
                writer.add(path, ref=f"models/a{number}")
                writer.add(path, ref=f"models/zero{number}")

    with Store(store.backend.url) as checker:
        checker.backend = Interrupted(checker.backend, prefix, publish)
        report = check(checker, read_data=True)
        assert report.ok, report.problems
    assert len(store.refs()) == 16
