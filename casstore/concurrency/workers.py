"""The process's threads for work, which all stores share.

They stay when their work ends: the first use of a thread's scratch memory and compression contexts
costs more than adding most models, and starting a thread while others hold the GIL takes milliseconds. Sharing the workers
also keeps two concurrent adds from running twice as many.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from casstore.concurrency.forks import ForkAware, watch_forks

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

P = ParamSpec("P")
T = TypeVar("T")

MAX_WORKERS = 16
"""More would cost memory (a few blocks each) and be idle behind one disk."""

_MAX_IDLE = 4
"""Serial threads that are kept while nobody uses them: two for each of a few adds at once."""


def worker_count() -> int:
    """Return how many threads this process may usefully run."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_WORKERS)


class TaskGroup:
    """Tasks for the workers that belong together: when the block ends, none of them runs any more.

    Use as a context manager, from one thread. A task must not wait for another task.
    """

    def __init__(self) -> None:
        self._unfinished: set[Future[Any]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        left = list(self._unfinished)
        for future in left:
            future.cancel()
        wait(left)

    def submit(self, task: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a worker call `task`."""
        future = _workers.executor().submit(task, *args, **kwargs)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future


class SerialThread:
    """A thread of its own for tasks that are done one after the other, in the order in which they are given.

    Use as a context manager: when the block ends, all of them are done, and the thread is the next user's.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, task: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the thread call `task`."""
        if self._executor is None:
            self._executor = _workers.take_serial()
        return self._executor.submit(task, *args, **kwargs)

    def close(self) -> None:
        """Wait for what was submitted, and leave the thread to others."""
        if self._executor is None:
            return
        # An interrupt may have come after a task was submitted and before its future was known: this one is the last.
        self._executor.submit(int).result()
        executor, self._executor = self._executor, None
        _workers.give_serial(executor)


class _Workers(ForkAware):
    def __init__(self) -> None:
        self.after_fork_in_child()
        watch_forks(self)

    def after_fork_in_child(self) -> None:
        """Start afresh: a forked child has none of its parent's threads."""
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._serial: list[ThreadPoolExecutor] = []

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(worker_count(), thread_name_prefix="casstore")
            return self._executor

    def take_serial(self) -> ThreadPoolExecutor:
        with self._lock:
            return self._serial.pop() if self._serial else ThreadPoolExecutor(1, "casstore-serial")

    def give_serial(self, executor: ThreadPoolExecutor) -> None:
        with self._lock:
            if len(self._serial) < _MAX_IDLE:
                self._serial.append(executor)
                return
        executor.shutdown(wait=False)


_workers = _Workers()
