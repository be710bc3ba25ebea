"""Chunks that are encoded by their plans: what they become, and how often their bytes are looked at for that."""

from __future__ import annotations

import numpy as np
import pytest
from fakes.collector import write_frames

from casstore import Store
from casstore.codecs import ElementHint, share_of_plain
from casstore.codecs.delta import Extent, Order, Residual, same
from casstore.digest import digest
from casstore.format.rows import MAX_CHUNK, Kind
from casstore.objects import encode_frames
from casstore.store.adding.bases import encoding
from casstore.store.adding.bases.encoding import PlannedChunk, encode_planned, joined
from casstore.store.adding.bases.files.base_chunks import BaseChunks
from casstore.store.adding.bases.files.own_files import OwnChunks
from casstore.store.adding.bases.planning.chunk_plan import ChunkPlan
from casstore.store.adding.bases.policy import delta_policy

SIZE = 256 << 10
HINT = ElementHint(4)


@pytest.fixture
def base(tmp_path):
    """A store's chunks as bases, and one of them: floats, and its id."""
    floats = np.random.default_rng(3).normal(0, 0.02, SIZE // 4).astype("<f4")
    with Store(tmp_path / "store", create=True, durability="none") as store:
        plain = memoryview(floats.tobytes())
        write_frames(store, encode_frames(Kind.CHUNK, [digest(plain)], plain, [(0, SIZE)], [HINT]))
        yield BaseChunks(store.objects, own=OwnChunks()), floats, digest(plain)


def planned(base_id, block, hints, plains):
    """Return plans that predict each part of a block from the base."""
    piece = same(0, [Extent(0, 0, SIZE)], Residual(Order.FLOAT, 4))
    edges = range(0, len(block), SIZE)
    return {
        at: PlannedChunk(
            digest(block[begin : begin + SIZE]),
            begin,
            begin + SIZE,
            hint,
            ChunkPlan((piece,), (base_id,), plain),
        )
        for at, (begin, hint, plain) in enumerate(zip(edges, hints, plains, strict=True))
    }


@pytest.mark.parametrize(
    ("hints", "plains", "looks"),
    [
        ([HINT] * 4, [None] * 4, [4 * SIZE]),
        ([HINT, HINT, ElementHint(4, 1), HINT], [None] * 4, [2 * SIZE, SIZE, SIZE]),
        ([HINT, HINT, ElementHint(2), HINT], [None] * 4, [2 * SIZE, SIZE, SIZE]),
        ([None] * 4, [None] * 4, [SIZE] * 4),
        ([HINT] * 4, [SIZE] * 4, []),
    ],
)
def test_adjoining_chunks_of_like_elements_are_looked_at_once(base, monkeypatch, hints, plains, looks):
    chunks, floats, base_id = base
    block = memoryview(b"".join((floats * np.float32(1 + step * 1e-5)).tobytes() for step in range(1, 5)))
    seen = []
    monkeypatch.setattr(
        encoding, "share_of_plain", lambda plain, hint: seen.append(len(plain)) or share_of_plain(plain, hint)
    )
    frames = encode_planned(block, planned(base_id, block, hints, plains), chunks, delta_policy("balanced"))
    assert seen == looks
    assert [item.headers[0].bases for item in frames.values()] == [(base_id,)] * 4


def test_a_delta_that_saves_too_little_gives_way_to_a_plain_encoding(base):
    chunks, floats, base_id = base
    block = memoryview(np.random.default_rng(4).permutation(floats).tobytes())
    frames = encode_planned(block, planned(base_id, block, [HINT], [None]), chunks, delta_policy("balanced"))
    assert [item.headers[0].bases for item in frames.values()] == [()]


def test_frames_are_joined_in_their_order():
    plain = memoryview(np.random.default_rng(5).bytes(3 * MAX_CHUNK))
    for size in (1, 1000, MAX_CHUNK):
        ids = [digest(plain[at * size : (at + 1) * size]) for at in range(3)]
        frames = [
            encode_frames(Kind.CHUNK, [item], plain, [(at * size, size)], [None])
            for at, item in enumerate(ids)
        ]
        expected = b"".join(item.data for item in frames)
        found = joined(frames)
        assert [header.object_id for header in found.headers] == ids
        assert found.data == expected
        found.release()
    assert joined([]) is None
