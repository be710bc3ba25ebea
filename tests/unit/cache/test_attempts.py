"""Each attempt of a pass has an empty folder of its own; threads and processes that want one thing get one thing."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes.small_disk import small_disk

from casstore import OliveCache
from casstore.cache.placements import room
from casstore.cache.placements.placements import Placements

FILES = ["shard-0", "shard-1"]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "in.bin"
    path.write_bytes(b"x" * 1000)
    return path


@pytest.fixture
def cache(tmp_path):
    with OliveCache(tmp_path / "cache") as opened:
        yield opened


def shards(output, count):
    for number in range(count):
        (output / f"shard-{number}").write_bytes(b"%d" % number)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def failing(error):
    """Return a pass that writes four shards and fails the first time, two from then on."""
    calls = []

    def make(model, output):
        assert names(output) == []
        calls.append(output)
        shards(output, 2 if len(calls) > 1 else 4)
        if len(calls) == 1:
            raise error

    return make


ENDINGS = [RuntimeError("out of memory"), KeyboardInterrupt(), SystemExit(3), MemoryError()]


@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: type(error).__name__)
def test_what_an_attempt_left_is_no_part_of_the_next_ones_result(cache, model, error):
    make = failing(error)
    with pytest.raises(type(error)):
        cache.run_pass("shard", make, model, version="1")
    assert names(cache.run_pass("shard", make, model, version="1")) == FILES
    [cached] = cache.models.list().values()
    tree = cache.local.model(cached.name).tree
    assert [entry.path for entry in tree.files] == ["model.json", "model/shard-0", "model/shard-1"]


def test_not_even_where_nothing_could_be_cleaned_up(cache, model, monkeypatch):
    monkeypatch.setattr(Placements, "discard_attempt", lambda self, folder: None)
    make = failing(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError):
        cache.run_pass("shard", make, model, version="1")
    assert names(cache.run_pass("shard", make, model, version="1")) == FILES


def test_a_thread_that_an_attempt_left_behind_writes_to_no_other_attempt(cache, model):
    go_on, written = threading.Event(), threading.Event()
    threads = []

    def fail(model, output):
        def late():
            go_on.wait(10)
            output.mkdir(exist_ok=True)
            (output / "late").write_bytes(b"x")
            written.set()

        threads.append(threading.Thread(target=late))
        threads[0].start()
        raise RuntimeError("a worker goes on")

    def work(model, output):
        go_on.set()
        assert written.wait(10)
        shards(output, 2)

    with pytest.raises(RuntimeError):
        cache.run_pass("shard", fail, model, version="1")
    assert names(cache.run_pass("shard", work, model, version="1")) == FILES
    threads[0].join()


def ask(cache, key="k"):
    model_id = cache.get_output_model_id("shard", {"key": key}, "input")
    assert cache.load_run_from_model_id(model_id) == {}
    return model_id


def finish(cache, model_id, key="k"):
    folder = cache.get_model_cache_path(model_id)
    cache.cache_model(model_id, {"type": "folder", "config": {"model_path": str(folder)}})
    cache.cache_run("shard", {"key": key}, "input", model_id)


def test_an_engine_that_asks_again_gets_an_empty_folder(cache):
    for count in (4, 3, 2):
        folder = cache.get_model_cache_path(model_id := ask(cache))
        assert names(folder) == []
        assert cache.get_model_cache_path(model_id) == folder
        shards(folder, count)  # and whatever happens then, nobody is told
    finish(cache, model_id)
    assert names(cache.load_model(model_id)["config"]["model_path"]) == FILES
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cache.get_model_cache_path, model_id).result() == folder


def test_what_a_failed_pass_of_an_engine_wrote_is_deleted(cache):
    shards(folder := cache.get_model_cache_path(model_id := ask(cache)), 4)
    cache.cache_model(model_id, {})
    cache.cache_run("shard", {"key": "k"}, "input", model_id)
    assert not folder.exists()
    assert cache.runs.load_run(model_id).status.value == "failed"


def test_threads_of_an_engine_write_to_folders_of_their_own(cache):
    start = threading.Barrier(8)

    def work(number):
        model_id = ask(cache)
        start.wait(10)
        folder = cache.get_model_cache_path(model_id)
        assert names(folder) == []
        shards(folder, 2)
        (folder / "who").write_bytes(b"%d" % number)
        start.wait(10)
        finish(cache, model_id)
        return model_id, folder

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, range(8)))
    assert len({folder for _, folder in done}) == 8
    assert not cache.problems
    found = cache.load_model(done[0][0])["config"]["model_path"]
    assert names(found) == [*FILES, "who"]


CRASH = """
import os, signal, sys
from casstore import OliveCache
from pathlib import Path

def make(model, output):
    for number in range(4):
        (output / f"shard-{number}").write_bytes(b"x")
    print("writing", flush=True)
    if sys.argv[3] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()

OliveCache(sys.argv[1]).run_pass("shard", make, sys.argv[2], version="1")
"""


def child(tmp_path, model, how):
    arguments = [sys.executable, "-c", CRASH, str(tmp_path / "cache"), str(model), how]
    started = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "writing\n"
    return started


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("shard-3"))


def test_what_a_killed_process_left_is_no_part_of_a_result_and_goes(tmp_path, model):
    with child(tmp_path, model, "kill") as killed:
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert left(tmp_path)
    with OliveCache(tmp_path / "cache") as cache:
        folder = cache.run_pass("shard", lambda _, output: shards(output, 2), model, version="1")
        assert names(folder) == FILES
    assert not left(tmp_path)
    assert names(folder) == FILES
    assert not list((tmp_path / "cache" / "checkouts").iterdir())


def test_what_a_live_process_writes_stays_and_is_no_part_of_anothers_result(tmp_path, model):
    with child(tmp_path, model, "wait") as other:
        for _ in range(2):
            with OliveCache({"cache_dir": str(tmp_path / "cache"), "max_checkout_bytes": 0}) as cache:
                assert (
                    names(cache.run_pass("shard", lambda _, output: shards(output, 2), model, version="1"))
                    == FILES
                )
            assert left(tmp_path)
        other.kill()
        other.communicate()
    with OliveCache(tmp_path / "cache"):
        pass
    assert not left(tmp_path)


def test_a_folder_that_someone_else_put_there_is_neither_used_nor_deleted(tmp_path):
    with OliveCache(tmp_path / "cache") as cache:
        mine = cache.get_run_path(model_id := ask(cache)) / "models"
        mine.mkdir()
        (mine / "notes.txt").write_text("mine")
        shards(cache.get_model_cache_path(model_id), 2)
        finish(cache, model_id)
        assert names(cache.load_model(model_id)["config"]["model_path"]) == FILES
    with OliveCache(tmp_path / "cache"):
        pass
    assert (mine / "notes.txt").read_text() == "mine"


# One thing, made once


def test_threads_that_want_one_thing_wait_for_the_one_that_makes_it(cache, model):
    calls = []

    def make(model, output):
        calls.append(output)
        time.sleep(0.05)
        (output / "o.bin").write_bytes(os.urandom(16))

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: cache.run_pass("p", make, model, version="1"), range(8)))
    assert len({(folder / "o.bin").read_bytes() for folder in folders}) == 1
    assert len(calls) == 1
    assert not cache.problems


def test_threads_with_caches_of_their_own_do_so_too(tmp_path, model):
    calls = []

    def make(model, output):
        calls.append(output)
        time.sleep(0.05)
        (output / "o.bin").write_bytes(os.urandom(16))

    def work(_):
        with OliveCache(tmp_path / "cache") as cache:
            return (cache.run_pass("p", make, model, version="1") / "o.bin").read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, range(4)))) == 1
    assert len(calls) == 1


def test_where_the_first_one_fails_the_next_one_tries(cache, model):
    calls = []

    def make(model, output):
        calls.append(output)
        time.sleep(0.02)
        shards(output, 4 if len(calls) < 3 else 2)
        if len(calls) < 3:
            raise RuntimeError("out of memory")

    def work(_):
        try:
            return names(cache.run_pass("p", make, model, version="1"))
        except RuntimeError:
            return "failed"

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(work, range(6)))
    assert done.count("failed") == 2
    assert done.count(FILES) == 4
    assert len(calls) == 3


def test_different_things_are_made_at_the_same_time(cache, model):
    together = threading.Barrier(4)

    def make(model, output, key):
        together.wait(10)
        shards(output, key)

    with ThreadPoolExecutor(4) as pool:
        work = [
            pool.submit(cache.run_pass, "p", make, model, {"key": key}, version="1") for key in range(1, 5)
        ]
    assert [len(names(done.result())) for done in work] == [1, 2, 3, 4]


def test_a_forked_child_waits_for_no_thread_of_its_parent(cache, model):
    making, go_on = threading.Event(), threading.Event()

    def make(model, output):
        making.set()
        go_on.wait(10)
        shards(output, 2)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.run_pass, "p", make, model, version="1")
        assert making.wait(10)
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(
                names(cache.run_pass("p", lambda _, output: shards(output, 2), model, version="1")) != FILES
            )
        assert os.waitpid(child, 0)[1] == 0
        go_on.set()
        assert names(first.result()) == FILES


RACE = """
import os, sys
from casstore import OliveCache

def make(model, output):
    (output / "o.bin").write_bytes(os.urandom(16))

print("ready", flush=True)
sys.stdin.readline()
with OliveCache(sys.argv[1]) as cache:
    print((cache.run_pass("p", make, sys.argv[2], version="1") / "o.bin").read_bytes().hex())
    assert not cache.problems, cache.problems
"""


def test_processes_get_the_result_that_was_recorded_first(tmp_path, model):
    arguments = [sys.executable, "-c", RACE, str(tmp_path / "cache"), str(model)]
    children = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for started in children:
        assert started.stdout.readline() == "ready\n"
    for started in children:
        started.stdin.write("go\n")
        started.stdin.flush()
    told = {started.communicate()[0] for started in children}
    assert [started.returncode for started in children] == [0] * 4
    assert len(told) == 1


# Full disks


@pytest.fixture
def full(tmp_path, monkeypatch):
    """Let the disk of the cache be full: no probe finds room there, and nothing can be added to the store."""
    disk = os.stat(tmp_path).st_dev, str(tmp_path / "cache")

    def check(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(disk[1]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(room, "_check_space", check)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


def refuse(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("stored", [True, False])
def test_a_pass_on_a_full_disk_works_elsewhere(tmp_path, model, full, monkeypatch, stored):
    with OliveCache(tmp_path / "cache") as cache:
        if not stored:
            monkeypatch.setattr(cache.local, "add", refuse)
        folder = cache.run_pass("shard", lambda _, output: shards(output, 2), model, version="1")
        assert names(folder) == FILES
        assert folder.is_relative_to(full)
        assert any("folder in the cache" in problem for problem in cache.problems)
        assert any("cache the model" in problem for problem in cache.problems) != stored
        again = cache.run_pass("shard", lambda _, output: pytest.fail("made twice"), model, version="1")
        assert names(again) == FILES
    assert folder.exists() != stored  # the only copy of a result is never deleted


def test_a_pass_that_fills_the_disk_runs_again_elsewhere(cache, model, tmp_path):
    places = []

    def make(model, output):
        places.append(output)
        assert names(output) == []
        shards(output, 4 if len(places) == 1 else 2)
        if len(places) == 1:
            try:
                refuse()
            except OSError as error:
                raise RuntimeError("The writer failed.") from error

    assert names(cache.run_pass("shard", make, model, version="1")) == FILES
    assert places[0].is_relative_to(tmp_path / "cache")
    assert not places[1].is_relative_to(tmp_path / "cache")
    assert not places[0].exists()
    assert any("No space left" in problem or "writer failed" in problem for problem in cache.problems)


def test_a_pass_that_fails_for_a_full_disk_twice_fails(cache, model):
    with pytest.raises(OSError, match="No space left"):
        cache.run_pass("shard", refuse, model, version="1")


def test_a_hit_on_a_full_disk_is_written_elsewhere(tmp_path, model, full, monkeypatch):
    with OliveCache(tmp_path / "cache") as cache:
        cache.run_pass("shard", lambda _, output: shards(output, 2), model, version="1")
    shutil.rmtree(tmp_path / "cache" / "runs")
    monkeypatch.setattr(Placements, "scratch", refuse)
    with OliveCache(tmp_path / "cache") as cache:
        for _ in range(2):
            folder = cache.run_pass("shard", lambda _, output: pytest.fail("made twice"), model, version="1")
            assert names(folder) == FILES
            assert folder.is_relative_to(full)
        assert len([problem for problem in cache.problems if "into the cache" in problem]) == 1
    assert not folder.exists()


def test_a_real_disk_of_four_megabytes(tmp_path, model):
    def make(model, output, size):
        with open(output / "o.bin", "wb") as file:
            file.writelines(os.urandom(1 << 10) for _ in range(size >> 10))

    with small_disk(tmp_path / "disk", size="4m") as disk, OliveCache(disk.place / "cache") as cache:
        small = (cache.run_pass("p", make, model, {"size": 1 << 10}, version="1") / "o.bin").read_bytes()
        large = cache.run_pass("p", make, model, {"size": 8 << 20}, version="1")
        assert (large / "o.bin").stat().st_size == 8 << 20
        assert cache.problems
        assert not large.is_relative_to(disk.place)
        hit = cache.run_pass("p", make, model, {"size": 1 << 10}, version="1")
        assert (hit / "o.bin").read_bytes() == small
    shutil.rmtree(large.parent)
