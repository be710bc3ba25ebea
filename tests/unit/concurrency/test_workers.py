"""The shared workers: a group ends with its tasks, whatever became of them, and a fork starts anew."""

from __future__ import annotations

import os
import threading
import time

import pytest

from casstore.concurrency.workers import SerialThread, TaskGroup, worker_count


def test_leaving_a_group_cancels_what_waits_and_waits_for_what_runs():
    started, go, ended = threading.Barrier(worker_count() + 1), threading.Event(), []

    def slow():
        started.wait(10)
        go.wait(10)
        ended.append(True)

    def fail():
        with TaskGroup() as tasks:
            running = [tasks.submit(slow) for _ in range(worker_count())]
            waiting = [tasks.submit(ended.append, False) for _ in range(5)]
            started.wait(10)
            threading.Timer(0.05, go.set).start()
            found.extend([running, waiting])
            raise LookupError

    found = []
    with pytest.raises(LookupError):
        fail()
    running, waiting = found
    assert all(task.done() for task in running)
    assert all(task.cancelled() for task in waiting)
    assert ended == [True] * len(running)


def test_an_error_is_the_tasks_own_and_the_workers_go_on():
    with TaskGroup() as tasks:
        failed, fine = tasks.submit(int, "x"), tasks.submit(int, "7")
        with pytest.raises(ValueError, match="invalid literal"):
            failed.result()
        assert fine.result() == 7
    with TaskGroup() as tasks:
        assert tasks.submit(int, "8").result() == 8


def test_threads_stay_from_one_group_to_the_next():
    def names():
        with TaskGroup() as tasks:
            return {tasks.submit(threading.get_ident).result() for _ in range(50)}

    names()
    assert len(names() | names()) <= worker_count()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_workers_of_its_own():
    with TaskGroup() as tasks:
        tasks.submit(int, "1").result()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with TaskGroup() as tasks:
                code = 0 if tasks.submit(int, "5").result(timeout=10) == 5 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_serial_tasks_are_done_in_order_on_one_thread_which_stays():
    done = []

    def work(number):
        time.sleep(0.002 if number < 3 else 0)
        done.append((number, threading.get_ident()))

    def run():
        done.clear()
        with SerialThread() as thread:
            for number in range(6):
                thread.submit(work, number)
        assert [number for number, _ in done] == list(range(6))
        [ident] = {ident for _, ident in done}
        return ident

    before = run(), threading.active_count()
    assert (run(), threading.active_count()) == before


def test_serial_threads_in_use_at_once_are_different_ones_and_few_of_them_stay():
    def names(count):
        threads = [SerialThread() for _ in range(count)]
        futures = [thread.submit(threading.get_native_id) for thread in threads]
        for thread in threads:
            thread.close()
        return [future.result() for future in futures]

    assert len(set(names(12))) == 12
    kept = set(names(12)) & set(names(12))
    assert 0 < len(kept) < 12


def test_a_serial_thread_is_left_only_when_its_tasks_are_done_and_may_be_used_again():
    go, done = threading.Event(), []
    thread = SerialThread()

    def slow():
        go.wait(10)
        done.append(True)

    def fail():
        with thread:
            thread.submit(slow)
            threading.Timer(0.05, go.set).start()
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert done == [True]
    thread.close()
    with thread:
        assert thread.submit(int, "7").result() == 7


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_serial_threads_of_its_own():
    with SerialThread() as thread:
        thread.submit(int, "1").result()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with SerialThread() as thread:
                code = 0 if thread.submit(int, "5").result(timeout=10) == 5 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
