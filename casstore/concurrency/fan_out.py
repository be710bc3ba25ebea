"""Many calls at the same time, for work that waits for answers rather than for the processor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")

ASKERS = 32
"""Threads that wait for answers at once."""


def ask_all(task: Callable[[T], R], items: Sequence[T], *, at_once: bool = True) -> list[R]:
    """Call `task` for each item, many `at_once` or one by one, and return the answers in order.

    Raises what a call raises.
    """
    if not at_once or len(items) < 2:
        return [task(item) for item in items]
    with ThreadPoolExecutor(min(ASKERS, len(items)), thread_name_prefix="casstore-ask") as threads:
        return list(threads.map(task, items))
