"""The process's worker threads, which all stores share.

They stay when a task group ends: the first use of a thread's scratch memory and compression contexts
costs more than adding most models. Sharing them also keeps two concurrent adds from running twice as many.
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


class _Workers(ForkAware):
    def __init__(self) -> None:
        self.after_fork_in_child()
        watch_forks(self)

    def after_fork_in_child(self) -> None:
        """Start afresh: a forked child has none of its parent's threads."""
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(worker_count(), thread_name_prefix="casstore")
            return self._executor


_workers = _Workers()
