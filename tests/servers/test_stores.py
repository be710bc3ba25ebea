"""Whole stores on real servers, used from two machines: two handles, each with a home of its own."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pytest
from fakes.stores import assert_clean, model_of, noise, read_folder, read_model, write_model
from servers.web import web_server

from casstore import Store, execute_sync, plan_sync
from casstore.errors import ConfigError, IntegrityError, RefConflict, RefNotFound
from casstore.objects.keys import PACK_PREFIX
from casstore.objects.publishing import pack_writer

random = np.random.default_rng(5)
WEIGHTS = random.standard_normal(700_000, np.float32)
ONE = model_of(weights__a_bin=WEIGHTS.tobytes(), config_json=b"{}", empty=b"")
TWO = model_of(
    weights__a_bin=np.where(WEIGHTS > 1, 0, WEIGHTS).tobytes(), config_json=b"{}", more=bytes(9 << 20)
)


@dataclass
class Place:
    """Where a store is on a server, and how machines come to it."""

    url: str
    options: dict = field(repr=False)
    tmp_path: object
    monkeypatch: object
    open_stores: ExitStack

    def machine(self, name, **options):
        """Open the store as a machine of this name: with its own home."""
        self.monkeypatch.setenv("XDG_CACHE_HOME", str(self.tmp_path / name / "cache"))
        return self.open_stores.enter_context(Store(self.url, **self.options, **options))


@pytest.fixture
def place(remote_place, tmp_path, monkeypatch):
    with ExitStack() as open_stores:
        yield Place(*remote_place, tmp_path, monkeypatch, open_stores)


def test_an_add_of_many_packs_arrives_whole(place, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_writer, "REMOTE_PACK_TARGET", 256 << 10)
    monkeypatch.setattr("casstore.store.adding.ingest.BLOCK", 256 << 10)
    here = place.machine("here", create=True)
    content = model_of(**{f"part-{number}": noise(number, 1 << 20) for number in range(16)})
    here.add(write_model(content, tmp_path / "many"), ref="models/many")
    assert len(list(here.backend.list(PACK_PREFIX))) > pack_writer.UPLOADS
    there = place.machine("there")
    assert read_model(there, "models/many") == content
    assert_clean(there)


def test_what_one_machine_adds_another_checks_out(place, tmp_path):
    here = place.machine("here", create=True)
    added = here.add(write_model(ONE, tmp_path / "one"), ref="models/one")
    derived = here.add(write_model(TWO, tmp_path / "two"), ref="models/two", base="models/one")
    assert derived.bytes_stored < len(WEIGHTS) * 4

    there = place.machine("there")
    assert set(there.refs()) == {"models/one", "models/two"}
    assert there.model("models/one").model_id == added.model_id
    for ref, content in (("models/one", ONE), ("models/two", TWO)):
        there.get(ref, tmp_path / "out" / ref)
        assert read_folder(tmp_path / "out" / ref) == content
        assert read_model(there, ref) == content
    assert_clean(there)

    again = there.add(tmp_path / "two", ref="models/again")
    assert again.model_id == derived.model_id
    there.tag("production", "models/two")
    assert here.model("production").model_id == derived.model_id
    assert_clean(here)

    here.rm("models/two")
    with pytest.raises(RefNotFound):
        there.model("models/two")
    assert set(there.refs()) == {"models/again", "models/one", "tags/production"}
    assert list(here.backend.list_temporaries()) == []


def test_of_two_that_move_a_tag_one_wins(place, tmp_path):
    stores = [place.machine("here", create=True), place.machine("there")]
    for name in ("one", "two", "three"):
        stores[0].add(write_model(model_of(config_json=name.encode()), tmp_path / name), ref=f"models/{name}")
    assert stores[1].backend.creates_exclusively
    for _ in range(3):
        together = threading.Barrier(2)
        for store in stores:
            meet(store.backend, together, place.monkeypatch)
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(move_tag, stores, ["models/one", "models/two"]))
        assert sorted(map(bool, outcomes)) == [False, True]
        place.monkeypatch.undo()
        won = stores[0].model(next(filter(None, outcomes))).model_id
        assert [store.model("tags/production").model_id for store in stores] == [won, won]
        stores[1].tag("production", "models/three")  # or the one that has it already would write nothing
    assert_clean(stores[0])


def meet(backend, barrier, monkeypatch):
    create = type(backend).create

    def together(key, parts):
        barrier.wait(30)
        create(backend, key, parts)

    monkeypatch.setattr(backend, "create", together)


def move_tag(store, ref):
    try:
        store.tag("production", ref)
    except RefConflict:
        return None
    return ref


def test_models_are_pushed_and_pulled(place, tmp_path):
    shared = place.machine("shared", create=True)
    local = place.open_stores.enter_context(Store(tmp_path / "local", create=True))
    local.add(write_model(ONE, tmp_path / "one"), ref="models/one")
    local.add(write_model(TWO, tmp_path / "two"), ref="models/two", base="models/one")
    execute_sync(plan_sync(local, shared))
    assert_clean(shared)
    assert plan_sync(local, shared).empty
    other = place.open_stores.enter_context(Store(tmp_path / "other", create=True))
    execute_sync(plan_sync(place.machine("there"), other, refs=["models/two"]))
    assert read_model(other, "models/two") == TWO
    assert_clean(other)


def test_a_forked_child_reads_on(place, tmp_path):
    store = place.machine("here", create=True)
    store.add(write_model(ONE, tmp_path / "one"), ref="models/one")
    assert read_model(store, "models/one") == ONE
    child = os.fork()
    if child == 0:
        try:
            status = 0 if read_model(store, "models/one") == ONE else 1
        except BaseException:  # noqa: BLE001  # the child of a test may only exit
            status = 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_model(store, "models/one") == ONE


def test_a_place_that_is_no_store(place):
    with pytest.raises(ConfigError):
        place.machine("here")
    store = place.machine("here", create=True)
    store.backend.delete("format")
    store.backend.put("format", [b"something else"])
    with pytest.raises(IntegrityError):
        place.machine("there")


def test_a_store_that_a_web_server_shows_is_pulled_from(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    with Store(tmp_path / "site/store", create=True) as origin:
        origin.add(write_model(ONE, tmp_path / "one"), ref="models/one")
        origin.add(write_model(TWO, tmp_path / "two"), ref="models/two", base="models/one")
        origin.tag("production", "models/two")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    with (
        web_server(tmp_path / "site") as (url, seen),
        Store(f"{url}/store", read_only=True) as shown,
        Store(tmp_path / "mine", create=True) as mine,
    ):
        assert set(shown.refs()) == {"models/one", "models/two", "tags/production"}
        assert read_model(shown, "models/one") == ONE
        execute_sync(plan_sync(shown, mine))
        assert read_model(mine, "tags/production") == TWO
        assert_clean(mine)
        shown.get("models/two", tmp_path / "out")
        assert read_folder(tmp_path / "out") == TWO
        assert {method for method, _, _ in seen} <= {"GET", "HEAD"}
