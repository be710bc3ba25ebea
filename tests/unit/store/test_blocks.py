"""Blocks of chunks: how large they are, and how they are divided among workers that have nothing to do."""

from __future__ import annotations

import random

import pytest

from casstore.chunking import MAX_CHUNK
from casstore.concurrency.buffers import BLOCK, give_block
from casstore.store.adding.blocks import Block, BlockReader
from casstore.store.adding.sources import list_sources


def block_of(*lengths):
    block = Block(memoryview(bytearray(sum(lengths))))
    at = 0
    for length in lengths:
        block.cuts.append((at, length))
        at += length
    block.used = at
    return block


@pytest.mark.parametrize(
    ("lengths", "number", "least", "expected"),
    [
        ((100, 100, 100, 100), 2, 1, [(0, 2), (2, 4)]),
        ((100, 100, 100, 100), 4, 1, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ((100, 100, 100, 100), 0, 1, [(0, 4)]),
        ((100, 100, 100, 100), -1, 1, [(0, 4)]),
        ((100, 100, 100, 100), 4, 200, [(0, 2), (2, 4)]),
        ((400,), 4, 1, [(0, 1)]),
        ((1, 1, 400), 2, 1, [(0, 3)]),
        ((400, 1, 1), 2, 1, [(0, 1), (1, 3)]),
        ((), 2, 1, []),
    ],
)
def test_each_part_has_about_as_many_bytes(lengths, number, least, expected):
    parts = block_of(*lengths).divided(number, least=least)
    assert [(part.start, part.stop) for part in parts] == expected


def test_blocks_are_small_where_workers_wait_for_them(tmp_path):
    """For the first one at the start, and for the one with the last bytes at the end."""
    size = 40 << 20
    (tmp_path / "weights.bin").write_bytes(random.Random(1).randbytes(size))
    sources = list_sources(str(tmp_path / "weights.bin"))
    reader = BlockReader(window=2, progress=lambda _: None, deltas=None)
    used, left = [], []
    for block in reader.read([(file, None) for file in sources.files], {}):
        used.append(block.used)
        left.append(reader.left)
        give_block(block.buffer)
    assert sum(used) == size
    assert used[0] <= MAX_CHUNK + BLOCK // 16
    assert max(used) > BLOCK
    assert used[-1] <= MAX_CHUNK + BLOCK // 4
    assert sorted(left, reverse=True) == left
    assert left[-1] == 0
