"""Memory of blocks: lent, given back, and used again."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from casstore.concurrency import buffers
from casstore.concurrency.buffers import BLOCK, BLOCK_BUFFER, shared_buffer


def test_a_shared_buffer_goes_back_once_no_view_of_it_is_left(monkeypatch):
    free = []
    monkeypatch.setattr(buffers, "_free", free)
    whole = shared_buffer(BLOCK)
    part = whole[5:9]
    array = np.frombuffer(part.toreadonly(), np.uint8)
    assert len(whole) == BLOCK
    whole[5:9] = b"kept"
    del whole, part
    gc.collect()
    assert not free
    assert array.tobytes() == b"kept"
    del array
    gc.collect()
    assert [len(block) for block in free] == [BLOCK_BUFFER]
    shared_buffer(BLOCK)[:4] = b"next"
    gc.collect()
    assert len(free) == 1


@pytest.mark.parametrize("size", [0, 1, BLOCK_BUFFER // 4, BLOCK_BUFFER + 1])
def test_what_would_waste_a_block_or_overflow_it_has_its_own_memory(size, monkeypatch):
    monkeypatch.setattr(buffers, "_free", [])
    monkeypatch.setattr(buffers, "take_block", pytest.fail)
    assert len(shared_buffer(size)) == size
