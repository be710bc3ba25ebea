"""Round trips: which stores are a network away, and many requests to one at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casstore.backend.base import Backend

T = TypeVar("T")
R = TypeVar("R")

ASKERS = 32
"""Threads that wait for answers at once."""


def is_far(backend: Backend) -> bool:
    """Say whether each call is a network round trip, rather than a disk or memory access."""
    return not backend.url.startswith(("file:", "memory:"))


def lists_flat(backend: Backend) -> bool:
    """Say whether a listing goes through all folders at once, as object stores do, rather than one by one."""
    return backend.url.startswith(("s3:", "s3a:", "gs:", "gcs:", "az:", "abfs:", "abfss:"))


def ask_each(backend: Backend, task: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Call `task`, which asks `backend`, for each item, as `ask_all` where that is far and one by one where it is not."""
    return ask_all(task, items) if is_far(backend) else [task(item) for item in items]


def ask_all(task: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Call `task` for each item, several at once, and return the answers in order; raises what a call raises."""
    if len(items) < 2:
        return [task(item) for item in items]
    with ThreadPoolExecutor(min(ASKERS, len(items)), thread_name_prefix="casstore-ask") as threads:
        return list(threads.map(task, items))
