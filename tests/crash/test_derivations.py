"""Crashes and kills where one add holds a model and what is made of it, and where bases are collected or copied."""

from __future__ import annotations

import uuid

import pytest
from fakes.crash_states import survivors
from fakes.derivations import add_derivations, delta_frames, derivations, ref_of, together
from fakes.posix_model import LOSE_ALL
from fakes.stores import (
    Disk,
    commit_inline,
    open_on,
    read_model,
    repeat_randomness,
    small_packs,
    write_model,
)

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.errors import RefNotFound
from casstore.ops.check import check
from casstore.ops.sync import execute, plan_sync

STATES = 12
KILL_EVERY = 12

KEPT = {"tuned": "base", "cast of tuned": "tuned"}
"""What stays when its bases go."""


@pytest.fixture(autouse=True)
def several_packs(monkeypatch):
    """A base and what rests on it are in different packs of one publish."""
    commit_inline(monkeypatch)
    small_packs(monkeypatch, 100_000)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk with a store of a model, what is made of it, and nothing that the base alone needs."""
    top = tmp_path_factory.mktemp("disk")
    with pytest.MonkeyPatch.context() as patch:
        commit_inline(patch)
        small_packs(patch, 100_000)
        repeat_randomness(patch)
        made = Disk()
        store = open_on(made, create=True)
        add_derivations(store, top, {"base", *KEPT})
        store.rm("models/base")
    return made.crash(LOSE_ALL)


def value(store, ref):
    try:
        return read_model(store, ref)
    except RefNotFound:
        return None


def judge(disk, expected, *, acknowledged):
    """Return the store on a disk, after a look at all of it: `expected` are contents by ref, None beside one that may be absent."""
    store = open_on(disk)
    report = check(store, read_data=True)
    assert report.ok, report.problems
    for ref, (before, after) in expected.items():
        assert value(store, ref) in ((after,) if acknowledged else (before, after))
    return store


def run(before, act, expected, monkeypatch):
    restart = repeat_randomness(monkeypatch)

    def again(disk):
        restart()
        act(open_on(disk))

    found, _ = survivors(before, again, count=STATES, kill_every=KILL_EVERY)
    assert {survivor.acknowledged for survivor in found} == {False, True}
    for survivor in found:
        for left in (survivor.disk, Disk.holding(survivor.disk.crash(LOSE_ALL))):
            judge(left, expected, acknowledged=survivor.acknowledged)
        open_on(survivor.disk).objects.look_for_packs()
        act(open_on(survivor.disk))
        judge(survivor.disk, expected, acknowledged=True)


def test_an_add_of_a_model_beside_what_is_made_of_it(tmp_path, monkeypatch):
    folder = write_model(together(), tmp_path / "together")
    empty = Disk()
    open_on(empty, create=True)

    def act(store):
        store.add(folder, ref="together")
        assert len(delta_frames(store, "together")) >= 3

    run(empty.crash(LOSE_ALL), act, {"models/together": (None, together())}, monkeypatch)


def test_a_collection_where_bases_stay_and_their_models_go(disk, monkeypatch):
    contents = {f"models/{ref_of(name)}": derivations()[name].content for name in KEPT}
    policy = GcPolicy(orphans_now=True, grace=0, superseded=0, repack=1.0)

    def act(store):
        execute_gc(store, plan_gc(store, policy), wait=0)

    run(disk, act, {ref: (content, content) for ref, content in contents.items()}, monkeypatch)


@pytest.mark.parametrize("with_bases", [False, True])
def test_a_copy_of_what_rests_on_others(disk, monkeypatch, with_bases):
    name = "cast of tuned"
    content = derivations()[name].content
    ref = f"models/{ref_of(name)}"
    place = f"memory://{uuid.uuid4().hex}"
    with Store(place, create=True) as other:
        for key, data in _files(disk).items():
            if key != "format":
                other.backend.put(key, [data])
    empty = Disk()
    open_on(empty, create=True)

    def act(store):
        with Store(place) as source:
            execute(plan_sync(source, store, [ref], with_bases=with_bases))

    run(empty.crash(LOSE_ALL), act, {ref: (None, content)}, monkeypatch)


def _files(disk):
    """Return the files of the store on a disk by their keys."""
    backend = open_on(Disk.holding(disk)).backend
    return {entry.key: bytes(backend.read(entry.key)) for entry in backend.list("")}
