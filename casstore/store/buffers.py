"""Memory for blocks of plain or stored bytes.

The first touch of a fresh page costs more than hashing it, so blocks are used again.
"""

from __future__ import annotations

import os
import threading

import numpy as np

from casstore.format.rows import MAX_CHUNK

BLOCK = 4 << 20
"""Plain bytes that one worker task takes: less costs threads their gain, more only cache and memory."""

MAX_WORKERS = 16
"""More would cost memory (a few blocks each) and find nothing to do behind one disk."""

_threads = threading.local()


def new_buffer(size: int) -> memoryview:
    """Return `size` writable bytes with unspecified content; unlike bytearray, nothing is zeroed first."""
    return memoryview(np.empty(size, np.uint8))


def scratch(size: int) -> memoryview:
    """Return `size` writable bytes that are this thread's until it asks again."""
    held: memoryview | None = getattr(_threads, "scratch", None)
    if held is None or len(held) < size:
        held = _threads.scratch = new_buffer(max(size, MAX_CHUNK))
    return held[:size]


def worker_count() -> int:
    """Return how many threads this process may usefully run."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_WORKERS)


class BlockPool:
    """Buffers of one block and one chunk, lent out and kept for the next user; safe in threads."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """Return a buffer that is the caller's until it is given back."""
        try:
            return self._free.pop()
        except IndexError:  # Nothing is lost: the pool is empty, so a new buffer is made.
            return new_buffer(BLOCK + MAX_CHUNK)

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back; nobody may use it any more."""
        if len(self._free) < 2 * worker_count() + 2:
            self._free.append(buffer)
