"""Deltas of every operation, and chains of them: found, exact, and as safe as plain chunks from flips, collections and syncs."""

from __future__ import annotations

import itertools
import uuid

import pytest
from fakes.damage import damaged, flipped, in_memory, masks, opened
from fakes.derivations import add_derivations, delta_frames, derivations, operations_of, ref_of, together
from fakes.payloads import decode
from fakes.stores import assert_clean, read_model, write_model
from fakes.sync_stores import Side

from casstore import GcPolicy, IntegrityError, Store, execute_gc, plan_gc
from casstore.codecs import Encoding
from casstore.digest import digest
from casstore.errors import BackendUnavailable
from casstore.format.frame import decode_header
from casstore.ops.sync import execute, plan_sync

MADE = [name for name, item in derivations().items() if item.operations]
POLICY = GcPolicy(orphans_now=True, grace=0, superseded=0, repack=1.0)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A store of all models."""
    top = tmp_path_factory.mktemp("family")
    with Store(top / "store", create=True, durability="none") as store:
        add_derivations(store, top)
        assert_clean(store)
    return top / "store"


def read(store, name):
    assert read_model(store, f"models/{ref_of(name)}") == derivations()[name].content, name


@pytest.mark.parametrize("name", MADE)
def test_each_operation_is_found_and_exact(family, name):
    with Store(family) as store:
        assert operations_of(store, f"models/{ref_of(name)}") >= derivations()[name].operations
        read(store, name)


@pytest.mark.parametrize("name", MADE)
def test_every_flip_in_a_payload_is_detected_or_harmless(family, name):
    """Whatever the decoder makes of it, the reader hashes; it must not fail in another way."""
    store = opened(in_memory(family))
    harmful = tried = 0
    for item in delta_frames(store, f"models/{ref_of(name)}"):
        frame = store.backend.read(item.key)[item.begin : item.end]
        header = decode_header(frame, key=item.key)
        payload, bases = frame[header.size :], [store.objects.read(base) for base in header.bases]
        # Residuals are long, and alike; heads and directories are in the first bytes.
        places = [at for at in range(len(payload)) if at < 300 or at % (len(payload) // 50) == 0]
        for at, mask in zip(places, masks(len(places), seed=name), strict=True):
            tried += 1
            try:
                plain = decode(Encoding.DELTA, flipped(payload, at, mask), header.raw, bases)
            except IntegrityError:
                harmful += 1
            else:
                harmful += digest(plain) != item.chunk
    assert harmful > tried / 2


@pytest.mark.parametrize("name", MADE)
def test_readers_refuse_frames_in_which_a_byte_is_flipped(family, name):
    backend = in_memory(family)
    item = delta_frames(opened(backend), f"models/{ref_of(name)}")[0]
    content = b"".join(data for data, _ in derivations()[name].content.files.values())
    data = backend.read(item.key)
    places = range(item.begin, item.end, max(1, (item.end - item.begin) // 12))
    harmful = 0
    for at, mask in zip(places, masks(len(places), seed=name), strict=True):
        with damaged(backend, item.key, flipped(data, at, mask)):
            try:
                assert opened(backend).objects.read(item.chunk) in content
            except IntegrityError:
                harmful += 1
    assert harmful > len(places) / 2


CHAIN = ("base", "tuned", "cast of tuned", "mean")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A store of a model, and of what is made of it in three steps."""
    top = tmp_path_factory.mktemp("chain")
    with Store(top / "store", create=True, durability="none") as store:
        add_derivations(store, top, CHAIN)
    return top / "store"


@pytest.mark.parametrize("order", list(itertools.permutations(CHAIN)), ids=" ".join)
def test_bases_go_in_any_order_and_nothing_else_does(chain, order):
    backend = in_memory(chain)
    left = set(CHAIN)
    for name in order:
        store = opened(backend)
        store.rm(f"models/{ref_of(name)}")
        execute_gc(store, plan_gc(store, POLICY))
        left.remove(name)
        again = opened(backend)
        for other in left:
            read(again, other)
        assert_clean(again)
    assert not list(backend.list("packs/"))


def test_what_is_needed_is_copied_out_of_the_pack_of_its_bases(tmp_path):
    folder = write_model(together(), tmp_path / "together")
    with Store(tmp_path / "store", create=True, durability="none") as store:
        store.add(folder, ref="together")
        assert len(delta_frames(store, "together")) >= 3
        alone = write_model(derivations()["cast"].content, tmp_path / "cast")
        store.add(alone, ref="cast")
        store.rm("models/together")
        execute_gc(store, plan_gc(store, POLICY))
        read(store, "cast")
        assert_clean(store)
        assert store.check(read_data=True).ok


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("with_bases", [False, True])
def test_each_is_copied_with_and_without_its_base(family, name, with_bases):
    place = f"memory://{uuid.uuid4().hex}"
    ref = f"models/{ref_of(name)}"
    with Store(family) as store, Store(place, create=True) as other:
        execute(plan_sync(store, other, [ref], with_bases=with_bases))
        read(other, name)
        assert_clean(other)
        assert bool(delta_frames(other, ref)) is with_bases
        execute(plan_sync(store, other))
        for each in MADE:
            read(other, each)


@pytest.mark.parametrize("refs", [None, ["models/cast-of-tuned", "models/Q4_K"]])
def test_a_sync_that_is_cut_off_anywhere_is_completed_by_the_next(family, tmp_path, refs):
    here = Side("memory", tmp_path).hold(
        {key: bytes(data) for key, (data, _) in in_memory(family)._objects.items() if key != "format"}
    )
    whole = Side("memory", tmp_path)
    execute(plan_sync(here.plain, whole.broken(), refs))
    calls = len(whole.faulty.calls)
    assert calls > 10
    for at in range(1, calls, max(1, calls // 12)):
        there = Side("memory", tmp_path)
        there.faulty.fail_from(at, BackendUnavailable("cut off"))
        with pytest.raises(BackendUnavailable):
            execute(plan_sync(here.plain, there.broken(), refs))
        assert_clean(there.plain)
        execute(plan_sync(here.plain, there.plain, refs))
        for name in MADE if refs is None else ("cast of tuned", "Q4_K"):
            read(there.plain, name)
        assert_clean(there.plain)
