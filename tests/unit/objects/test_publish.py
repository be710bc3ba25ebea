"""The publish protocol against a collector that strikes at the worst moments (design §8)."""

from __future__ import annotations

import itertools
import uuid

import pytest
from fakes.collector import (
    condemn,
    condemned_in,
    current_records,
    delete_packs,
    objects_by_pack,
    packs_of,
    reachable,
    unsafe_objects,
)
from fakes.stores import assert_clean, model_of, noise, read_model, small_packs, write_model

from casstore.backend import BackendWrapper, MemoryBackend
from casstore.backend.base import BlobWriter
from casstore.chunking import FIXED_CHUNK, MAX_CHUNK
from casstore.concurrency.buffers import BLOCK
from casstore.digest import digest
from casstore.errors import (
    BackendUnavailable,
    CasstoreError,
    ConflictError,
    FormatError,
    MissingObject,
    RefNotFound,
)
from casstore.format import marks, names
from casstore.format.rows import Kind
from casstore.machine.state import MachineState
from casstore.objects.index.index import Index
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX, pack_key
from casstore.objects.publishing import publication as publish
from casstore.objects.publishing.pack_writer import encode_frames
from casstore.store.identity import create_format
from casstore.store.model_store import ModelStore

OLD = model_of(a=noise(1, 600), b=noise(2, 700))
NEW = model_of(a=noise(1, 600), b=noise(2, 700), c=noise(3, 500))


class HookedBackend(BackendWrapper):
    """Lets a test act between the calls of one writer.

    `steps` lists the moments passed: "begin" (before tombstones are first read), "check 1", "record" (before
    it is put), "recorded", "check 2" and so on. `at` maps a moment to what happens then, once.
    """

    def __init__(self, inner):
        super().__init__(inner)
        self.steps = []
        self.calls = []
        self.at = {}
        self.always = None

    def _pass(self, step):
        self.steps.append(step)
        action = self.at.pop(step, None)
        if action is not None:
            action()

    def _call(self, operation, key):
        self.calls.append((operation, key))
        if self.always is not None:
            self.always(operation, key)

    def list(self, prefix):
        if prefix == marks.TOMBSTONE_PREFIX:
            checks = sum(step.startswith("check") for step in self.steps)
            self._pass("begin" if not self.steps else f"check {checks + 1}")
        self._call("list", prefix)
        return self.inner.list(prefix)

    def read(self, key, *, start=0, length=None):
        self._call("read", key)
        return self.inner.read(key, start=start, length=length)

    def stat(self, key):
        self._call("stat", key)
        return self.inner.stat(key)

    def put(self, key, parts):
        is_record = key.startswith(names.PREFIX)
        if is_record:
            self._pass("record")
        self._call("put", key)
        self.inner.put(key, parts)
        if is_record:
            self._pass("recorded")

    def create(self, key, parts):
        self._pass("record")
        self._call("create", key)
        self.inner.create(key, parts)
        self._pass("recorded")

    def make_durable(self, keys):
        keys = [*keys]
        self._call("make_durable", " ".join(keys))
        self.inner.make_durable(keys)

    def open_writer(self):
        return _Writer(self, self.inner.open_writer())


class _Writer(BlobWriter):
    def __init__(self, backend, inner):
        self._backend, self._inner = backend, inner

    def write(self, parts):
        self._inner.write(parts)

    def commit(self, key):
        self._backend._call("commit", key)
        self._inner.commit(key)

    def discard(self):
        self._inner.discard()


class Scene:
    """A store that holds OLD, a writer of it that a test can interrupt, and the place behind it."""

    def __init__(self, tmp_path):
        self.plain = MemoryBackend(uuid.uuid4().hex)
        self.identity = create_format(self.plain)
        self.folders = {
            "old": write_model(OLD, tmp_path / "old"),
            "new": write_model(NEW, tmp_path / "new"),
        }
        self.store(self.plain).add(self.folders["old"], ref="models/old")
        self.old_packs = packs_of(self.plain)
        self.hooked = HookedBackend(self.plain)
        self.writer = self.store(self.hooked)

    def store(self, backend):
        return ModelStore(backend, store_id=self.identity.store_id, machine=MachineState(None))

    def own_packs(self):
        return sorted(set(packs_of(self.plain)) - set(self.old_packs))

    def add(self):
        return self.writer.add(self.folders["new"], ref="models/new")

    def assert_safe(self, name="models/new", content=NEW):
        assert unsafe_objects(self.plain, name) == set()
        assert read_model(self.store(self.plain), name) == content


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


MOMENTS = ("begin", "check 1", "record", "recorded", "check 2")


def test_the_moments_are_those_of_the_protocol(scene):
    added = scene.add()
    assert added.chunks_new == 1
    assert scene.hooked.steps == ["begin", "check 1", "record", "recorded", "check 2"]
    scene.assert_safe()


def test_an_undisturbed_add_depends_on_old_packs(scene):
    """Otherwise nothing below would mean anything."""
    scene.add()
    item = current_records(scene.plain)["models/new"]
    held = objects_by_pack(scene.plain)
    assert reachable(scene.plain, item) & set().union(*(held[pack] for pack in scene.old_packs))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pack_it_relies_on_is_condemned(scene, moment):
    scene.hooked.at[moment] = lambda: condemn(scene.plain, scene.old_packs)
    scene.add()
    scene.assert_safe()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pack_it_relies_on_is_deleted(scene, moment):
    scene.hooked.at[moment] = lambda: delete_packs(scene.plain, scene.old_packs)
    scene.add()
    scene.assert_safe()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pack_is_condemned_then_deleted_and_its_tombstone_removed(scene, moment):
    """The whole life of a tombstone between two steps of a writer that was paused."""

    def collect():
        tombstone = condemn(scene.plain, scene.old_packs)
        delete_packs(scene.plain, scene.old_packs)
        scene.plain.delete(tombstone)

    scene.hooked.at[moment] = collect
    scene.add()
    scene.assert_safe()


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(MOMENTS, 2)])
def test_condemned_at_one_moment_and_deleted_at_another(scene, first, second):
    scene.hooked.at[first] = lambda: condemn(scene.plain, scene.old_packs)
    scene.hooked.at[second] = lambda: delete_packs(scene.plain, scene.old_packs)
    scene.add()
    scene.assert_safe()


@pytest.mark.parametrize("act", [condemn, delete_packs])
@pytest.mark.parametrize("moment", ["check 1", "record", "recorded", "check 2"])
def test_its_own_new_packs(scene, act, moment):
    struck = []

    def strike():
        struck.extend(scene.own_packs())
        act(scene.plain, struck)

    scene.hooked.at[moment] = strike
    scene.add()
    assert struck
    assert not set(struck) & (set(packs_of(scene.plain)) - set().union(*condemned_in(scene.plain).values()))
    scene.assert_safe()


@pytest.mark.parametrize("moment", ["check 1", "record", "recorded", "check 2"])
def test_every_pack_is_gone(scene, moment):
    scene.hooked.at[moment] = lambda: delete_packs(scene.plain, packs_of(scene.plain))
    scene.add()
    scene.assert_safe()


@pytest.mark.parametrize("moment", ["check 1", "record", "recorded", "check 2"])
def test_every_pack_is_condemned_and_a_new_writer_dedups_against_none(scene, moment):
    scene.hooked.at[moment] = lambda: condemn(scene.plain, packs_of(scene.plain))
    scene.add()
    scene.assert_safe()


def test_a_condemned_pack_is_not_relied_on(scene):
    condemn(scene.plain, scene.old_packs)
    added = scene.add()
    assert added.chunks_new == added.chunks == 3
    scene.assert_safe()


def test_adding_the_same_again_repairs_a_ref_whose_packs_are_condemned(scene):
    condemn(scene.plain, scene.old_packs)
    scene.writer.add(scene.folders["old"], ref="models/old")
    scene.assert_safe("models/old", OLD)


def test_a_record_that_is_there_already_is_checked_all_the_same(scene):
    """No record is put, so the collector strikes after the first check, or after the second began."""
    for moment in ("check 1", "check 2"):
        scene.hooked.steps.clear()
        packs = packs_of(scene.plain)
        scene.hooked.at[moment] = lambda packs=packs: condemn(scene.plain, packs)
        scene.writer.add(scene.folders["old"], ref="models/old")
        assert "record" not in scene.hooked.steps
        scene.assert_safe("models/old", OLD)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_tag_copies_what_is_condemned(scene, moment):
    scene.hooked.at[moment] = lambda: condemn(scene.plain, scene.old_packs)
    scene.writer.tag("best", "models/old")
    scene.assert_safe("tags/best", OLD)


@pytest.mark.parametrize("moment", ["begin", "check 1", "record"])
def test_a_tag_of_what_is_gone_is_refused(scene, moment):
    """A tag has no files to make the objects from again."""
    scene.hooked.at[moment] = lambda: delete_packs(scene.plain, scene.old_packs)
    with pytest.raises(MissingObject, match="Add the model again"):
        scene.writer.tag("best", "models/old")
    if moment != "record":
        assert set(current_records(scene.plain)) == {"models/old"}


def test_a_tag_of_a_healthy_model_writes_no_pack(scene):
    scene.writer.tag("best", "models/old")
    assert packs_of(scene.plain) == scene.old_packs


def test_a_tag_finds_objects_in_packs_that_no_segment_covers(scene, tmp_path):
    """The index is a hint: without the segment over shared chunks, nothing is copied all the same."""
    first, second = (model_of(big=noise(1, 400_000) + noise(seed, 100)) for seed in (2, 3))
    writer = scene.store(scene.plain)
    before = {entry.key for entry in scene.plain.list(INDEX_PREFIX)}
    writer.add(write_model(first, tmp_path / "first"), ref="models/first")
    [hidden] = {entry.key for entry in scene.plain.list(INDEX_PREFIX)} - before
    added = writer.add(write_model(second, tmp_path / "second"), ref="models/second")
    assert 0 < added.chunks_new < added.chunks
    scene.plain.delete(hidden)
    packs = packs_of(scene.plain)
    scene.writer.tag("best", "models/second")
    assert packs_of(scene.plain) == packs
    scene.assert_safe("tags/best", second)


def test_the_source_changed_and_nothing_else_has_the_bytes(scene):
    def strike():
        delete_packs(scene.plain, packs_of(scene.plain))
        with open(f"{scene.folders['new']}/c", "wb") as file:
            file.write(noise(9, 500))

    scene.hooked.at["check 1"] = strike
    with pytest.raises(ConflictError, match="changed while it was stored"):
        scene.add()
    assert "models/new" not in current_records(scene.plain)


@pytest.mark.parametrize("moment", ["begin", "check 1", "check 2"])
def test_a_tombstone_that_cannot_be_read(scene, moment):
    key = f"{marks.TOMBSTONE_PREFIX}{uuid.uuid4()}"
    scene.hooked.at[moment] = lambda: scene.plain.put(key, [b"no tombstone"])
    with pytest.raises(FormatError, match=key):
        scene.add()
    if moment != "check 2":
        assert "models/new" not in current_records(scene.plain)
    scene.plain.delete(key)
    scene.add()
    scene.assert_safe()


@pytest.mark.parametrize("moment", ["begin", "check 1", "check 2"])
@pytest.mark.parametrize(
    ("operations", "what"),
    [
        (["list"], marks.TOMBSTONE_PREFIX),
        (["read", "stat"], marks.TOMBSTONE_PREFIX),
        (["read", "stat"], PACK_PREFIX),
    ],
)
def test_an_outage_during_a_check_is_not_an_absence(scene, moment, operations, what):
    """Tombstones that cannot be listed, one that does not answer, a pack whose stat does not: nothing is acknowledged."""
    condemn(scene.plain, [b"\x07" * 32])

    def fail(operation, key):
        if operation in operations and key.startswith(what):
            raise BackendUnavailable("out of reach")

    def break_it():
        scene.hooked.always = fail

    scene.hooked.at[moment] = break_it
    with pytest.raises(BackendUnavailable):
        scene.add()
    if moment != "check 2":
        assert "models/new" not in current_records(scene.plain)


def test_every_listing_may_fail(scene):
    scene.add()
    listings = [call for call in scene.hooked.calls if call[0] == "list"]
    assert {prefix for _, prefix in listings} >= {marks.TOMBSTONE_PREFIX, INDEX_PREFIX}
    for nth in range(len(listings)):
        scene.writer.rm("models/new")
        countdown = itertools.count()

        def fail(operation, key, nth=nth, countdown=countdown):
            if operation == "list" and next(countdown) == nth:
                raise BackendUnavailable("out of reach")

        other = HookedBackend(scene.plain)
        other.always = fail
        with pytest.raises(BackendUnavailable):
            scene.store(other).add(scene.folders["new"], ref="models/new")
        assert_clean(scene.store(scene.plain))
        scene.add()
        scene.assert_safe()


def test_a_tombstone_that_is_finished_between_listing_and_reading(scene):
    key = condemn(scene.plain, [b"\x07" * 32])

    def vanish(operation, name):
        if (operation, name) == ("read", key):
            scene.plain.delete(key)

    scene.hooked.always = vanish
    scene.add()
    scene.assert_safe()


def test_a_collector_that_never_rests(scene):
    """Whatever is written is condemned at once; the publish gives up and acknowledges nothing."""

    def strike(operation, key):
        if operation == "commit":
            condemn(scene.plain, [bytes.fromhex(key[-64:])])

    scene.hooked.always = strike
    with pytest.raises(ConflictError, match=f"{publish.MAX_ROUNDS} times"):
        scene.add()
    assert "models/new" not in current_records(scene.plain)


def test_a_collector_that_rests_after_some_rounds(scene):
    left = itertools.repeat(None, publish.MAX_ROUNDS // 2)

    def strike(operation, key):
        if operation == "commit" and next(left, 0) is None:
            condemn(scene.plain, [bytes.fromhex(key[-64:])])

    scene.hooked.always = strike
    scene.add()
    scene.assert_safe()


def test_tombstones_are_read_before_packs_are_looked_at(scene):
    """The other order loses data: a pack is seen, deleted, and its tombstone removed before it is read."""
    scene.add()
    relevant = [
        (operation, key)
        for operation, key in scene.hooked.calls
        if (operation == "list" and key == marks.TOMBSTONE_PREFIX)
        or (operation == "stat" and key.startswith(PACK_PREFIX))
    ]
    for check in (2, 3):  # after the one at the beginning
        at = [i for i, (operation, _) in enumerate(relevant) if operation == "list"][check - 1]
        following = itertools.takewhile(lambda call: call[0] == "stat", relevant[at + 1 :])
        assert {key for _, key in following} >= {pack_key(pack) for pack in packs_of(scene.plain)}


def test_the_order_of_writes(scene, monkeypatch):
    """Invariant 3: packs, then the index over them, then the record; others' packs made durable before it."""
    small_packs(monkeypatch, 100)
    others = {pack_key(pack) for pack in scene.old_packs}
    scene.add()
    writes = [call for call in scene.hooked.calls if call[0] in ("commit", "put", "make_durable")]
    kinds = [f"{operation} {key.partition('/')[0]}" for operation, key in writes]
    packs = kinds.count("commit packs")
    assert packs > 2
    assert kinds == ["commit packs"] * packs + ["commit index", "make_durable packs", "put refs"]
    assert set(dict(writes)["make_durable"].split()) == others, (
        "own packs are durable as soon as they are committed"
    )


def test_packs_are_made_durable_once_per_store(scene):
    """A pack that this process saw durable stays so: its name never comes back for other bytes (invariant 6)."""
    scene.add()
    del scene.hooked.calls[:]
    scene.add()
    assert [
        key for operation, key in scene.hooked.calls if operation == "make_durable" and "packs/" in key
    ] == []


def test_what_another_writer_published_during_the_second_check_is_made_durable_too(scene):
    """The second check may come to rely on packs that the first one did not know."""

    def strike():
        scene.store(scene.plain).add(scene.folders["new"], ref="models/twin", stat_cache=False)

    def collect():
        delete_packs(scene.plain, lost)

    lost = []

    def before_record():
        known = set(packs_of(scene.plain))
        tombstone = condemn(scene.plain, known)
        lost.extend(known)
        strike()
        scene.plain.delete(tombstone)

    scene.hooked.at["record"] = before_record
    scene.hooked.at["recorded"] = collect
    scene.add()
    scene.assert_safe()
    settled = {
        key for operation, keys in scene.hooked.calls if operation == "make_durable" for key in keys.split()
    }
    used = {pack_key(pack) for pack in packs_of(scene.plain)}
    committed = {key for operation, key in scene.hooked.calls if operation == "commit"}
    assert used <= settled | committed


def test_whatever_call_fails_a_ref_is_whole_or_absent(scene):
    outcomes = []
    for nth in itertools.count():
        calls = itertools.count()

        def fail(operation, key, nth=nth, calls=calls):
            if next(calls) == nth:
                raise BackendUnavailable("out of reach", retryable=False)

        other = HookedBackend(scene.plain)
        other.always = fail
        try:
            scene.store(other).add(scene.folders["new"], ref=f"models/try{nth}")
        except CasstoreError:
            try:
                assert read_model(scene.store(scene.plain), f"models/try{nth}") == NEW
            except RefNotFound:
                outcomes.append("absent")
            else:
                outcomes.append("whole")
        else:
            # What failed concerned a hint, if anything did (invariant 13).
            assert read_model(scene.store(scene.plain), f"models/try{nth}") == NEW
            if next(calls) <= nth:
                break
            outcomes.append("unharmed")
    assert {"absent", "whole", "unharmed"} == set(outcomes)
    assert_clean(scene.store(scene.plain))


def test_a_writer_whose_index_is_old_notices_what_went(scene):
    """Its view of the index names packs that were collected, and merged segments that are gone."""
    stale = scene.store(scene.hooked)
    read_model(stale, "models/old")
    fresh = scene.store(scene.plain)
    condemned = condemn(scene.plain, scene.old_packs)
    fresh.add(scene.folders["old"], ref="models/old")
    delete_packs(scene.plain, scene.old_packs)
    scene.plain.delete(condemned)
    for entry in list(scene.plain.list(INDEX_PREFIX)):
        index = Index(scene.plain)
        index.refresh()
        if entry.key in index.segments and not set(packs_of(scene.plain)) & {
            index.pack_id(number) for number in index.segments[entry.key].numbers.tolist()
        }:
            scene.plain.delete(entry.key)
    stale.add(scene.folders["new"], ref="models/new")
    scene.assert_safe()
    assert read_model(stale, "models/old") == OLD


def test_the_frames_of_a_full_block_fit_into_a_block_that_is_used_again():
    """Fresh memory for each block costs as much as hashing it."""
    size = BLOCK + MAX_CHUNK
    block = memoryview(noise(1, FIXED_CHUNK) * (size // FIXED_CHUNK))
    cuts = [(at, FIXED_CHUNK) for at in range(0, size, FIXED_CHUNK)]
    frames = encode_frames(
        Kind.CHUNK, [digest(block[:FIXED_CHUNK])] * len(cuts), block, cuts, [None] * len(cuts)
    )
    assert frames.block is not None
    frames.release()
