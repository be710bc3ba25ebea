"""Repair of deltas: a base that is damaged or gone is healed, or what lacks it gets a copy that needs none (invariant 7)."""

from __future__ import annotations

import uuid

import pytest
from fakes.collector import delete_packs, delta_frame, packs_of
from fakes.stores import model_of, noise, read_model, write_model

from casstore.backend import MemoryBackend
from casstore.format.rows import Kind
from casstore.machine.state import MachineState
from casstore.objects import encode_object, pack_key
from casstore.objects.keys import INDEX_PREFIX
from casstore.ops.repair import Health, repair
from casstore.store.identity import create_format
from casstore.store.model_store import ModelStore
from casstore.store.reading.other_stores import OtherStores, Place

BASE, DELTA, ABOVE = noise(1, 3_000), noise(2, 3_000), noise(3, 3_000)


def again(store):
    return ModelStore(store.backend, store_id=bytes.fromhex(store.store_id), machine=MachineState(None))


def new_store(*frames):
    """Return a store that holds each frame in a pack of its own, and the packs."""
    backend = MemoryBackend(uuid.uuid4().hex)
    store = ModelStore(backend, store_id=create_format(backend).store_id, machine=MachineState(None))
    packs = []
    for item in frames:
        before = set(packs_of(backend))
        with store.publication() as publication:
            publication.write(item)
            publication.commit_all([], lambda _: iter(()))
        packs += set(packs_of(backend)) - before
    return store, packs


@pytest.fixture
def chain(tmp_path):
    """A model of which the only chunk is ABOVE, a delta on DELTA, a delta on BASE; and the packs of these."""
    store, packs = new_store(
        encode_object(Kind.CHUNK, BASE),
        delta_frame(DELTA, 4, [BASE]),
        delta_frame(ABOVE, 8, [DELTA]),
    )
    store.add(write_model(model_of(f=ABOVE), tmp_path / "model"), ref="models/m")
    return store, packs


def flip(store, pack):
    key = pack_key(pack)
    data, written = store.backend._objects[key]
    store.backend._objects[key] = (b"%b%c%b" % (data[:500], data[500] ^ 1, data[501:]), written)


def mended(store, other, *, dry_run=False):
    others = OtherStores(lambda: [Place("other", lambda: other)] if other is not None else [])
    return repair(again(store), others=others, dry_run=dry_run)


def assert_whole(store):
    assert read_model(again(store), "models/m") == model_of(f=ABOVE)
    assert again(store).lacks(store.record("models/m")) == 0


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("how", ["flipped", "gone"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_another_store_has_it_all(chain, tmp_path, which, how, dry_run):
    """One copy is taken, of the lowest thing that is lost: it mends all that needs it."""
    store, packs = chain
    other, _ = new_store(encode_object(Kind.CHUNK, BASE), encode_object(Kind.CHUNK, DELTA))
    other.add(write_model(model_of(f=ABOVE), tmp_path / "again"), ref="models/m")
    flip(store, packs[which]) if how == "flipped" else delete_packs(store.backend, [packs[which]])
    assert mended(store, None, dry_run=True).refs[0].health is Health.MISSING
    report = mended(store, other, dry_run=dry_run)
    assert report.ok
    assert report.refs[0].health is Health.HEALED
    assert sum(report.sources.values()) == 1
    if not dry_run:
        assert_whole(store)


@pytest.mark.parametrize("which", [0, 1])
def test_a_store_without_the_base_gives_the_chunk_itself(chain, tmp_path, which):
    store, packs = chain
    other, _ = new_store()
    other.add(write_model(model_of(f=ABOVE), tmp_path / "again"), ref="models/m")
    delete_packs(store.backend, [packs[which]])
    assert mended(store, other, dry_run=True).ok
    assert mended(store, other).ok
    assert_whole(store)


def test_nobody_has_the_base(chain):
    store, packs = chain
    delete_packs(store.backend, [packs[0]])
    report = mended(store, None)
    assert not report.ok
    assert report.refs[0].missing == 1
    assert report.refs[0].files == ("f",)


def test_a_base_is_salvaged_from_a_damaged_pack(chain):
    """Only the footer of its pack is damaged."""
    store, packs = chain
    key = pack_key(packs[0])
    data, written = store.backend._objects[key]
    store.backend._objects[key] = (data[:-9], written)
    report = mended(store, None)
    assert report.sources == {key: 1}
    assert_whole(store)


@pytest.mark.parametrize("torn", [(2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("segments", ["with segments", "without"])
def test_deltas_are_salvaged_from_packs_whose_footer_is_torn(chain, torn, segments):
    """Their bases may be in good packs, or salvaged likewise."""
    store, packs = chain
    for number in torn:
        key = pack_key(packs[number])
        data, written = store.backend._objects[key]
        store.backend._objects[key] = (data[:-9], written)
    if segments == "without":
        for key in list(store.backend.list_keys(INDEX_PREFIX)):
            store.backend.delete(key)
    report = mended(store, None)
    assert report.ok
    assert pack_key(packs[2]) in report.sources
    assert_whole(store)


def test_a_salvaged_delta_whose_base_is_nowhere_stays_missing(chain):
    store, packs = chain
    key = pack_key(packs[2])
    data, written = store.backend._objects[key]
    store.backend._objects[key] = (data[:-9], written)
    delete_packs(store.backend, [packs[0]])
    report = mended(store, None)
    assert (report.ok, report.refs[0].missing) == (False, 1)
