"""Forks of several threads at once, while others use the store: nothing may wait for ever, or be lost."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest

from casstore.concurrency import forks
from casstore.concurrency.forks import ForkAware, watch_forks

STRESS = """
import faulthandler, itertools, multiprocessing, os, subprocess, sys, threading, warnings
import casstore

faulthandler.dump_traceback_later(50, exit=True)
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
folder = sys.argv[1]
store = casstore.Store(folder + "/store", create=True, durability="none")
os.mkdir(folder + "/model")
with open(folder + "/model/w", "wb") as file:
    file.write(os.urandom(100_000))
store.add(folder + "/model", ref="models/m")
numbers = itertools.count()
done = threading.Event()
failed = []


def use():
    assert "models/m" in store.refs()
    assert store.open_file("models/m", "w").read(10)


def child():
    use()
    store.add(folder + "/model", ref=f"models/{os.getpid()}", stat_cache=False)


def fork():
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def run():
    subprocess.run(["true"], preexec_fn=lambda: None, check=True)


def process():
    started = multiprocessing.get_context("fork").Process(target=child)
    started.start()
    started.join()
    assert started.exitcode == 0


def new_store():
    # Opened and let go of while others fork.
    with casstore.Store(folder + "/store") as other:
        assert "models/m" in other.refs()


def repeat(work, times):
    try:
        for _ in range(times) if times else iter(lambda: done.is_set(), True):
            work()
    except BaseException as error:
        failed.append((work.__name__, error))


forkers = [threading.Thread(target=repeat, args=(work, 6)) for work in (fork, fork, fork, run, run, process)]
users = [threading.Thread(target=repeat, args=(work, 0)) for work in (use, new_store)]
for thread in users + forkers:
    thread.start()
for thread in forkers:
    thread.join()
done.set()
for thread in users:
    thread.join()
assert not failed, failed
assert len(store.refs()) == 1 + 3 * 6 + 6
assert store.check().ok
store.close()
"""


def test_threads_that_fork_at_once(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STRESS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


class Steps(ForkAware):
    def __init__(self):
        self.steps = []
        watch_forks(self)

    def before_fork(self):
        self.steps.append("before")

    def after_fork_in_parent(self):
        self.steps.append("parent")

    def after_fork_in_child(self):
        self.steps.append("child")


def test_each_side_of_a_fork_is_told():
    item = Steps()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, " ".join(item.steps).encode())
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(reader, 100) == b"before child"
    assert item.steps == ["before", "parent"]
    os.close(reader)
    os.close(writer)


def test_nothing_is_kept_alive():
    item = Steps()
    gone, watched = weakref.ref(item), len(forks._watched)
    del item
    gc.collect()
    assert gone() is None
    assert len(forks._watched) < watched


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fork_that_could_not_be_prepared_leaves_nothing_locked():
    class Interrupted(Steps):
        def before_fork(self):
            super().before_fork()
            raise KeyboardInterrupt

    first, second = Steps(), Interrupted()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert first.steps.count("before") == first.steps.count("parent")
    assert second.steps == ["before"]
    del second
    free = threading.Thread(target=Steps)
    free.start()
    free.join(10)
    assert not free.is_alive()
