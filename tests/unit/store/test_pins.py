"""Pins keep models, and undelete takes deletions back until the next collection."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from fakes.collector import condemn, packs_of
from fakes.stores import assert_clean, model_of, noise, read_model, write_model

from casstore import GcPolicy, Store
from casstore.errors import ConfigError, ConflictError, FormatError, MissingObject, RefNotFound
from casstore.format import names
from casstore.format.record import encode
from casstore.objects.keys import pack_key
from casstore.refs.refs import Refs
from casstore.store import undelete as undeleting

ONE, TWO = model_of(own=noise(1, 30_000)), model_of(own=noise(2, 30_000))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as opened:
        opened.add(write_model(ONE, tmp_path / "one"), ref="models/one")
        yield opened


@pytest.fixture
def two(tmp_path):
    return write_model(TWO, tmp_path / "two")


# ---- pins


def test_a_pin_is_a_tag_that_says_what_was_pinned(store):
    model_id = store.resolve("one").model_id
    assert store.pin("one") == "tags/pins/models/one"
    assert store.pin("models/one") == "tags/pins/models/one"
    assert store.pin("tags/pins/models/one") == "tags/pins/models/one"
    store.tag("best", "one")
    assert store.pin("tags/best") == "tags/pins/tags/best"
    assert store.pin(model_id[:8]) == f"tags/pins/{model_id}"
    assert {row.model_id for row in store.ls("tags/pins/")} == {model_id}
    assert len(store.ls("tags/pins/")) == 3
    with pytest.raises(RefNotFound):
        store.pin("models/none")


def test_a_pin_keeps_the_model_when_its_name_goes_and_moves_with_the_next_pin(store, two):
    store.pin("one")
    store.add(two, ref="models/one")
    store.rm("models/one")
    store.gc(GcPolicy(orphans_now=True))
    assert read_model(store, "tags/pins/models/one") == ONE
    store.add(two, ref="models/one")
    assert store.pin("models/one") == "tags/pins/models/one"
    assert read_model(store, "tags/pins/models/one") == TWO


def test_a_name_that_is_too_long_is_pinned_by_its_id(store, two):
    ref = "models/" + "x" * (names.MAX_NAME - 1)
    model_id = store.add(two, ref=ref).model_id
    assert store.pin(ref) == f"tags/pins/{model_id}"
    assert store.unpin(ref) == [f"tags/pins/{model_id}"]


@pytest.mark.parametrize("said", ["one", "models/one", "tags/pins/models/one", "id"])
def test_unpin(store, said):
    model_id = store.resolve("one").model_id
    store.pin("one")
    store.tag("kept", "one")
    assert store.unpin(model_id[:9] if said == "id" else said) == ["tags/pins/models/one"]
    assert store.ls("tags/pins/") == []
    with pytest.raises(RefNotFound, match="not pinned"):
        store.unpin("models/one")


def test_an_id_unpins_all_pins_of_its_model(store):
    store.tag("best", "one")
    store.pin("one")
    store.pin("tags/best")
    found = store.unpin(store.resolve("one").model_id)
    assert found == ["tags/pins/models/one", "tags/pins/tags/best"]


def test_a_pin_is_found_by_what_it_pinned_when_that_is_gone(store):
    store.pin("one")
    store.rm("models/one")
    assert store.unpin("models/one") == ["tags/pins/models/one"]
    with pytest.raises(RefNotFound):
        store.unpin("models/one")


def test_pins_are_synced(store, tmp_path):
    store.pin("one")
    with Store(tmp_path / "other", create=True) as other:
        store.sync(other)
        assert read_model(other, "tags/pins/models/one") == ONE


# ---- undelete


def test_undelete_gives_the_last_value_again(store, two, tmp_path):
    base = store.resolve("one").model_id
    store.add(two, ref="models/two", base="one", metadata={"n": 1})
    store.add(write_model(model_of(own=noise(3, 1000)), tmp_path / "3"), ref="models/two")
    store.add(two, ref="models/two", base="one", metadata={"n": 2})
    store.rm("models/two")
    row = store.undelete("models/two")
    assert (row.name, row.base, row.metadata) == ("models/two", base, {"n": 2})
    assert read_model(store, "models/two") == TWO
    assert store.gc().packs_deleted == 1
    assert read_model(store, "models/two") == TWO
    assert_clean(store)


def test_undelete_of_tags_runs_and_evaluations(store):
    store.tag("best", "one")
    store.put_manifest("runs/small", b"x", metadata={"n": 1})
    store.put_manifest("runs/large", noise(1, 20_000))
    store.put_manifest("evaluations/e", b"y")
    for name in ("tags/best", "runs/small", "runs/large", "evaluations/e"):
        before = store.record(name)
        store.rm(name)
        store.undelete(name)
        after = store.record(name)
        assert (after.target, after.inline, after.metadata) == (before.target, before.inline, before.metadata)
    assert store.manifest_of(store.record("runs/large")) == noise(1, 20_000)


def test_what_is_not_deleted_and_what_never_was(store):
    with pytest.raises(ConfigError, match="models/one is not deleted"):
        store.undelete("models/one")
    with pytest.raises(RefNotFound):
        store.undelete("models/none")
    with pytest.raises(ConfigError, match="models/one is not deleted"):
        store.undelete("one")
    with pytest.raises(ConfigError, match="not a ref name"):
        store.undelete("models")


@pytest.mark.parametrize("reopened", [False, True])
def test_what_gc_has_freed(store, tmp_path, reopened):
    store.model("models/one")  # is remembered
    store.put_manifest("runs/large", noise(1, 20_000))
    for name in ("models/one", "runs/large"):
        store.rm(name)
    store.gc(GcPolicy(orphans_now=True))
    with Store(tmp_path / "store") as again:
        for name in ("models/one", "runs/large"):
            with pytest.raises(MissingObject, match=f"{name} cannot be undeleted: gc has freed"):
                (again if reopened else store).undelete(name)
        assert again.record("models/one") is None
    assert_clean(store)


def test_packs_that_are_condemned_are_copied(store):
    store.rm("models/one")
    condemned = packs_of(store.backend)
    condemn(store.backend, condemned)
    store.undelete("models/one")
    for pack in condemned:
        os.unlink(store.backend.local_path(pack_key(pack)))
    with Store(store.backend.url) as again:
        assert read_model(again, "models/one") == ONE


def test_what_somebody_writes_meanwhile_stays(store, two, monkeypatch):
    store.rm("models/one")
    writing = undeleting._write

    def late(store, *rest):
        store.add(two, ref="models/one")
        return writing(store, *rest)

    monkeypatch.setattr(undeleting, "_write", late)
    with pytest.raises(ConflictError, match="models/one was written by someone else"):
        store.undelete("models/one")
    assert read_model(store, "models/one") == TWO


# ---- two writers at once


def test_a_name_that_is_deleted_and_written_at_the_same_moment_is_written(store, two):
    """Whichever of the two records has the higher write id."""
    other = Refs(store.backend, store.machine)
    model = store.add(two, ref="models/two").model_id
    for number in range(8):
        for first in ("delete", "write"):
            drafts = {
                "delete": other.draft("models/one", target=None),
                "write": other.draft(
                    "models/one",
                    target=bytes.fromhex(model),
                    manifest=store.record("models/two").manifest,
                    metadata={"number": number, "first": first},
                ),
            }
            for which in sorted(drafts, key=lambda which: which != first):
                other.put(drafts[which])
            with Store(store.backend.url) as fresh:
                assert fresh.record("models/one").metadata == {"number": number, "first": first}
                assert "models/one" in fresh.refs()
                assert [row.metadata for row in fresh.find("models/one")] == [
                    fresh.record("models/one").metadata
                ]
                assert fresh.history("models/one")[-1].target.hex() == model
    store.gc(GcPolicy(orphans_now=True))
    assert read_model(store, "models/one") == TWO


@pytest.mark.parametrize("write_id", [bytes(16), b"\xff" * 16], ids=["lower", "higher"])
def test_sync_sees_the_value_too(store, two, tmp_path, write_id):
    """On the side that sends, and on the one that receives."""
    with Store(tmp_path / "other", create=True) as other:
        store.push(other)
        refs = Refs(store.backend, store.machine)
        store.add(two, ref="models/two")
        deletion = refs.draft("models/one", target=None)
        write = replace(
            refs.draft("models/one", target=store.record("models/two").target, metadata={"n": 1}),
            manifest=store.record("models/two").manifest,
            write_id=write_id,
        )
        for record in (deletion, write):
            store.backend.put(record.key, [encode(record)])
        assert "models/one" in store.push(other).refs
        assert read_model(other, "models/one") == TWO
        assert "models/one" in other.push(store).equal
        other.rm("models/one")
        assert other.pull(store, "models/one").refs == ("models/one",)


def test_a_deletion_that_lost_leaves_nothing_to_undelete(store):
    refs = Refs(store.backend, store.machine)
    deletion = refs.draft("models/one", target=None)
    write = refs.draft("models/one", target=store.record("models/one").target, metadata={"again": True})
    refs.put(write)
    refs.put(deletion)
    with pytest.raises(ConfigError, match="not deleted"):
        store.undelete("models/one")
    store.rm("models/one")
    with pytest.raises(RefNotFound):
        store.rm("models/one")


def test_a_tag_with_a_value_and_a_deletion_is_no_fork(store, two):
    """Where the storage has no exclusive creation, both have the same number."""
    store.add(two, ref="models/two")
    refs = Refs(store.backend, store.machine)
    for target in (None, store.record("models/one").target):
        record = replace(refs.draft("tags/x", target=target, manifest=b"m" * 32), exclusive=False, seq=1)
        store.backend.put(record.key, [encode(record)])
    assert store.record("tags/x").target == store.record("models/one").target
    store.tag("x", "models/two")
    assert read_model(store, "tags/x") == TWO


@pytest.mark.parametrize("damaged_id", [bytes(16), b"\xff" * 16], ids=["lower", "higher"])
def test_a_damaged_record_may_win_over_a_deletion_whatever_its_id(store, damaged_id):
    """It may have a target, so the value is unknown: no older one and no deletion is used instead."""
    deletion = replace(
        Refs(store.backend, store.machine).draft("models/one", target=None), write_id=b"\x77" * 16
    )
    store.backend.put(deletion.key, [encode(deletion)])
    assert store.record("models/one") is None
    store.backend.put(replace(deletion, write_id=damaged_id).key, [b"torn"])
    with pytest.raises(FormatError, match="newest record of models/one cannot be read"):
        store.record("models/one")
    with pytest.raises(FormatError):
        store.undelete("models/one")
    with pytest.raises(FormatError):
        store.gc()
    store.rm("models/one")
    store.undelete("models/one")
    assert read_model(store, "models/one") == ONE
