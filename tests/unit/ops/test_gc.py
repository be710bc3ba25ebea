"""What a collection frees and what it leaves, by itself and beside others."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import suppress

import pytest
from fakes import adder
from fakes.collector import condemn, decoded, delta_frame, frames_of, packs_of, write_frames
from fakes.far_stores import far_store, of_packs
from fakes.faulty_backend import FaultyBackend
from fakes.posix_model import SimulatedCrash
from fakes.predicting import predicting, relative
from fakes.stores import (
    assert_clean,
    commit_inline,
    model_of,
    noise,
    read_model,
    repeat_randomness,
    small_packs,
    write_model,
)

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.backend import LocalBackend, MemoryBackend
from casstore.backend.base import LOCKLESS
from casstore.backend.local.syscalls import SystemCalls
from casstore.digest import digest
from casstore.errors import BackendError, BackendUnavailable, FormatError, IntegrityError, MissingObject
from casstore.format import marks, names
from casstore.format.rows import Kind
from casstore.machine.state import MachineState, machine_folder
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX, pack_key
from casstore.objects.publishing.pack_writer import encode_object
from casstore.ops.gc.candidates import choose
from casstore.ops.gc.policy import DAY, HOUR, WEEK
from casstore.ops.gc.roots import trim
from casstore.ops.gc.survey import Survey
from casstore.ops.gc.sweep import Sweep
from casstore.refs.refs import Refs
from casstore.store.model_store import ModelStore

MODELS = {
    number: model_of(own=noise(300 + number, 40_000), other=noise(400 + number, 9_000)) for number in range(5)
}
SHARED = model_of(own=noise(0, 40_000), more=noise(1, 40_000), last=noise(2, 40_000))
_folders = itertools.count()


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def far():
    """A store of which nobody can know who writes to it."""
    name = uuid.uuid4().hex
    with Store(f"memory://{name}", create=True) as opened:
        yield opened


@pytest.fixture
def add(tmp_path):
    def adds(store, ref, content):
        folder = write_model(content, tmp_path / f"model{next(_folders)}")
        return store.add(folder, ref=ref, stat_cache=False)

    return adds


def sizes(store):
    """Return the bytes of packs, records and temporary files."""
    listed = [entry.size for prefix in (PACK_PREFIX, names.PREFIX) for entry in store.backend.list(prefix)]
    return sum(listed) + sum(entry.size for entry in store.backend.list_temporaries())


def collect(store, policy=None, *, now=None, **options):
    plan = plan_gc(store, policy, now=now)
    return execute_gc(store, plan, **options)


def records_read(store, monkeypatch, work):
    """Return the keys of the records that `work` reads."""
    read, keys = type(store.backend).read, []

    def noted(self, key, **options):
        keys.append(key)
        return read(self, key, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(store.backend), "read", noted)
        work()
    return [key for key in keys if key.startswith(names.PREFIX)]


def later(store, seconds):
    return time.time() + seconds


# ---- what goes, on a local store


def test_values_that_were_just_replaced_are_read_only_where_a_young_pack_may_go(store, add, monkeypatch):
    """A pack that one of them names belongs to no add that failed."""
    for number in range(2):
        add(store, f"models/{number}", MODELS[number])
    for number in range(20):
        store.tag("best", f"models/{number % 2}")
    assert len(records_read(store, monkeypatch, lambda: plan_gc(store))) == len(store.refs())
    store.rm("models/0")
    store.tag("best", "models/1")
    assert len(records_read(store, monkeypatch, lambda: plan_gc(store))) > 20
    assert collect(store).packs_deleted == 1
    assert collect(store).packs_deleted == 0


def test_a_dry_run_changes_nothing_and_the_run_frees_what_it_said(store, add):
    for number, content in MODELS.items():
        add(store, f"models/{number}", content)
    for number in (1, 3):
        store.rm(f"models/{number}")
    before = sizes(store)
    listed = sorted(store.backend.list_keys(""))
    plan = plan_gc(store)
    assert sorted(store.backend.list_keys("")) == listed
    assert plan.bytes_freed > 90_000
    report = execute_gc(store, plan)
    assert report.ok
    assert report.mode == "alone"
    assert before - sizes(store) == report.bytes_freed == plan.bytes_freed
    assert_clean(store)
    for number in (0, 2, 4):
        assert read_model(store, f"models/{number}") == MODELS[number]
    again = plan_gc(store)
    assert (again.items, again.bytes_freed) == ((), 0)
    assert execute_gc(store, again).packs_deleted == 0
    assert len(list(store.backend.list_keys(marks.TOMBSTONE_PREFIX))) == 1


def test_what_a_tag_or_another_ref_needs_stays(store, add):
    add(store, "models/a", MODELS[0])
    store.tag("kept", "models/a")
    store.rm("models/a")
    assert collect(store, GcPolicy(orphans_now=True)).packs_deleted == 0
    assert read_model(store, "tags/kept") == MODELS[0]


def test_a_failed_adds_packs_are_left_for_an_hour(store, add):
    with store.publication() as publication:
        publication.write(encode_object(Kind.CHUNK, noise(7, 5_000)))
        publication.commit_all([], lambda _: iter(()))
    plan = plan_gc(store)
    assert [item.what for item in plan.items] == ["young packs"]
    assert execute_gc(store, plan).packs_deleted == 0
    assert collect(store, GcPolicy(orphans_now=True)).packs_deleted == 1


def test_a_failed_adds_packs_go_after_an_hour(store):
    with store.publication() as publication:
        publication.write(encode_object(Kind.CHUNK, noise(7, 5_000)))
        publication.commit_all([], lambda _: iter(()))
    assert collect(store, now=later(store, HOUR - 60)).packs_deleted == 0
    assert collect(store, now=later(store, HOUR + 60)).packs_deleted == 1


def test_temporary_files_of_dead_writers_go_and_those_of_living_ones_stay(store):
    writer = store.backend.open_writer()
    writer.write([b"alive" * 100])
    (left,) = store.backend.list_temporaries()
    dead = os.path.join(os.path.dirname(store.backend.local_path("format")), ".tmp", f"{'0' * 32}.held")
    with open(dead, "wb") as file:
        file.write(bytes(1 << 20))
    plan = plan_gc(store, now=later(store, 2 * DAY))
    assert [(item.what, item.bytes_freed) for item in plan.items] == [("temporary files", 1 << 20)]
    assert execute_gc(store, plan).bytes_freed == 1 << 20
    assert list(store.backend.list_temporaries()) == [left]
    writer.discard()


def test_replaced_values_go_at_once_unless_they_are_kept(store, add):
    for number in range(4):
        add(store, "models/a", MODELS[number])
    old = store.history("models/a")
    assert collect(store, GcPolicy(keep_last=3)).packs_deleted == 1
    for number in (1, 2, 3):
        model = store.model_of(old[number])
        assert store.objects.read_many([chunk for layout in model.layouts for chunk in layout.chunk_ids()])
    assert collect(store).packs_deleted == 2
    assert read_model(store, "models/a") == MODELS[3]
    with Store(store.backend.url) as other, pytest.raises(MissingObject):
        other.checkout_record(old[0], "/nowhere")
    assert_clean(store)


def test_keeping_more_values_than_before_misses_none(store, add):
    for number in range(3):
        add(store, "models/a", MODELS[number])
    assert collect(store).packs_deleted == 2
    report = collect(store, GcPolicy(keep_last=3, orphans_now=True))
    assert report.ok, report
    add(store, "models/a", MODELS[3])
    assert collect(store, GcPolicy(keep_last=2, orphans_now=True)).packs_deleted == 0


def test_keeping_the_last_values_of_a_deleted_ref_keeps_none(store, add):
    for number in range(3):
        add(store, "models/a", MODELS[number])
    store.rm("models/a")
    assert collect(store, GcPolicy(keep_last=3)).packs_deleted == 3


def test_refs_go_by_age_and_tags_never(store, add):
    add(store, "models/a", MODELS[0])
    add(store, "models/b", MODELS[1])
    store.tag("b", "models/b")
    store.put_manifest("runs/r", b"x")
    policy = GcPolicy(older_than=30 * DAY)
    assert plan_gc(store, policy, now=later(store, 29 * DAY)).refs == ()
    plan = plan_gc(store, policy, now=later(store, 31 * DAY))
    assert plan.refs == ("models/a",), "a tag names the other one's model"
    report = execute_gc(store, plan)
    assert (report.refs_deleted, report.packs_deleted) == (["models/a"], 0)
    assert sorted(store.refs()) == ["models/b", "runs/r", "tags/b"]
    store.undelete("models/a")
    assert read_model(store, "models/a") == MODELS[0]
    assert collect(store, policy, now=later(store, 31 * DAY)).packs_deleted == 0
    before = sizes(store)
    report = collect(store)
    assert before - sizes(store) == report.bytes_freed > 40_000
    with pytest.raises(MissingObject, match="models/a cannot be undeleted: gc has freed"):
        store.undelete("models/a")
    assert read_model(store, "tags/b") == MODELS[1]


def test_a_ref_that_is_written_while_it_is_deleted_keeps_its_value(store, add, monkeypatch):
    """The other writer has the same number; whichever id is higher, what he wrote must not be lost."""
    for number in range(6):
        add(store, "models/a", MODELS[0])
        add(store, "models/b", MODELS[1])
        plan = plan_gc(store, GcPolicy(older_than=30 * DAY), now=later(store, 31 * DAY))
        puts = Refs.put

        def put(self, record, puts=puts):
            if record.name == "models/a" and record.target is None:
                monkeypatch.setattr(Refs, "put", puts)
                rival = self.draft(
                    "models/a",
                    target=store.record("models/b").target,
                    manifest=store.record("models/b").manifest,
                    metadata={"number": number},  # noqa: B023  # used in this round only
                )
                puts(self, rival)
            return puts(self, record)

        monkeypatch.setattr(Refs, "put", put)
        assert execute_gc(store, plan).refs_deleted == ["models/b"]
        assert read_model(store, "models/a") == MODELS[1]
        assert store.record("models/a").metadata == {"number": number}
        monkeypatch.undo()


def test_a_ref_that_is_written_after_the_plan_stays(store, add):
    add(store, "models/a", MODELS[0])
    plan = plan_gc(store, GcPolicy(older_than=30 * DAY), now=later(store, 31 * DAY))
    assert plan.refs == ("models/a",)
    add(store, "models/a", MODELS[1])
    add(store, "models/b", MODELS[0])
    report = execute_gc(store, plan)
    assert (report.refs_deleted, report.packs_deleted) == ([], 0)
    assert read_model(store, "models/a") == MODELS[1]
    assert read_model(store, "models/b") == MODELS[0]


def test_runs_do_not_keep_models_but_their_own_manifests(store, add):
    added = add(store, "models/a", MODELS[0])
    store.put_manifest("runs/r", noise(3, 20_000), metadata={"output": added.model_id})
    store.rm("models/a")
    assert collect(store).packs_deleted == 1
    assert store.manifest_of(store.record("runs/r")) == noise(3, 20_000)


def test_a_ref_that_is_written_after_the_plan_keeps_what_the_plan_removes(store, add, tmp_path):
    add(store, "models/a", MODELS[0])
    plan = plan_gc(store, GcPolicy(older_than=30 * DAY), now=later(store, 31 * DAY))
    folder = write_model(MODELS[0], tmp_path / "again")
    store.add(folder, ref="models/a", metadata={"again": True})
    report = execute_gc(store, plan)
    assert (report.refs_deleted, report.packs_deleted) == ([], 0)
    assert read_model(store, "models/a") == MODELS[0]


# ---- packs with little that is needed


def sparse(store, add):
    """Leave a pack of which a third is needed."""
    add(store, "models/all", SHARED)
    add(store, "models/a", model_of(own=SHARED.files["own"][0]))
    store.rm("models/all")


def test_a_sparse_pack_is_rewritten(store, add):
    sparse(store, add)
    before = sizes(store)
    plan = plan_gc(store)
    assert {item.what for item in plan.items} == {"sparse packs"}
    report = execute_gc(store, plan)
    assert report.bytes_written > 40_000
    assert before - sizes(store) == report.bytes_freed == plan.bytes_freed
    assert read_model(store, "models/a") == model_of(own=SHARED.files["own"][0])
    assert_clean(store)
    assert plan_gc(store).items == ()


def test_a_reader_goes_on_while_packs_are_rewritten(store, add):
    sparse(store, add)
    with Store(store.backend.url) as reader:
        want = read_model(reader, "models/a")
        file = reader.open_file("models/a", "own")
        start = file.read(10)
        assert collect(store).packs_deleted == 1
        assert start + file.read() == want.files["own"][0]
        assert read_model(reader, "models/a") == want
        file.close()


def test_damage_in_a_sparse_pack_is_never_copied(store, add):
    sparse(store, add)
    location = store.objects._index.locate(store.objects_of(store.record("models/a")))
    row = max(location.rows, key=lambda row: int(row["stored"]))
    path = store.backend.local_path(pack_key(store.objects._index.pack_id(int(row["pack"]))))
    flip(path, int(row["offset"]) + 500)
    report = collect(store)
    assert report.kept or report.problems
    assert os.path.exists(path)
    with pytest.raises(IntegrityError):
        read_model(store, "models/a")
    assert any(problem.key.startswith(PACK_PREFIX) for problem in check_of(store).problems)


def flip(path, offset):
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def check_of(store):
    from casstore.ops.check import check  # noqa: PLC0415

    return check(store, read_data=True)


def twice(store, add):
    """Store one model in two packs, as two writers at the same time do."""
    add(store, "models/a", MODELS[0])
    tombstone = condemn(store.backend, packs_of(store.backend))
    with Store(store.backend.url) as other:
        add(other, "models/b", MODELS[0])
    store.backend.delete(tombstone)


def test_one_of_two_copies_goes(store, add):
    twice(store, add)
    assert len(packs_of(store.backend)) == 2
    before = sizes(store)
    report = collect(store, GcPolicy(orphans_now=True))
    assert report.packs_deleted == 1
    assert before - sizes(store) == report.bytes_freed
    assert read_model(store, "models/a") == read_model(store, "models/b") == MODELS[0]
    assert_clean(store)


@pytest.mark.parametrize("which", [0, 1])
def test_of_two_copies_the_damaged_one_goes(store, add, which):
    twice(store, add)
    pack = sorted(packs_of(store.backend))[which]
    flip(store.backend.local_path(pack_key(pack)), 1_000)
    report = collect(store, GcPolicy(orphans_now=True))
    with Store(store.backend.url) as other:
        assert read_model(other, "models/a") == MODELS[0], report


def test_quarantined_packs_count_for_nothing_and_stay_while_they_are_needed(store, add):
    add(store, "models/a", MODELS[0])
    (pack,) = packs_of(store.backend)
    note = marks.Quarantine(pack, "a test", 0)
    store.backend.put(marks.quarantine_key(pack), [marks.encode_quarantine(note)])
    report = collect(store, GcPolicy(orphans_now=True))
    assert (report.packs_deleted, report.packs_condemned, report.kept) == (0, 0, {})
    with Store(store.backend.url) as other:
        add(other, "models/a", MODELS[0])
        assert collect(other, GcPolicy(orphans_now=True)).packs_deleted == 1
        assert packs_of(other.backend) != [pack]
        assert read_model(other, "models/a") == MODELS[0]


def test_a_quarantined_copy_does_not_count(store, add):
    twice(store, add)
    apart, condemned = sorted(packs_of(store.backend))
    note = marks.Quarantine(apart, "a test", 0)
    store.backend.put(marks.quarantine_key(apart), [marks.encode_quarantine(note)])
    condemn(store.backend, [condemned])
    report = collect(store, GcPolicy(orphans_now=True))
    assert report.bytes_written > 40_000
    assert condemned not in packs_of(store.backend)
    assert collect(store, GcPolicy(orphans_now=True)).packs_deleted == 1
    assert apart not in packs_of(store.backend)
    with Store(store.backend.url) as other:
        assert read_model(other, "models/a") == MODELS[0]


def tear(store, pack):
    """Cut the end of a pack, so that nobody can read its footer, and set the pack apart."""
    path = store.backend.local_path(pack_key(pack))
    os.chmod(path, 0o600)
    os.truncate(path, os.path.getsize(path) - 9)
    note = marks.Quarantine(pack, "a test", 0)
    store.backend.put(marks.quarantine_key(pack), [marks.encode_quarantine(note)])


def test_a_torn_pack_that_is_set_apart_goes_once_nothing_is_absent(store, add):
    add(store, "models/a", MODELS[0])
    add(store, "models/b", MODELS[1])
    (pack,) = store.objects.packs_of(store.objects.locate(store.model("models/a").layout("own").chunk_ids()))
    tear(store, pack)
    for policy in (GcPolicy(orphans_now=True), GcPolicy()):
        with Store(store.backend.url) as other:
            # Nobody knows what is in it, and something is absent.
            report = collect(other, policy)
            assert report.missing.keys() >= {"models/a"}
            assert (report.packs_deleted, pack in packs_of(store.backend)) == (0, True)
            assert report.problems
    with Store(store.backend.url) as other:
        add(other, "models/a", MODELS[0])
        report = collect(other, GcPolicy())
        assert (report.packs_deleted, report.problems, report.kept) == (1, [], {})
        assert pack not in packs_of(store.backend)
    with Store(store.backend.url) as other:
        assert read_model(other, "models/a") == MODELS[0]
        assert_clean(other)


def test_a_torn_pack_goes_together_with_condemned_ones(store, add):
    """What is needed of those is copied first, so nothing that is lost can be in it."""
    add(store, "models/a", MODELS[0])
    condemned = packs_of(store.backend)
    condemn(store.backend, condemned)
    pack = write_frames(store, encode_object(Kind.CHUNK, noise(90, 3_000)))
    tear(store, pack)
    with Store(store.backend.url) as other:
        report = collect(other, GcPolicy(orphans_now=True))
        assert (report.packs_deleted, report.problems, report.kept) == (1 + len(condemned), [], {})
        assert read_model(other, "models/a") == MODELS[0]
        assert_clean(other)


def test_a_torn_pack_that_no_record_named_must_be_old(store, add):
    add(store, "models/a", MODELS[0])
    before = set(packs_of(store.backend))
    with store.publication() as publication:
        publication.write(encode_object(Kind.CHUNK, noise(90, 3_000)))
        publication.commit_all([], lambda _: iter(()))
    (pack,) = set(packs_of(store.backend)) - before
    tear(store, pack)
    with Store(store.backend.url) as other:
        report = collect(other)
        assert (report.packs_deleted, report.problems, report.kept) == (0, [], {})
    with Store(store.backend.url) as other:
        assert collect(other, GcPolicy(orphans_now=True)).packs_deleted == 1


def test_a_torn_pack_stays_while_it_has_the_last_good_copy_of_a_frame(store, add):
    """The other copy is listed in a footer that is whole, and only reading it shows that it is damaged."""
    twice(store, add)
    torn, other = sorted(packs_of(store.backend))
    tear(store, torn)
    flip(store.backend.local_path(pack_key(other)), 1_000)
    report = collect(store, GcPolicy(orphans_now=True))
    assert torn in packs_of(store.backend)
    assert report.kept.keys() | set(report.problems)
    with Store(store.backend.url) as again:
        assert again.repair(dry_run=False).ok
    with Store(store.backend.url) as again:
        assert collect(again, GcPolicy(orphans_now=True)).packs_deleted == 2
    with Store(store.backend.url) as again:
        assert read_model(again, "models/a") == MODELS[0]
        assert_clean(again)


# ---- bases and ranks

X, Y, D = noise(11, 3_000), noise(12, 3_000), noise(13, 3_000)


def put_frames(backend, *frames):
    store = ModelStore(backend, store_id=bytes(16), machine=MachineState(None))
    with store.publication() as publication:
        for item in frames:
            publication.write(item)
        publication.commit_all([], lambda _: iter(()))
    return (set(packs_of(backend)) - put_frames.seen, put_frames.seen.update(packs_of(backend)))[0].pop()


@pytest.fixture
def bare():
    put_frames.seen = set()
    return MemoryBackend(uuid.uuid4().hex)


def survey_of(backend, *needed):
    """Return a survey in which just these objects are needed."""
    store = ModelStore(backend, store_id=bytes(16), machine=MachineState(None))
    survey = Survey(store, GcPolicy(grace=0, superseded=0))
    survey.mark.add = lambda _: survey.mark._need([digest(item) for item in needed], "a test")
    return survey


def readable(backend, plain):
    """Say whether an object decodes with frames of lower rank."""
    frames = itertools.chain.from_iterable(frames_of(backend, pack) for pack in packs_of(backend))
    return digest(plain) in decoded(frames)


def test_two_deltas_on_each_other_never_replace_both_plain_copies(bare):
    packs = [
        put_frames(bare, encode_object(Kind.CHUNK, X)),
        put_frames(bare, encode_object(Kind.CHUNK, Y)),
        put_frames(bare, delta_frame(X, 1, [Y])),
        put_frames(bare, delta_frame(Y, 1, [X])),
    ]
    for doomed in itertools.chain.from_iterable(itertools.combinations(packs, n) for n in (1, 2, 3, 4)):
        survey = survey_of(bare, X, Y)
        sweep = Sweep(survey)
        sweep.condemn(doomed)
        sweep.look()
        sweep.finish(survey.condemned())
        assert readable(bare, X), doomed
        assert readable(bare, Y), doomed


def test_a_base_goes_nowhere_while_a_delta_needs_it(bare):
    base = put_frames(bare, encode_object(Kind.CHUNK, X), encode_object(Kind.CHUNK, noise(20, 50_000)))
    delta = put_frames(bare, delta_frame(D, 1, [X]))
    survey = survey_of(bare, D)
    sweep = Sweep(survey)
    sweep.condemn([base])
    sweep.look()
    sweep.finish(survey.condemned())
    assert base not in packs_of(bare)
    assert delta in packs_of(bare)
    assert sweep.bytes_written < 5_000, "the base is copied, and not what else is in its pack"
    assert readable(bare, D)


def test_a_plain_frame_is_not_replaced_by_a_delta_of_the_rank_of_its_dependants(bare):
    plain = put_frames(bare, encode_object(Kind.CHUNK, X))
    put_frames(bare, encode_object(Kind.CHUNK, Y))
    put_frames(bare, delta_frame(X, 2, [Y]))
    put_frames(bare, delta_frame(D, 1, [X]))
    survey = survey_of(bare, X, D)
    sweep = Sweep(survey)
    sweep.condemn([plain])
    sweep.look()
    sweep.finish(survey.condemned())
    assert readable(bare, D)
    assert readable(bare, X)


JUNK = noise(20, 50_000)


@pytest.mark.parametrize(
    ("needed", "together", "ranks"),
    [
        ([X, D], False, {X: 0, D: 1}),
        ([X, D], True, {X: 0, D: 1}),
        ([D], False, {X: 0, D: 1}),
        ([D], True, {D: 0}),
    ],
)
def test_a_delta_stays_one_where_its_base_stays_or_is_copied_as_well(bare, needed, together, ranks):
    """A base that goes with the pack, and that nothing else needs, is not copied for it."""
    base, delta = encode_object(Kind.CHUNK, X), delta_frame(D, 1, [X])
    if together:
        doomed = put_frames(bare, base, delta, encode_object(Kind.CHUNK, JUNK))
    else:
        put_frames(bare, base)
        doomed = put_frames(bare, delta, encode_object(Kind.CHUNK, JUNK))
    survey = survey_of(bare, *needed)
    sweep = Sweep(survey)
    sweep.condemn([doomed])
    sweep.look()
    sweep.finish(survey.condemned())
    found = [item for pack in packs_of(bare) for item in frames_of(bare, pack)]
    assert {object_id: rank for object_id, rank, _ in found} == {
        digest(plain): ranks[plain] for plain in ranks
    }
    assert readable(bare, D)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_pack_stays_where_deltas_would_be_encoded_anew_without_it(bare, elsewhere):
    """A few bytes of it are needed, for a delta on a delta; without them that would be as large as its plain bytes."""
    put_frames(bare, encode_object(Kind.CHUNK, X))
    middle, top = delta_frame(Y, 4, [X]), delta_frame(D, 8, [Y])
    junk = encode_object(Kind.CHUNK, JUNK)
    if elsewhere:
        put_frames(bare, middle, junk)
        put_frames(bare, top)
    else:
        put_frames(bare, middle, top, junk)
    for needed, sparse in (([D], 0), ([D, Y], 1)):
        survey = survey_of(bare, *needed)
        survey.repack = 0.9
        survey.look()
        found = choose(survey)
        assert len(found.sparse) == sparse
        assert found.unneeded == ()


def test_who_copies_a_delta_makes_the_name_of_its_bases_pack_durable(bare, monkeypatch):
    """The writer of that pack may have been killed before it did."""
    base = put_frames(bare, encode_object(Kind.CHUNK, X))
    doomed = put_frames(bare, delta_frame(D, 1, [X]), encode_object(Kind.CHUNK, JUNK))
    durable = []
    monkeypatch.setattr(MemoryBackend, "make_durable", lambda _, keys: durable.extend(keys))
    survey = survey_of(bare, D)
    sweep = Sweep(survey)
    sweep.condemn([doomed])
    sweep.look()
    sweep.finish(survey.condemned())
    assert doomed not in packs_of(bare)
    assert pack_key(base) in durable


@pytest.mark.parametrize("condemned", [False, True])
def test_a_plan_says_what_is_freed_where_a_delta_is_copied(store, add, condemned):
    with predicting():
        add(store, "models/base", model_of(near=relative(0)))
        add(store, "models/all", model_of(near=relative(1), junk=JUNK))
        add(store, "models/near", model_of(near=relative(1)))
    store.rm("models/all")
    if condemned:
        condemn(store.backend, packs_of(store.backend))
    before = sizes(store)
    plan = plan_gc(store, GcPolicy(repack=0.9))
    report = execute_gc(store, plan)
    assert report.packs_deleted
    assert before - sizes(store) == report.bytes_freed
    assert abs(plan.bytes_freed - report.bytes_freed) < 100
    assert [item.frames for item in store.stats().frames if item.encoding == "delta"] == [1]
    assert read_model(store, "models/near") == model_of(near=relative(1))
    assert_clean(store)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_base_stays_where_a_delta_in_a_condemned_pack_rests_on_it(store, add, sparse):
    """Nothing else needs it; to copy the base as well would free nothing, unless its pack holds other things."""
    with predicting():
        add(store, "models/base", model_of(near=relative(0), **({"junk": JUNK} if sparse else {})))
        old = packs_of(store.backend)
        add(store, "models/near", model_of(near=relative(1)))
    store.rm("models/base")
    condemn(store.backend, set(packs_of(store.backend)) - set(old))
    before = sizes(store)
    plan = plan_gc(store, GcPolicy(repack=0.9))
    report = execute_gc(store, plan)
    assert report.packs_deleted
    assert report.bytes_written < (50_000 if sparse else 10_000)
    assert before - sizes(store) == report.bytes_freed
    assert abs(plan.bytes_freed - report.bytes_freed) < 100
    assert [item.frames for item in store.stats().frames if item.encoding == "delta"] == [1]
    assert plan_gc(store, GcPolicy(repack=0.9)).items == ()
    assert read_model(store, "models/near") == model_of(near=relative(1))
    assert_clean(store)


# ---- where writers may work without the lock


def test_two_phases_and_the_end_of_a_tombstone(far, add):
    add(far, "models/a", MODELS[0])
    add(far, "models/b", MODELS[1])
    far.rm("models/a")
    day = 24 * HOUR
    assert collect(far, now=later(far, 6 * day)).packs_condemned == 0, (
        "deleted refs keep their value for 7 days"
    )
    report = collect(far, now=later(far, 8 * day))
    assert (report.packs_deleted, report.packs_condemned) == (0, 1)
    assert report.bytes_condemned > 40_000
    # The tombstone is as old as it is; the clock that is passed makes it 23 hours older.
    assert collect(far, now=later(far, 23 * HOUR)).packs_deleted == 0
    assert collect(far, now=later(far, 25 * HOUR)).packs_deleted == 1
    assert read_model(far, "models/b") == MODELS[1]
    assert len(list(far.backend.list_keys(marks.TOMBSTONE_PREFIX))) == 1
    collect(far, now=later(far, 6 * day))
    assert len(list(far.backend.list_keys(marks.TOMBSTONE_PREFIX))) == 1
    collect(far, now=later(far, 8 * day))
    assert not list(far.backend.list_keys(marks.TOMBSTONE_PREFIX))
    assert_clean(far)


def test_what_became_needed_again_is_copied_out(far, add):
    add(far, "models/a", MODELS[0])
    condemned = packs_of(far.backend)
    condemn(far.backend, condemned)
    report = collect(far, now=later(far, 25 * HOUR))
    assert report.packs_deleted == len(condemned)
    assert report.bytes_written > 40_000
    assert read_model(far, "models/a") == MODELS[0]
    assert not set(condemned) & set(packs_of(far.backend))
    assert_clean(far)


def test_young_packs_are_not_condemned(far):
    with far.publication() as publication:
        publication.write(encode_object(Kind.CHUNK, noise(7, 5_000)))
        publication.commit_all([], lambda _: iter(()))
    assert collect(far, now=later(far, 23 * HOUR)).packs_condemned == 0
    assert collect(far, now=later(far, 25 * HOUR)).packs_condemned == 1


def test_a_marker_of_lockless_writers_makes_it_wait(store, add):
    add(store, "models/a", MODELS[0])
    store.rm("models/a")
    store.backend.mark_lockless()
    report = collect(store, GcPolicy(orphans_now=True, superseded=0))
    assert (report.mode, report.packs_deleted, report.packs_condemned) == ("two-phases", 0, 1)


def test_a_marker_that_comes_after_the_plan_keeps_replaced_values(store, add):
    add(store, "models/a", MODELS[0])
    old = store.record("models/a")
    add(store, "models/a", MODELS[1])
    plan = plan_gc(store, GcPolicy(orphans_now=True))
    assert plan.bytes_freed > 40_000
    store.backend.mark_lockless()
    report = execute_gc(store, plan)
    assert (report.mode, report.packs_deleted, report.packs_condemned) == ("two-phases", 0, 0)
    with Store(store.backend.url) as other:
        assert other.lacks(old) == 0


def test_a_marker_that_comes_while_the_lock_is_held_makes_it_wait(store, add, monkeypatch):
    add(store, "models/a", MODELS[0])
    store.rm("models/a")
    plan = plan_gc(store, GcPolicy(superseded=0))
    condemns = Sweep.condemn

    def late(self, packs):
        condemns(self, packs)
        store.backend.put(LOCKLESS, [b"x"])

    monkeypatch.setattr(Sweep, "condemn", late)
    assert execute_gc(store, plan).packs_deleted == 0


def test_it_waits_for_the_lock_and_spares_what_is_young(store, add):
    add(store, "models/a", MODELS[0])
    store.rm("models/a")
    add(store, "models/b", MODELS[1])
    condemn(store.backend, set(packs_of(store.backend)) - {store.objects._index.pack_id(0)})
    told = []
    with LocalBackend(store.backend.local_path("format").removesuffix("/format")).publish_lock():
        report = collect(store, wait=0.3, tell=told.append)
        assert (report.mode, report.packs_deleted, len(told)) == ("busy", 0, 1)
        old = time.time() - 2 * DAY
        for pack in packs_of(store.backend):
            os.utime(store.backend.local_path(pack_key(pack)), (old, old))
        assert collect(store, wait=0).packs_deleted == 2
    assert read_model(store, "models/b") == MODELS[1]


# ---- whatever cannot be read stops it


def test_a_record_that_cannot_be_read_stops_it(store, add):
    add(store, "models/a", MODELS[0])
    add(store, "models/b", MODELS[1])
    store.rm("models/b")
    key = store.record("models/a").key
    flip(store.backend.local_path(key), 40)
    with pytest.raises(FormatError, match="models/a"):
        plan_gc(store)
    store.rm("models/a")
    assert collect(store, GcPolicy(orphans_now=True)).packs_deleted == 2


def test_a_description_that_cannot_be_read_stops_it(store, add):
    add(store, "models/a", MODELS[0])
    add(store, "models/b", MODELS[1])
    store.rm("models/b")
    record = store.record("models/a")
    row = store.objects._index.locate([record.manifest]).rows[0]
    path = store.backend.local_path(pack_key(store.objects._index.pack_id(int(row["pack"]))))
    flip(path, int(row["offset"]) + 60)
    before = sizes(store)
    with pytest.raises(FormatError, match="models/a"):
        plan_gc(store)
    assert sizes(store) == before


def test_what_is_proved_absent_is_reported_and_the_rest_goes_on(store, add):
    add(store, "models/a", MODELS[0])
    lost = packs_of(store.backend)
    add(store, "models/b", MODELS[1])
    add(store, "models/c", MODELS[2])
    store.rm("models/c")
    store.backend.delete(pack_key(lost[0]))
    with Store(store.backend.url) as other:
        report = collect(other)
        assert list(report.missing) == ["models/a"]
        assert report.packs_deleted == 1
        assert read_model(other, "models/b") == MODELS[1]


def test_packs_named_by_a_record_of_which_the_description_is_lost_stay(store, add, monkeypatch):
    small_packs(monkeypatch, 30_000)
    added = add(store, "models/a", MODELS[0])
    layout = store.model(added.ref).layout_ids[0]
    lost = store.objects._index.pack_id(int(store.objects._index.locate([layout]).rows["pack"][0]))
    store.backend.delete(pack_key(lost))
    before = packs_of(store.backend)
    assert before
    with Store(store.backend.url) as other:
        report = collect(other, GcPolicy(orphans_now=True))
    assert list(report.missing) == ["models/a"]
    assert packs_of(store.backend) == before, "the lost pack may come back from a backup"


def test_a_pack_that_is_truncated_after_the_plan_is_no_copy(store, add):
    twice(store, add)
    plan = plan_gc(store, GcPolicy(orphans_now=True))
    doomed = {plan.survey.packs.id_of(number) for number in plan.candidates.unneeded}
    (survivor,) = set(packs_of(store.backend)) - doomed
    path = store.backend.local_path(pack_key(survivor))
    os.chmod(path, 0o600)
    os.truncate(path, 20_000)
    execute_gc(store, plan)
    with Store(store.backend.url) as other:
        assert read_model(other, "models/a") == MODELS[0]
        collect(other, GcPolicy(orphans_now=True))
    assert os.path.exists(path), "nobody knows what is in it"


def test_a_pack_that_cannot_be_read_stops_it_only_if_something_may_be_in_it(store, add):
    add(store, "models/a", MODELS[0])
    damaged = packs_of(store.backend)[0]
    add(store, "models/b", MODELS[1])
    add(store, "models/c", MODELS[2])
    store.rm("models/c")
    path = store.backend.local_path(pack_key(damaged))
    os.chmod(path, 0o600)
    os.truncate(path, 20_000)
    with Store(store.backend.url) as other:
        with pytest.raises(IntegrityError, match=f"{damaged.hex()}|models/a"):
            plan_gc(other)
        other.rm("models/a")
        report = collect(other)
        assert report.packs_deleted == 1
        assert any(damaged.hex() in problem for problem in report.problems)
        assert os.path.exists(path)


def test_a_pack_of_chunks_that_cannot_be_read_stops_it(store, add, monkeypatch):
    small_packs(monkeypatch, 30_000)
    record = add(store, "models/a", MODELS[0])
    add(store, "models/c", MODELS[2])
    store.rm("models/c")
    chunk = store.model(record.ref).layout("own").chunk_ids()[0]
    pack = store.objects._index.pack_id(int(store.objects._index.locate([chunk]).rows["pack"][0]))
    path = store.backend.local_path(pack_key(pack))
    os.chmod(path, 0o600)
    os.truncate(path, 20_000)
    before = packs_of(store.backend)
    with Store(store.backend.url) as other, pytest.raises(FormatError, match=f"{pack.hex()}.*models/a"):
        plan_gc(other)
    assert packs_of(store.backend) == before


def faulty(store):
    backend = FaultyBackend(store.backend)
    return backend, ModelStore(backend, store_id=bytes.fromhex(store.store_id), machine=store.machine)


def test_a_listing_without_a_pack_that_is_there_stops_it(store, add):
    add(store, "models/a", MODELS[0])
    add(store, "models/b", MODELS[1])
    store.rm("models/b")
    backend, watched = faulty(store)
    backend.hide([pack_key(pack) for pack in store.record("models/a").packs])
    with pytest.raises(BackendUnavailable, match="lacks the pack"):
        plan_gc(watched)
    assert len(packs_of(store.backend)) == 2


def test_a_listing_without_a_record_that_this_machine_knows_stops_it(store, add):
    for number in range(3):
        add(store, f"models/{number}", MODELS[number])
    store.refs()
    backend, watched = faulty(store)
    for count in range(3):
        backend.shorten_listings(count)
        with pytest.raises(BackendUnavailable, match="lacks"):
            plan_gc(watched)


# ---- a store that is far away


def test_what_was_marked_before_is_not_fetched_again(store, add):
    for number, content in MODELS.items():
        add(store, f"models/{number}", content)
    policy = GcPolicy(grace=0, superseded=0, orphans_now=True)

    def plan_far():
        opened, backend = far_store(store)
        backend.now = time.time
        return plan_gc(opened, policy), [item for item in backend.take() if item.verb == "read"]

    first, reads = plan_far()
    assert len(of_packs(reads)) >= 2 * len(MODELS)
    again, reads = plan_far()
    assert of_packs(reads) == []
    assert again == first
    # Damaged copies are as good as none.
    folder = machine_folder(bytes.fromhex(store.store_id), "far://away")
    for kind in ("footers", "objects"):
        place = os.path.join(folder, "gc", kind)
        for name in os.listdir(place):
            flip(os.path.join(place, name), 20)
    damaged, reads = plan_far()
    assert len(of_packs(reads)) >= 2 * len(MODELS)
    assert damaged == first
    store.rm("models/0")
    opened, backend = far_store(store)
    backend.now = time.time
    assert execute_gc(opened, plan_gc(opened, policy)).packs_deleted == 1
    assert_clean(store)
    plan_far()
    assert len(os.listdir(os.path.join(folder, "gc", "footers"))) == len(packs_of(store.backend))


def test_a_collection_with_nothing_to_do_asks_a_far_store_for_listings_only(store, add, tmp_path):
    for number, content in MODELS.items():
        add(store, f"models/{number}", content)

    def collect_far():
        opened, backend = far_store(
            store, state=str(tmp_path / "state"), index_copies=str(tmp_path / "index")
        )
        backend.now = time.time
        with opened:
            report = execute_gc(opened, plan_gc(opened))
        assert (report.ok, report.packs_deleted) == (True, 0)
        return [item for item in backend.take() if item.verb != "list"]

    assert len(collect_far()) > 3 * len(MODELS)
    assert collect_far() == []


def test_a_footer_that_this_machine_mixed_up_deletes_nothing(store, add):
    """The pack itself is asked before it goes."""
    add(store, "models/a", MODELS[0])
    first = packs_of(store.backend)
    add(store, "models/b", MODELS[1])
    (second,) = set(packs_of(store.backend)) - set(first)
    sizes_of = {entry.size for entry in store.backend.list(PACK_PREFIX)}
    assert len(sizes_of) == 1, "else the copy would be refused"
    opened, backend = far_store(store)
    backend.now = time.time
    plan_gc(opened)
    folder = os.path.join(machine_folder(bytes.fromhex(store.store_id), "far://away"), "gc", "footers")
    shutil.copy(os.path.join(folder, first[0].hex()), os.path.join(folder, second.hex()))
    opened, backend = far_store(store)
    backend.now = time.time
    plan = plan_gc(opened, GcPolicy(grace=0, superseded=0, orphans_now=True))
    assert plan.bytes_freed > 40_000, "it seems to be there twice"
    report = execute_gc(opened, plan)
    assert report.kept or report.missing
    for ref, content in (("models/a", MODELS[0]), ("models/b", MODELS[1])):
        with Store(store.backend.url) as last:
            assert read_model(last, ref) == content
    assert_clean(store)


# ---- records


def failing_after(count, delete):
    """Return a delete that works so many times."""
    left = itertools.repeat(None, count)

    def limited(key):
        if next(left, False) is False:
            raise BackendError("no more")
        delete(key)

    return limited


def test_elders_go_before_the_deletion_and_a_crash_brings_nothing_back(far, add):
    for number in range(3):
        add(far, "models/a", MODELS[number])
    far.rm("models/a")
    add(far, "models/b", MODELS[3])
    add(far, "models/b", MODELS[4])
    ahead = later(far, WEEK + HOUR)
    for _ in range(4):
        plan = plan_gc(far, now=ahead)
        backend = FaultyBackend(far.backend)
        backend.delete = failing_after(1, far.backend.delete)
        watched = ModelStore(backend, store_id=bytes(16), machine=MachineState(None))
        with suppress(BackendError):
            trim(watched, plan.trims)
        assert sorted(far.refs()) == ["models/b"]
    assert far.history("models/a") == []
    assert len(far.history("models/b")) == 2, "sync compares the last values of a ref"


def test_many_replaced_records_are_trimmed(store, add):
    for number in range(40):
        store.put_manifest("runs/r", b"%d" % number)
    assert collect(store, now=later(store, WEEK - HOUR)).records_trimmed == 0
    assert collect(store, now=later(store, WEEK + HOUR)).records_trimmed == 7
    assert len(store.history("runs/r")) == 33
    assert store.manifest_of(store.record("runs/r")) == b"39"


# ---- the index


def test_the_index_no_longer_names_packs_that_are_gone(store, add, monkeypatch):
    small_packs(monkeypatch, 30_000)
    for number, content in MODELS.items():
        add(store, f"models/{number}", content)
    store.rm("models/0")
    gone = collect(store).packs_deleted
    assert gone
    with Store(store.backend.url) as other:
        other.objects._index.refresh()
        covered = {
            other.objects._index.pack_id(int(number))
            for segment in other.objects._index.segments.values()
            for number in segment.numbers
        }
        assert covered <= set(packs_of(other.backend))
        assert list(other.backend.list_keys(INDEX_PREFIX))
        for number in (1, 2, 3, 4):
            assert read_model(other, f"models/{number}") == MODELS[number]
    assert_clean(store)


# ---- a full disk


class FullDisk(SystemCalls):
    """Has so many bytes `free`, once that is set, and what is deleted besides."""

    free = None

    def write(self, fd, views):
        size = sum(view.nbytes for view in views)
        if self.free is not None:
            if size > self.free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.free -= size
        return super().write(fd, views)

    def unlink(self, path):
        status = os.stat(path)
        super().unlink(path)
        if self.free is not None and status.st_nlink == 1:
            self.free += status.st_size


@pytest.mark.parametrize("ballast", [True, False])
@pytest.mark.parametrize("temporaries", [0, 1])
def test_a_disk_without_a_free_byte_gets_free(store, add, temporaries, ballast):
    for number, content in MODELS.items():
        add(store, f"models/{number}", content)
    add(store, "models/all", SHARED)
    add(store, "models/own", model_of(own=SHARED.files["own"][0]))
    store.rm("models/0")
    store.rm("models/all")
    root = store.backend.local_path("format").removesuffix("/format")
    if not ballast:
        shutil.rmtree(os.path.join(root, ".ballast"))  # made by an earlier version
    if temporaries:
        with open(os.path.join(root, ".tmp", f"{'0' * 32}.held"), "wb") as file:
            file.write(bytes(10_000))
    disk = FullDisk()
    with LocalBackend(root, calls=disk) as backend:
        full = ModelStore(backend, store_id=bytes.fromhex(store.store_id), machine=MachineState(None))
        disk.free = 0
        report = collect(full)
    assert report.packs_deleted == 2
    assert report.temporaries == temporaries
    with Store(root) as other:
        assert_clean(other)
        for number in (1, 2, 3, 4):
            assert read_model(other, f"models/{number}") == MODELS[number]
        assert not other.objects._index.read_uncovered(), "the index is whole again"


# ---- faults and crashes at every call


def prepared(folder, add):
    """Return a store with work of every kind for a collection."""
    store = Store(folder, create=True, durability="none")
    sparse(store, add)
    add(store, "models/b", MODELS[3])
    add(store, "models/c", MODELS[4])
    store.rm("models/c")
    condemn(store.backend, packs_of(store.backend)[:1])
    return store


WANT = {"models/a": model_of(own=SHARED.files["own"][0]), "models/b": MODELS[3]}


def files_of(folder):
    """Return the files of a store; those of writers that are gone go by their bytes alone."""
    found = []
    for place, _, names_there in os.walk(folder):
        for name in names_there:
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                shown = place if os.path.basename(place) == ".tmp" else path
                found.append((os.path.relpath(shown, folder), digest(file.read())))
    return tuple(sorted(found))


@pytest.mark.parametrize("fault", ["error", "crash", "lost answer", "for good"])
def test_faults_at_every_call(tmp_path, add, fault, monkeypatch):
    """Equal stores are judged once: with the same random bytes in each run, they recur."""
    prepared(tmp_path / "prepared", add).close()
    commit_inline(monkeypatch)
    restart = repeat_randomness(monkeypatch)
    at = finished = 0
    judged = set()
    while not finished:
        place = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "prepared", place)
        restart()
        with Store(place, durability="none") as store:
            backend, watched = faulty(store)
            if fault == "crash":
                backend.stop_at(at)
            elif fault == "error":
                backend.fail_at(at, BackendError("The disk is full."))
            elif fault == "lost answer":
                backend.lose_answer_at(at)
            else:
                backend.unplug_at(at)
            with suppress(BackendError, SimulatedCrash):
                collect(watched, wait=0)
                finished = len(backend.calls) <= at
        left = files_of(place)
        if left not in judged:
            judged.add(left)
            go_on(place, at)
        shutil.rmtree(place)
        at += 1
    assert at > 25
    assert len(judged) > 5


def go_on(place, at):
    """All that refs need is there, and whoever comes next collects the rest."""
    with Store(place, durability="none") as other:
        for name, content in WANT.items():
            assert read_model(other, name) == content, at
        collect(other, wait=0)
        assert {item.what for item in plan_gc(other).items} <= {"young packs"}
        assert_clean(other)
        assert {name: read_model(other, name) for name in other.refs("models/")} == WANT


def test_it_frees_what_it_said_while_another_process_adds(tmp_path, store, add):
    """No more and no less: what the other one leaves meanwhile is for the next collection."""
    for number, content in MODELS.items():
        add(store, f"models/{number}", content)
    for number in (0, 2):
        store.rm(f"models/{number}")
    work = tmp_path / "work"
    work.mkdir()
    program = [sys.executable, adder.__file__, str(tmp_path / "store"), str(work), "other"]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline()
            plan = plan_gc(store)
            doomed = {plan.survey.packs.id_of(number) for number in plan.candidates.unneeded}
            expected = {pack_key(pack) for pack in doomed}
            report = execute_gc(store, plan, wait=60)
            assert other.poll() is None, "it goes on"
        finally:
            other.kill()
    assert report.bytes_freed == plan.bytes_freed > 90_000
    assert not expected & set(store.backend.list_keys(PACK_PREFIX))
    for number in (1, 3, 4):
        assert read_model(store, f"models/{number}") == MODELS[number]
    assert_clean(store)
