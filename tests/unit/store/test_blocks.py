"""Blocks of chunks are divided among workers that have nothing to do."""

from __future__ import annotations

import pytest

from casstore.store.adding.blocks import Block


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
