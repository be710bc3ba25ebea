"""The shared workers: a group ends with its tasks, whatever became of them, and a fork starts anew."""

from __future__ import annotations

import os
import threading

import pytest

from casstore.concurrency.workers import TaskGroup, worker_count


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
