"""The executable bit: kept in a model's manifest, never a part of what the model is, and not believed everywhere."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

import pytest
from fakes.stores import Content, assert_clean, model_of, read_folder, write_model

from casstore import Store
from casstore.errors import IntegrityError, ObjectExists
from casstore.format import manifest as manifest_format
from casstore.format import marks
from casstore.machine.state import MachineState
from casstore.ops.check import check
from casstore.ops.quarantine import quarantine_damaged
from casstore.ops.sync import execute, plan_sync
from casstore.store.adding.executable import own_bits
from casstore.store.adding.sources import find_sources
from casstore.store.model_store import ModelStore

SCRIPT = Content({"run.sh": (b"#!/bin/sh\n", True), "sub/w.bin": (b"w" * 1000, False)})
PLAIN = Content({path: (data, False) for path, (data, _) in SCRIPT.files.items()})
ALL = Content({path: (data, True) for path, (data, _) in SCRIPT.files.items()})


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


def on(store, kind):
    """Return the same store, opened where every file system is of this type."""
    return ModelStore(
        store.backend,
        store_id=bytes.fromhex(store.store_id),
        machine=MachineState(None),
        file_system_type=lambda _: kind,
    )


def executable(store, ref_or_id):
    return set(store.model(ref_or_id).executable)


def test_the_bit_is_no_part_of_the_model_id(store, tmp_path):
    ids = {}
    for number, content in enumerate((SCRIPT, PLAIN, ALL)):
        folder = write_model(content, tmp_path / str(number))
        ids[number] = store.add(folder, ref=f"models/{number}").model_id
        assert store.content_id(folder) == ids[number]
        store.get(f"models/{number}", tmp_path / f"out{number}")
        assert read_folder(tmp_path / f"out{number}") == content
    assert len(set(ids.values())) == 1
    assert_clean(store)


# ---- file systems that have no such bit


@pytest.mark.parametrize(
    "kind", ["exfat", "vfat", "msdos", "fuseblk", "fuse.rclone", "9p", "cifs", "ntfs3", None]
)
@pytest.mark.parametrize("shown", [ALL, PLAIN])
def test_a_bit_that_the_file_system_makes_up_is_not_believed(store, tmp_path, kind, shown):
    made_up = write_model(shown, tmp_path / "made-up")
    fresh = on(store, kind)
    fresh.add(made_up, ref="models/unknown")
    assert executable(fresh, "models/unknown") == set()
    store.add(write_model(SCRIPT, tmp_path / "real"), ref="models/real")
    fresh.add(made_up, ref="models/known")
    assert executable(fresh, "models/known") == {"run.sh"}


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs"])
@pytest.mark.parametrize("shown", [ALL, PLAIN, SCRIPT])
def test_a_bit_that_the_file_system_keeps_is_believed(store, tmp_path, kind, shown):
    store.add(write_model(SCRIPT, tmp_path / "known"), ref="models/known")
    on(store, kind).add(write_model(shown, tmp_path / "real"), ref="models/real")
    assert executable(store, "models/real") == {path for path, (_, bit) in shown.files.items() if bit}


def test_files_that_differ_in_it_show_that_their_file_system_has_it(tmp_path):
    """SSHFS and a share with metadata keep the bit, though their types do not say so; FAT's `showexec` does not."""
    files = find_sources(write_model(SCRIPT, tmp_path / "m")).files
    assert own_bits(files, lambda _: "fuse.sshfs") == {"run.sh": True, "sub/w.bin": False}
    assert own_bits(files, lambda _: "vfat") == {}
    asked = []
    assert own_bits(files, asked.append) == {"run.sh": True, "sub/w.bin": False}
    assert len(asked) == 1
    assert own_bits([], asked.append) == {}


def test_what_is_known_is_asked_of_the_newest_record(store, tmp_path):
    for number, content in enumerate((ALL, SCRIPT)):
        store.add(write_model(content, tmp_path / str(number)), ref=f"models/{9 - number}")
    on(store, "exfat").add(write_model(PLAIN, tmp_path / "usb"), ref="models/a")
    assert executable(store, "models/a") == {"run.sh"}


def test_damage_to_what_was_known_does_not_stop_an_add(store, tmp_path):
    store.add(write_model(SCRIPT, tmp_path / "m"), ref="models/m")
    manifest = store.record("models/m").manifest
    for entry in store.backend.list("packs/"):
        os.unlink(store.backend.local_path(entry.key))
    usb = Store(store.backend.url)
    with pytest.raises(IntegrityError):
        usb.objects.read(manifest)
    on(usb, "exfat").add(write_model(ALL, tmp_path / "usb"), ref="models/usb")
    assert executable(on(usb, "exfat"), "models/usb") == set()


# ---- an id alone


def add_by_id(store, folder):
    """Add a model under its own id, as an add of several places does; return the id."""
    return store.add(folder, ref=f"models/{store.content_id(folder)}").model_id


def test_a_bare_id_takes_the_manifest_of_the_newest_record(store, tmp_path):
    model_id = add_by_id(store, write_model(PLAIN, tmp_path / "plain"))
    assert store.resolve(model_id).ref == f"models/{model_id}"
    names = ["models/z", "models/a", "tags/m", "models/k"]
    for number, name in enumerate(names):
        content = SCRIPT if number % 2 == 0 else ALL
        store.add(write_model(content, tmp_path / str(number)), ref=name)
        for known in (store, Store(store.backend.url), on(store, None)):
            for item in (model_id, model_id[:12]):
                assert known.resolve(item).ref == name
                assert executable(known, item) == {path for path, (_, bit) in content.files.items() if bit}
    store.get(model_id, tmp_path / "out")
    assert read_folder(tmp_path / "out") == ALL
    for name in reversed(names):
        store.rm(name)
    assert executable(store, model_id) == set()


def test_records_that_the_catalogue_cannot_compare_are_compared_too(store, tmp_path):
    """Metadata that JSON cannot hold: such a record's time is known from its bytes only."""
    model_id = store.add(write_model(PLAIN, tmp_path / "a"), ref="models/a").model_id
    store.add(
        write_model(SCRIPT, tmp_path / "b"), ref="models/b", metadata={"raw": b"\0", "nan": float("nan")}
    )
    assert store.resolve(model_id).ref == "models/b"
    store.add(write_model(ALL, tmp_path / "c"), ref="models/c")
    assert store.resolve(model_id).ref == "models/c"


def test_an_id_is_pushed_under_its_own_name(store, tmp_path):
    """Which record is the newest says nothing about which ref someone means to push: no tag moves by surprise."""
    model_id = add_by_id(store, write_model(PLAIN, tmp_path / "m"))
    store.tag("production", model_id)
    with Store(tmp_path / "other", create=True) as other:
        execute(plan_sync(store, other, [model_id]))
        assert list(other.refs()) == [f"models/{model_id}"]
    store.rm(f"models/{model_id}")
    with Store(tmp_path / "third", create=True) as third:
        execute(plan_sync(store, third, [model_id[:10], "production"]))
        assert list(third.refs()) == ["tags/production"]


def test_many_refs_of_one_model_are_no_matter(store, tmp_path):
    model_id = add_by_id(store, write_model(PLAIN, tmp_path / "m"))
    first = store.record(f"models/{model_id}")
    for number in range(1000):
        store._refs.put(store._refs.draft(f"models/n{number}", target=first.target, manifest=first.manifest))
    store.resolve(model_id)
    started = time.perf_counter()
    for _ in range(5):
        assert store.resolve(model_id).ref == "models/n999"
    assert time.perf_counter() - started < 2


# ---- equal models with different manifests


def test_adding_an_equal_model_again_makes_no_record(store, tmp_path):
    for number, content in enumerate((SCRIPT, PLAIN, ALL, SCRIPT)):
        store.add(write_model(content, tmp_path / str(number)), ref="models/m", metadata={"epoch": 1})
        store.tag("t", "models/m")
    assert len(store.history("models/m")) == len(store.history("tags/t")) == 1
    assert executable(store, "models/m") == {"run.sh"}
    store.add(tmp_path / "1", ref="models/m", metadata={"epoch": 2})
    assert len(store.history("models/m")) == 2
    assert executable(store, "models/m") == set()
    assert_clean(store)


def test_a_tag_stays_where_it_is_for_an_equal_model(store, tmp_path):
    for name, content in (("models/a", SCRIPT), ("models/b", PLAIN)):
        store.add(write_model(content, tmp_path / name), ref=name)
    store.tag("t", "models/a")
    store.tag("t", "models/b")
    assert len(store.history("tags/t")) == 1


@pytest.mark.parametrize("set_apart", [False, True])
def test_a_damaged_manifest_does_not_stand_for_what_is_added(store, tmp_path, set_apart):
    """Adding again is the way back from damage: a record that cannot be read is replaced."""
    store.add(write_model(SCRIPT, tmp_path / "script"), ref="models/m")
    damaged = store.record("models/m").manifest
    for entry in list(store.backend.list("packs/")):
        path = Path(store.backend.local_path(entry.key))
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        at = data.find(b"executable")
        data[at] ^= 1
        path.write_bytes(data)
    if set_apart:
        with Store(store.backend.url) as opened:
            assert quarantine_damaged(opened, opened.record("models/m"))
    with Store(store.backend.url) as opened:
        if not set_apart:
            for entry in list(opened.backend.list("packs/")):
                opened.backend.delete(entry.key)
        opened.add(write_model(PLAIN, tmp_path / "plain"), ref="models/m", stat_cache=False)
        assert opened.record("models/m").manifest != damaged
    with Store(store.backend.url) as again:
        again.get("models/m", tmp_path / "out")
    assert read_folder(tmp_path / "out") == PLAIN


def two_stores(tmp_path, one, other):
    stores = []
    for name, content in (("one", one), ("other", other)):
        made = Store(tmp_path / name / "store", create=True, durability="none")
        made.add(write_model(content, tmp_path / name / "m"), ref="models/m")
        made.tag("t", "models/m")
        stores.append(made)
    return stores


def test_sync_takes_equal_models_for_equal(tmp_path):
    one, other = two_stores(tmp_path, SCRIPT, PLAIN)
    assert one.record("models/m").manifest != other.record("models/m").manifest
    for src, dst in ((one, other), (other, one)):
        for overwrite in (False, True):
            plan = plan_sync(src, dst, overwrite=overwrite)
            assert plan.empty
            assert plan.equal == ("models/m", "tags/t")
            assert (plan.conflicts, plan.objects) == ((), 0)
        # From now on, overwriting looks whether all that an equal model needs is in packs that are not set apart.
        note = marks.encode_quarantine(marks.Quarantine(b"p" * 32, "torn", 1))
        for opened in (one, other):
            with contextlib.suppress(ObjectExists):
                opened.backend.put(marks.quarantine_key(b"p" * 32), [note])
    assert plan_sync(one, other, overwrite=True).empty
    assert executable(one, "models/m") == {"run.sh"}
    assert executable(other, "models/m") == set()


def test_sync_takes_a_value_that_was_written_meanwhile_for_equal(tmp_path):
    one, other = two_stores(tmp_path, SCRIPT, PLAIN)
    other.rm("models/m")
    plan = plan_sync(one, other, ["models/m"])
    other.add(tmp_path / "other/m", ref="models/m")
    count = len(other.history("models/m"))
    report = execute(plan)
    assert report.conflicts == ()
    assert len(other.history("models/m")) == count


def test_overwriting_mends_a_damaged_model_whose_manifest_differs(tmp_path):
    one, other = two_stores(tmp_path, SCRIPT, PLAIN)
    for entry in list(other.backend.list("packs/")):
        path = Path(other.backend.local_path(entry.key))
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[data.find(b"executable")] ^= 1
        path.write_bytes(data)
    with Store(other.backend.url) as opened:
        assert quarantine_damaged(opened, opened.record("models/m"))
    with Store(other.backend.url) as opened:
        execute(plan_sync(one, opened, overwrite=True))
    with Store(other.backend.url) as opened:
        for ref in ("models/m", "tags/t"):
            opened.get(ref, tmp_path / ref)
            assert read_folder(tmp_path / ref) == SCRIPT


# ---- manifests from elsewhere


def test_what_a_manifest_says_is_executable_is_written_so(store, tmp_path):
    store.add(write_model(SCRIPT, tmp_path / "m"), ref="models/m")
    manifest = manifest_format.decode_model(store.objects.read(store.record("models/m").manifest))
    assert manifest.executable == (0,)
    store.get("models/m", tmp_path / "out")
    assert (tmp_path / "out/run.sh").stat().st_mode & stat.S_IXUSR
    assert check(store, read_data=True).ok


def test_a_model_of_many_executable_files(store, tmp_path):
    content = model_of(**{f"f{number}": b"" for number in range(3000)})
    content = Content({path: (data, True) for path, (data, _) in content.files.items()})
    store.add(write_model(content, tmp_path / "m"), ref="models/m")
    started = time.perf_counter()
    assert len(on(store, None).model("models/m").executable) == 3000
    assert time.perf_counter() - started < 1
