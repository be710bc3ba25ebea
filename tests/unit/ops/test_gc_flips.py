"""A flipped byte, then a collection that rewrites packs: damage is neither copied nor forgotten, and costs nothing else."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from fakes.counts import FLIPS, SEED
from fakes.stores import model_of, noise, read_model
from unit.objects.test_corruption import build, files_of, flipped, in_memory, masks, opened

from casstore import GcPolicy, IntegrityError, execute_gc, plan_gc
from casstore.errors import BackendError
from casstore.ops.check import check

COMMON = b"words that compress, and again " * 30
MODELS = {
    "models/deleted": model_of(common=COMMON, shared=noise(1, 400), own=noise(2, 900)),
    "models/kept": model_of(common=COMMON, shared=noise(1, 400)),
    "models/other": model_of(own=noise(3, 300)),
}
KEPT = ["models/kept", "models/other"]
POLICY = GcPolicy(orphans_now=True, grace=0, superseded=0, repack=1.0)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """A store with a pack of which something is needed, and something not."""
    top = tmp_path_factory.mktemp("sparse")
    build(top / "store", MODELS, top, more=False)
    store = opened(in_memory(top / "store"))
    store.rm("models/deleted")
    report = execute_gc(store, plan_gc(store, POLICY))
    assert report.packs_deleted > 0
    assert report.bytes_written > 0
    return top / "store"


def readable(store):
    """Return the refs that can be read, which must have the right bytes."""
    right = set()
    for ref in KEPT:
        with suppress(IntegrityError):
            assert read_model(store, ref).files == MODELS[ref].files
            right.add(ref)
    return right


def test_flip_then_repack(sparse):
    keys = files_of(sparse, "packs", "index", "refs")
    content = {key: (sparse / key).read_bytes() for key in keys}
    chance = random.Random(FLIPS + 100_000 * SEED)
    collected = stopped = lost = 0
    for mask in masks(FLIPS, seed=3 + 1000 * SEED):
        key = chance.choices(keys, weights=map(len, content.values()))[0]
        backend = in_memory(sparse)
        opened(backend).rm("models/deleted")
        data = flipped(content[key], chance.randrange(len(content[key])), mask)
        backend._objects[key] = (data, backend._objects[key][1])
        before = readable(opened(backend))
        store = opened(backend)
        try:
            execute_gc(store, plan_gc(store, POLICY))
            collected += 1
        except (IntegrityError, BackendError):
            stopped += 1
        after = readable(opened(backend))
        assert after >= before, (key, "what could be read")
        if len(after) < len(KEPT):
            lost += 1
            assert not check(opened(backend), read_data=True).ok, (key, "damage that was forgotten")
    assert collected > FLIPS / 4
    assert lost > FLIPS / 10
    assert stopped > FLIPS / 20
