"""Memory for blocks of plain or stored bytes.

Touching a fresh page for the first time costs more than hashing it, so blocks are reused.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np

from casstore.concurrency.workers import worker_count

BLOCK = 4 << 20
"""Plain bytes of one worker task: with less, threads gain little; more only costs cache and memory."""

_CHUNK = 1 << 20
"""Bytes of the largest chunk."""

_threads = threading.local()


def new_buffer(size: int) -> memoryview:
    """Return `size` writable bytes with unspecified content; unlike bytearray, nothing is zeroed first."""
    return memoryview(np.empty(size, np.uint8))


def scratch(size: int) -> memoryview:
    """Return `size` writable bytes that are this thread's until it asks again."""
    held: memoryview | None = getattr(_threads, "scratch", None)
    if held is None or len(held) < size:
        # A power of two: memory that grows with each slightly larger request is touched anew each time.
        held = _threads.scratch = new_buffer(max(_CHUNK, 1 << (size - 1).bit_length()))
    return held[:size]


_HEADERS = 64 << 10
"""Bytes for the headers of the frames that a block becomes, where chunks are not tiny."""

BLOCK_BUFFER = BLOCK + _CHUNK + _HEADERS
"""Bytes of a lent buffer: a block, the chunk that it ends in, and headers."""

_free: list[memoryview] = []


def take_block() -> memoryview:
    """Return a buffer of BLOCK_BUFFER bytes that is the caller's until it is given back; safe in threads."""
    try:
        return _free.pop()
    except IndexError:  # All blocks are lent, so a new one is made.
        return new_buffer(BLOCK_BUFFER)


def give_block(buffer: memoryview) -> None:
    """Take a buffer back for the next user in this process; nobody may use it any more."""
    if len(_free) < 2 * worker_count() + 4:
        _free.append(buffer)


def shared_buffer(size: int) -> memoryview:
    """Return `size` writable bytes for several holders: memory of a block, which goes back once no view of it is left.

    What would leave most of a block unused, or does not fit in one, is memory of its own.
    """
    if not BLOCK_BUFFER // 4 < size <= BLOCK_BUFFER:
        return new_buffer(size)
    block = take_block()
    # Every slice of the view below, and every array over one, keeps this array alive.
    owner = np.frombuffer(block, np.uint8, size)
    weakref.finalize(owner, give_block, block).atexit = False
    return memoryview(owner)
