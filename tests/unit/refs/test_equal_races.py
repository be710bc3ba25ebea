"""Writers that want the same thing at the same time all succeed; those that disagree are told."""

from __future__ import annotations

import multiprocessing
import traceback

import pytest
from fakes.stores import assert_clean, model_of, noise, write_model

from casstore import Store
from casstore.backend import MemoryBackend
from casstore.errors import RefConflict
from casstore.machine.state import MachineState
from casstore.ops.sync import execute, plan_sync
from casstore.refs.refs import Refs

PROCESSES = 8
ONE, OTHER = b"\1" * 32, b"\2" * 32


@pytest.fixture
def writers(request):
    """Two that do not know of one another."""
    backend = MemoryBackend(f"test_equal_races/{request.node.name}")
    return [Refs(backend, MachineState(None)) for _ in range(2)]


@pytest.mark.parametrize("first", [None, b"\3" * 32], ids=["new", "moved"])
@pytest.mark.parametrize(("one", "other"), [(ONE, ONE), (None, None), (ONE, OTHER), (ONE, None), (None, ONE)])
def test_two_writers_of_one_tag(writers, first, one, other):
    if first is not None:
        writers[0].put(writers[0].draft("tags/x", target=first))
    drafts = [refs.draft("tags/x", target=target) for refs, target in zip(writers, (one, other), strict=True)]
    won = writers[0].put(drafts[0])
    assert won == drafts[0]
    if one == other:
        assert writers[1].put(drafts[1]) == won, "the record that stands"
    else:
        with pytest.raises(RefConflict, match="tags/x was moved by someone else"):
            writers[1].put(drafts[1])
    for refs in writers:
        assert refs.value("tags/x") == (won if one is not None else None)


def test_what_differs_only_in_its_description_is_equal(writers):
    """Two manifests of one model name the same model."""
    drafts = [
        refs.draft("tags/x", target=ONE, manifest=bytes([number]) * 32, metadata={"n": number})
        for number, refs in enumerate(writers)
    ]
    won = writers[0].put(drafts[0])
    assert writers[1].put(drafts[1]) == won


def in_processes(work, *arguments):
    """Run `work` in processes that start at the same moment; return what they answer."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(PROCESSES), context.SimpleQueue()

    def run(number):
        try:
            answers.put(work(number, barrier, *arguments))
        except BaseException:  # noqa: BLE001  # the parent shows it
            barrier.abort()  # Nobody waits for one that failed.
            answers.put(traceback.format_exc())

    processes = [context.Process(target=run, args=(number,)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return found


@pytest.fixture
def places(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    Store(there, create=True, durability="none").close()
    with Store(here, create=True, durability="none") as store:
        for number in range(3):
            folder = write_model(model_of(w=noise(number, 50_000)), tmp_path / f"m{number}")
            store.add(folder, ref=f"models/{number}")
        store.tag("best", "models/0")
    return here, there


def tag_and_push(number, barrier, here, there):
    with (
        Store(here, durability="none") as store,
        Store(there, durability="none") as other,
    ):
        barrier.wait()
        store.tag("best", "models/1")
        store.tag("new", "models/2")
        plan = plan_sync(store, other)
        barrier.wait()
        report = execute(plan)
        return [found.reason for found in report.conflicts]


def test_processes_that_want_the_same(places):
    assert in_processes(tag_and_push, *places) == [[]] * PROCESSES
    for place in places:
        with Store(place) as store:
            assert store.record("tags/best").target == store.record("models/1").target
            assert store.record("tags/new").target == store.record("models/2").target
            assert_clean(store)


def tag_own(number, barrier, here):
    with Store(here, durability="none") as store:
        barrier.wait()
        try:
            store.tag("new", f"models/{number % 3}")
        except RefConflict:
            return "conflict"
        return store.record("tags/new").target is not None


def test_processes_that_disagree_are_told(places):
    """Nobody is told that his move worked when it did not; and one did."""
    found = in_processes(tag_own, places[0])
    assert set(found) <= {True, "conflict"}
    assert True in found
