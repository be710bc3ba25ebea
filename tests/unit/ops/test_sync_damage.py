"""A sync of many refs beside damage: the rest is done, the culprits are named, and nothing of them is acknowledged."""

from __future__ import annotations

import pytest
from fakes.collector import packs_of
from fakes.stores import assert_clean, model_of, noise, read_model
from fakes.sync_stores import Side, source_files

from casstore.errors import CasstoreError, FormatError
from casstore.format import names
from casstore.objects.keys import PACK_PREFIX, pack_key
from casstore.objects.publishing import pack_writer
from casstore.ops.sync import execute, plan_sync

SHARED = noise(1, 100_000)
MODELS = {
    f"models/{name}": model_of(shared=SHARED, own=noise(at, 200_000)) for at, name in enumerate("abcd", 2)
}
BAD = "models/b"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the source holds, by the keys of its files."""
    return source_files(tmp_path_factory.mktemp("source"), MODELS, best="models/c")


@pytest.fixture(params=[("memory", "objects"), ("objects", "local"), ("local", "memory")], ids="-".join)
def sides(request, tmp_path, files):
    here, there = (Side(kind, tmp_path) for kind in request.param)
    return here.hold(files), there


def overwrite(backend, key, data):
    """Put other bytes in the place of an object, as no writer of the store does."""
    backend.delete(key)
    backend.put(key, [data])


def own_pack(side, ref):
    """Return the key of the pack with what only this model needs."""
    store = side.open(side.backend)
    record = store.record(ref)
    located = store.objects._index.locate([record.manifest])
    return pack_key(store.objects._index.pack_id(int(located.rows["pack"][0])))


def flip_chunk(side):
    key = own_pack(side, BAD)
    data = bytearray(side.backend.read(key))
    data[len(data) // 2] ^= 1
    overwrite(side.backend, key, bytes(data))


def cut_pack(side):
    key = own_pack(side, BAD)
    overwrite(side.backend, key, side.backend.read(key)[:100_000])


def empty_pack(side):
    overwrite(side.backend, own_pack(side, BAD), b"")


def lose_pack(side):
    side.backend.delete(own_pack(side, BAD))


def tear_record(side):
    key = side.plain.record(BAD).key
    overwrite(side.backend, key, side.backend.read(key)[:40])


def lie_about_manifest(side):
    """A record whose manifest is another model's."""
    other = side.plain.record("models/c")
    store = side.open(side.backend)
    store._refs.put(store._refs.draft(BAD, target=store.record(BAD).target, manifest=other.manifest))


DAMAGE = [flip_chunk, cut_pack, empty_pack, lose_pack, tear_record, lie_about_manifest]
REST = {*MODELS, "tags/best", "runs/small", "runs/large"} - {BAD}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "refs", [None, ["models/", "tags/", "runs/"], [*REST, BAD]], ids=["all", "prefixes", "names"]
)
def test_one_damaged_model_among_many(sides, damage, refs):
    here, there = sides
    damage(here)
    report = execute(plan_sync(here.open(here.backend), there.plain, refs, keep_going=True))
    assert {item.name for item in report.damaged} == {BAD}
    assert all(item.reason for item in report.damaged)
    assert set(report.refs) == set(there.plain.refs()) == REST
    for name in REST & MODELS.keys():
        assert read_model(there.plain, name) == MODELS[name]
    assert_clean(there.plain)


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_keep_going_damage_is_an_error(sides, damage):
    """Who asks for a model and does not look at the report must not take it for copied."""
    here, there = sides
    damage(here)
    with pytest.raises(CasstoreError):
        execute(plan_sync(here.open(here.backend), there.plain, [BAD]))
    assert BAD not in there.plain.refs()
    with pytest.raises(CasstoreError):
        execute(plan_sync(here.open(here.backend), there.plain))


def test_what_another_pack_holds_whole_is_copied_from_there(sides):
    """One frame of a range is bad, and the others of it have copies nowhere else: only that one is damage."""
    here, there = sides
    flip_chunk(here)
    store = here.open(here.backend)
    report = execute(plan_sync(store, there.plain, keep_going=True))
    lacking = [
        item
        for item in store.objects_of(store.record(BAD))
        if not there.plain.objects._index.locate([item]).found[0]
    ]
    assert 1 <= len(lacking) <= 2, (
        "of the damaged model everything else may come: the next push needs only the rest"
    )
    assert report.objects > 0


def test_a_damaged_record_over_there_is_left_to_a_person(sides):
    here, there = sides
    execute(plan_sync(here.plain, there.plain))
    tear_record(there)
    there.open(there.backend)
    plan = plan_sync(here.plain, there.open(there.backend), keep_going=True)
    assert [item.name for item in plan.damaged] == [BAD]
    assert plan.refs == ()
    with pytest.raises(FormatError, match=BAD):
        plan_sync(here.plain, there.open(there.backend))
    report = execute(plan_sync(here.plain, there.open(there.backend), overwrite=True, keep_going=True))
    assert report.refs == (BAD,)
    assert there.open(there.backend).record(BAD).seq == 2
    assert read_model(there.open(there.backend), BAD) == MODELS[BAD]


def test_a_damaged_elder_stops_no_comparison(sides):
    here, there = sides
    execute(plan_sync(here.plain, there.plain))
    elder = here.plain.record("models/a").key
    here.add("models/a", MODELS["models/d"])
    overwrite(here.backend, elder, b"torn")
    report = execute(plan_sync(here.open(here.backend), there.plain, keep_going=True))
    assert [item.name for item in report.conflicts] == ["models/a"], "nobody can tell any more who moved last"
    assert report.damaged == ()


def test_a_foreign_file_stops_nothing(sides):
    here, there = sides
    for side in sides:
        for key in ("desktop.ini", "refs/desktop.ini", "refs/models/00/x.orig", "gc/desktop.ini",
                    "gc/tombstones/desktop.ini", "quarantine/desktop.ini"):  # fmt: skip
            side.backend.put(key, [b"[.ShellClassInfo]"])
    report = execute(plan_sync(here.open(here.backend), there.open(there.backend)))
    assert set(report.refs) == REST | {BAD}
    assert_clean(there.plain)


def test_a_damaged_pack_over_there_that_no_segment_covers(sides, monkeypatch):
    """It is not relied on, and keeps nothing from being written beside it."""
    here, there = sides
    monkeypatch.setattr("casstore.objects.publishing.publication._WORTH_LOOKING", 0)
    there.backend.put(f"{PACK_PREFIX}ab/{'ab' * 32}", [b"torn"])
    report = execute(plan_sync(here.plain, there.plain, keep_going=True))
    assert set(report.refs) == REST | {BAD}
    assert len(packs_of(there.backend)) > 1


def test_many_culprits_in_one_group(tmp_path, monkeypatch):
    here, there = Side("memory", tmp_path), Side("memory", tmp_path)
    monkeypatch.setattr(pack_writer, "PACK_TARGET", 64 << 10)
    for number in range(30):
        here.add(f"models/{number:02}", model_of(w=noise(number, 20_000)))
    bad = {f"models/{number:02}" for number in range(0, 30, 3)}
    for name in bad:
        key = own_pack(here, name)
        data = bytearray(here.backend.read(key))
        data[1000] ^= 1
        overwrite(here.backend, key, bytes(data))
    report = execute(plan_sync(here.open(here.backend), there.plain, keep_going=True))
    assert {item.name for item in report.damaged} == bad
    assert len(report.refs) == 20
    assert names.names_model(report.refs[0])
    assert_clean(there.plain)
