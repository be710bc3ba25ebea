"""A fresh machine and a small model: packs that its record names, rather than the whole index (design §6)."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from fakes.far_stores import far_store, of_index, total
from fakes.stores import assert_clean, noise, read_model

from casstore.api.store import Store
from casstore.errors import BackendUnavailable, IntegrityError, MissingObject
from casstore.objects.keys import pack_key
from casstore.ops.sync import execute, plan_sync

MODELS = 24
WEIGHTS = noise(1, 3 << 20)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of a store with so many objects that its index is larger than a few footers."""
    folder = tmp_path_factory.mktemp("hints")
    with Store(folder / "store", create=True, durability="none") as store:
        for number in range(MODELS):
            files = folder / "model"
            os.makedirs(files)
            for name in range(150):
                (files / f"{name}").write_bytes(noise(1000 * number + name, 40))
            if number == 17:
                (files / "weights").write_bytes(WEIGHTS)
            store.add(files, ref=f"models/{number}")
            shutil.rmtree(files)
    return folder / "store"


@pytest.fixture
def near(made, tmp_path):
    shutil.copytree(made, tmp_path / "store")
    with Store(tmp_path / "store", durability="none") as store:
        yield store


@pytest.fixture
def far(near):
    store, backend = far_store(near)
    yield store, backend
    store.objects.chunks.close()


def index_size(near):
    return sum(entry.size for entry in near.backend.list("index/"))


def pack_of(near, record):
    [pack] = record.packs
    return pack_key(pack)


def test_one_model_is_read_without_the_index(near, far):
    store, backend = far
    with store.open_file("models/17", "weights") as file:
        file.seek(1 << 20)
        assert file.read(1000) == WEIGHTS[1 << 20 :][:1000]
    requests = backend.take()
    assert of_index(requests) == []
    chunk = int(store.model("models/17").layout("weights").lengths.max())
    assert total(requests) < chunk + index_size(near) / 3
    assert len(requests) <= 9
    backend.take()
    assert read_model(store, "models/17").files["weights"][0] == WEIGHTS
    assert of_index(backend.take()) == []


def test_many_models_are_worth_the_index(near, far):
    store, backend = far
    for number in range(MODELS):
        assert len(store.model(f"models/{number}").tree.files) >= 150
    requests = backend.take()
    assert total(of_index(requests)) == index_size(near)
    footers = [request for request in requests if request.verb == "stat"]
    assert 0 < len(footers) * (64 << 10) <= index_size(near)


def test_a_pull_of_one_model_needs_no_index(near, far, tmp_path):
    store, backend = far
    with Store(tmp_path / "mine", create=True, durability="none") as mine:
        execute(plan_sync(store, mine, ["models/17"]))
        assert of_index(backend.take()) == []
        assert read_model(mine, "models/17") == read_model(near, "models/17")
        assert_clean(mine)
        execute(plan_sync(store, mine, [f"models/{number}" for number in range(12)]))
        assert of_index(backend.take()) != []
        assert read_model(mine, "models/3") == read_model(near, "models/3")
        assert_clean(mine)


def test_publishing_never_relies_on_hints(near, far, tmp_path):
    """Whoever writes must know everything, or would store again what is there."""
    store, backend = far
    store.model("models/17")
    (tmp_path / "again").write_bytes(noise(3000 + 5, 40))  # in another model
    backend.take()
    added = store.add(tmp_path / "again", ref="models/again")
    assert added.chunks_new == 0
    assert of_index(backend.take()) != []


@pytest.mark.parametrize("how", ["gone", "damaged", "elsewhere"])
def test_hints_that_do_not_help(near, far, how):
    store, backend = far
    record = near.record("models/17")
    if how == "gone":
        hinted = replace(record, packs=(bytes(32),))
    elif how == "elsewhere":
        hinted = replace(record, packs=near.record("models/3").packs)
    else:
        hinted = record
        key = pack_of(near, record)
        backend.flip(key, near.backend.stat(key).size - 100)  # in its footer
    model = store.model_of(hinted)
    assert model.layout("weights").size == len(WEIGHTS)
    with store.open_layout(model.layout("weights"), name="weights") as file:
        assert file.read() == WEIGHTS
    assert of_index(backend.take()) != []


def test_a_hinted_pack_that_goes_later(near, far):
    store, backend = far
    model = store.model("models/17")
    assert of_index(backend.take()) == []
    near.backend.delete(pack_of(near, model.record))
    with pytest.raises(MissingObject):
        store.objects.read_many(model.layout("weights").chunk_ids())


def test_a_frame_that_is_damaged_is_looked_for_elsewhere(near, far):
    store, backend = far
    model = store.model("models/17")
    located = store.objects.locate(model.layout("weights").ids)
    backend.flip(pack_of(near, model.record), int(located.rows["offset"][0]) + 200)
    with pytest.raises(IntegrityError), store.open_layout(model.layout("weights"), name="weights") as file:
        file.read()
    assert of_index(backend.take()) != []


def test_an_outage_is_no_missing_pack(far):
    store, backend = far
    record = store.record("models/17")
    backend.unplugged = True
    with pytest.raises(BackendUnavailable):
        store.model_of(record)


def test_copies_on_this_machine_come_first(near, tmp_path):
    first, backend = far_store(near, index_copies=str(tmp_path / "copies"))
    first.objects._index.refresh()
    backend.take()
    second, backend = far_store(near, index_copies=str(tmp_path / "copies"))
    second.model("models/17")
    requests = backend.take()
    assert of_index(requests) == []
    # Objects only: no footer, for nothing of the index had to be fetched.
    assert not any(request.verb == "stat" for request in requests)
    for store in (first, second):
        store.objects.chunks.close()
