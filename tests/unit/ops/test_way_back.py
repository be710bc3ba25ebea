"""The way back from damage: set apart what is damaged, add the model again, and it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid

import pytest
from fakes.fresh_files import trust_fresh_files
from fakes.stores import assert_clean, model_of, noise, read_model, small_packs, write_model

from casstore.api.store import Store
from casstore.backend.local.syscalls import SystemCalls
from casstore.errors import (
    BackendError,
    CasstoreError,
    ConfigError,
    FormatError,
    IntegrityError,
    MissingObject,
)
from casstore.format import frame, marks
from casstore.format.rows import Kind
from casstore.machine.user_folders import cache_folder
from casstore.objects import stored_packs
from casstore.objects.footers import read_footer
from casstore.objects.keys import PACK_PREFIX, pack_key
from casstore.objects.publishing.presence import read_quarantine
from casstore.ops.check import check
from casstore.ops.leftovers import find_leftovers
from casstore.ops.quarantine import find_damage, quarantine_damaged
from casstore.ops.sync import execute, plan_sync

MODEL = model_of(weights=noise(1, 900_000), small=noise(2, 700))
OTHER = model_of(weights=noise(3, 300_000))
REF = "models/m"


def flip(path, at=None):
    """Change one byte of data: nothing but reading it tells."""
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2 if at is None else at)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


DAMAGE = {
    "flipped": flip,
    "flipped all over": lambda path: [flip(path, at) for at in range(40, os.path.getsize(path), 97)] and None,
    "cut": lambda path: os.truncate(path, os.path.getsize(path) // 2),
    "cut by a byte": lambda path: os.truncate(path, os.path.getsize(path) - 1),
    "cut to 1,000 bytes": lambda path: os.truncate(path, 1000),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, os.path.getsize(path) + 1),
    "deleted": os.unlink,
}
SIZES = [name for name in DAMAGE if not name.startswith("flipped")]


def cannot_read(monkeypatch, path):
    """Let the disk have bad sectors where this file is."""
    opening = SystemCalls.open

    def fail(self, name, *rest):
        if name == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opening(self, name, *rest)

    monkeypatch.setattr(SystemCalls, "open", fail)


def opened(path, **options):
    """Open a store that knows files by their stat identity at once: that leads to what was damaged meanwhile."""
    store = Store(path, **options)
    trust_fresh_files(store)
    return store


class Place:
    """A store in a folder, and the files of MODEL, which the stat cache trusts."""

    def __init__(self, tmp_path):
        self.root = str(tmp_path / "store")
        self.folder = write_model(MODEL, tmp_path / "files")
        with opened(self.root, create=True) as store:
            store.add(write_model(OTHER, tmp_path / "other"), ref="models/other")
            self.others = set(self.packs(store))
            store.add(self.folder, ref=REF)

    def packs(self, store):
        return [entry.key for entry in store.backend.list(PACK_PREFIX)]

    def damage(self, how):
        with opened(self.root) as store:
            for key in set(self.packs(store)) - self.others:
                path = os.path.join(self.root, key)
                os.chmod(path, 0o600)
                DAMAGE[how](path)

    def add(self, ref=REF, **options):
        with opened(self.root) as store:
            return store.add(self.folder, ref=ref, **options)

    def quarantine(self, ref=REF):
        with opened(self.root) as store:
            return quarantine_damaged(store, store.record(ref))

    def assert_whole(self, *refs):
        with opened(self.root) as store:
            for ref in refs or (REF,):
                assert read_model(store, ref) == MODEL
                assert store.lacks(store.record(ref)) == 0
            assert read_model(store, "models/other") == OTHER


@pytest.fixture(params=["one pack", "many packs"])
def place(tmp_path, monkeypatch, request):
    if request.param == "many packs":
        small_packs(monkeypatch, 100_000)
    return Place(tmp_path)


@pytest.mark.parametrize("stat_cache", [True, False])
@pytest.mark.parametrize("how", DAMAGE)
def test_quarantine_then_add_again(place, how, stat_cache):
    place.damage(how)
    place.quarantine()
    added = place.add(stat_cache=stat_cache)
    assert added.chunks_new > 0
    place.assert_whole()
    assert place.quarantine() == {}
    assert place.add(stat_cache=stat_cache).chunks_new == 0


@pytest.mark.parametrize("stat_cache", [True, False])
@pytest.mark.parametrize("how", SIZES)
def test_what_the_size_tells_needs_no_quarantine(place, how, stat_cache):
    place.damage(how)
    with opened(place.root) as store:
        assert store.lacks(store.record(REF)) > 0
    added = place.add(stat_cache=stat_cache)
    assert added.chunks_new == added.chunks
    place.assert_whole()


@pytest.mark.parametrize("how", DAMAGE)
def test_through_another_ref(place, how):
    place.damage(how)
    place.quarantine()
    assert place.add("models/again").chunks_new > 0
    place.assert_whole(REF, "models/again")


@pytest.mark.parametrize("how", DAMAGE)
def test_from_a_copy(place, how, tmp_path):
    with opened(str(tmp_path / "good"), create=True) as good:
        good.add(place.folder, ref=REF)
        place.damage(how)
        if how not in SIZES:
            place.quarantine()
        with opened(place.root) as store:
            execute(plan_sync(good, store, [REF], overwrite=True))
            assert plan_sync(good, store, [REF], overwrite=True).empty
    place.assert_whole()


def test_a_process_that_met_the_damage_does_not_rely_on_it(tmp_path):
    """Whoever has read the damage adds the model again, without a note from anybody."""
    place = Place(tmp_path)
    place.damage("flipped")
    with opened(place.root) as store:
        with pytest.raises(IntegrityError):
            read_model(store, REF)
        with pytest.raises(MissingObject):
            store.tag("best", REF)
        store.add(place.folder, ref=REF)
        assert read_model(store, REF) == MODEL
        store.tag("best", REF)
    place.assert_whole(REF, "tags/best")


@pytest.mark.parametrize("kind", [Kind.MANIFEST, Kind.LAYOUT])
def test_quarantine_finds_every_pack(tmp_path, monkeypatch, kind):
    """Though what describes the model is damaged, so that nobody knows what it needs."""
    small_packs(monkeypatch, 100_000)
    place = Place(tmp_path)
    with opened(place.root) as store:
        located = store.objects._index.locate(store.objects_of(store.record(REF)))
        chunk = located.rows[located.rows["kind"] == Kind.CHUNK][0]
        rows = [located.rows[located.rows["kind"] == kind][0], chunk]
        wanted = {store.objects._index.pack_id(int(row["pack"])).hex() for row in rows}
        for row in rows:
            path = os.path.join(place.root, pack_key(store.objects._index.pack_id(int(row["pack"]))))
            os.chmod(path, 0o600)
            flip(path, int(row["offset"]) + frame.HEADER_SIZE + 5)
    with opened(place.root) as store:
        damage = find_damage(store, store.record(REF))
        assert list(store.backend.list(marks.QUARANTINE_PREFIX)) == []
    assert len(wanted) == 2
    assert not damage.complete
    assert {pack.hex() for pack in damage.packs} == wanted
    assert set(place.quarantine()) == wanted
    place.add()
    place.assert_whole()


def test_quarantine_again_says_the_same_until_the_model_is_whole(place):
    place.damage("flipped")
    first = place.quarantine()
    assert place.quarantine() == first
    place.add()
    assert place.quarantine() == {}


def test_quarantine_spares_what_is_whole(place):
    assert place.quarantine() == {}
    place.damage("flipped")
    place.quarantine()
    assert place.quarantine("models/other") == {}


def test_both_copies_are_damaged(place):
    """The model was stored twice, by two writers that knew nothing of one another."""
    place.damage("cut")
    place.add()
    place.damage("flipped")
    found = place.quarantine()
    with opened(place.root) as store:
        assert len(found) == len(set(place.packs(store)) - place.others)
    place.add()
    place.assert_whole()


def stored_twice(place):
    """Store the model once more, by a writer to whom the packs are invisible; return where each object lies in both."""
    with opened(place.root) as store:
        first = set(place.packs(store)) - place.others
    for key in first:
        os.rename(os.path.join(place.root, key), os.path.join(place.root, "aside-" + key[-64:]))
    place.add()
    for key in first:
        os.rename(os.path.join(place.root, "aside-" + key[-64:]), os.path.join(place.root, key))
    copies = ({}, {})
    with opened(place.root) as store:
        for key in set(place.packs(store)) - place.others:
            for row in read_footer(store.backend, bytes.fromhex(key[-64:])).rows:
                os.chmod(os.path.join(place.root, key), 0o600)
                at = int(row["offset"]) + frame.HEADER_SIZE + 2
                copies[key not in first][row["id"].tobytes()] = (os.path.join(place.root, key), at)
        return copies, store.model(REF)


def test_both_copies_are_damaged_at_different_objects(tmp_path):
    """Each object is whole somewhere, and every pack damaged: reading gives the model."""
    place = Place(tmp_path)
    copies, model = stored_twice(place)
    objects = [*model.layout_ids, *model.layout("weights").chunk_ids()]
    for number, object_id in enumerate(objects):
        flip(*copies[number % 2][object_id])
    place.assert_whole()
    assert place.quarantine()
    with opened(place.root) as store:
        assert store.repair(dry_run=False).ok
    place.assert_whole()


@pytest.mark.parametrize("tool", ["quarantine", "repair", "repair all"])
def test_every_damaged_pack_is_found_though_what_describes_the_model_is_read_first(
    tmp_path, monkeypatch, tool
):
    """Its tree is damaged in both copies, so from then on a reader avoids both packs."""
    small_packs(monkeypatch, 100_000)
    place = Place(tmp_path)
    copies, model = stored_twice(place)
    for number, object_id in enumerate([*model.layout_ids, *model.layout("weights").chunk_ids()]):
        flip(*copies[number % 2][object_id])
    for copy in copies:
        flip(*copy[bytes.fromhex(model.model_id)])
    damaged = {path[-64:] for copy in copies for path, _ in copy.values()}
    assert len(damaged) >= 4
    with opened(place.root) as store:
        if tool == "quarantine":
            damage = find_damage(store, store.record(REF))
            found, complete = {pack.hex() for pack in damage.packs}, damage.complete
        else:
            report = store.repair([REF] if tool == "repair" else None)
            found, complete = (
                report.packs.keys(),
                not any("more may be missing" in ref.reason for ref in report.refs),
            )
    assert found == damaged
    assert complete


def test_what_is_only_gone_is_told(place):
    place.damage("deleted")
    with opened(place.root) as store:
        damage = find_damage(store, store.record(REF))
    assert damage.missing > 0
    assert all(reason.endswith("is gone.") for reason in damage.packs.values())


def test_a_tag_copies_what_is_whole_in_a_pack_that_was_set_apart(place):
    with opened(place.root) as store:
        for key in set(place.packs(store)) - place.others:
            pack = bytes.fromhex(key.rpartition("/")[2])
            note = marks.Quarantine(pack, "by hand", 0)
            store.backend.put(marks.quarantine_key(pack), [marks.encode_quarantine(note)])
        packs = set(place.packs(store))
        store.tag("best", REF)
        for key in packs - place.others:
            os.unlink(os.path.join(place.root, key))
    place.assert_whole(REF, "tags/best")


def test_a_foreign_damaged_pack_stops_nobody(place):
    """No segment covers it, so nothing tells what it holds: a publish that looks for more goes on."""
    shutil.rmtree(os.path.join(place.root, "index"))
    with opened(place.root) as store:
        [*keys] = sorted(set(place.packs(store)) - place.others)
    for key in keys:
        os.chmod(os.path.join(place.root, key), 0o600)
        os.truncate(os.path.join(place.root, key), 10)
    assert place.add().chunks_new > 0
    place.assert_whole()


def test_a_server_that_stores_less_than_it_was_given(place, monkeypatch):
    """The new pack itself is too short: nothing is acknowledged before it is whole."""
    with opened(place.root) as store:
        inner, shortened = store.backend.stat, []

        def stat(key):
            entry = inner(key)
            if key.startswith(PACK_PREFIX) and key not in before and not shortened:
                shortened.append(key)
                os.chmod(os.path.join(place.root, key), 0o600)
                os.truncate(os.path.join(place.root, key), entry.size - 1)
                entry = inner(key)
            return entry

        before = set(place.packs(store))
        monkeypatch.setattr(store.backend, "stat", stat)
        folder = write_model(model_of(new=noise(9, 5_000)), os.path.join(os.path.dirname(place.root), "new"))
        store.add(folder, ref="models/new")
        assert shortened
        monkeypatch.undo()
        assert read_model(store, "models/new") == model_of(new=noise(9, 5_000))
        os.unlink(os.path.join(place.root, shortened[0]))
        assert read_model(store, "models/new") == model_of(new=noise(9, 5_000))
        assert_clean(store)


def test_damage_beside_the_frames_has_a_way_back(place):
    """A flipped byte in a pack's header or trailer leaves every frame readable, and check calls it damage."""
    with opened(place.root) as store:
        for key in set(place.packs(store)) - place.others:
            path = os.path.join(place.root, key)
            os.chmod(path, 0o600)
            flip(path, 5)
            flip(path, os.path.getsize(path) - 20)
        assert "casstore quarantine" in check(store).problems[0].message
    assert place.quarantine()
    assert place.add().chunks_new > 0
    with opened(place.root) as store:
        report = check(store)
        assert report.ok
        assert {problem.key.partition("/")[0] for problem in report.apart} == {"packs"}
        for problem in report.apart:
            note = marks.quarantine_key(bytes.fromhex(problem.key.rpartition("/")[2]))
            assert note in problem.message
            for key in (problem.key, note):
                os.unlink(os.path.join(place.root, key))
        assert_clean(store)
    place.assert_whole()


@pytest.mark.parametrize("how", ["emptied", "cut by a byte", "flipped"])
def test_a_damaged_note_does_not_block_the_way_back(place, how):
    place.damage("flipped all over")
    packs = place.quarantine()
    for pack in packs:
        path = os.path.join(place.root, marks.quarantine_key(bytes.fromhex(pack)))
        os.chmod(path, 0o600)
        DAMAGE[how](path)
    again = place.quarantine()
    assert again
    assert again.keys() <= packs.keys()
    assert all("was quarantined" in reason for reason in again.values())
    place.add()
    place.assert_whole()


def test_what_is_in_the_way_of_a_note_is_an_error(place):
    """Without the note, a later add would rely on the damaged pack."""
    place.damage("flipped all over")
    with opened(place.root) as store:
        packs = find_damage(store, store.record(REF)).packs
    for pack in packs:
        os.makedirs(os.path.join(place.root, marks.quarantine_key(pack)))
    with pytest.raises(BackendError, match="directory"):
        place.quarantine()


def test_every_error_of_a_damaged_frame_tells_the_way_back(place):
    with opened(place.root) as store:
        for key in set(place.packs(store)) - place.others:
            path = os.path.join(place.root, key)
            os.chmod(path, 0o600)
            with open(path, "r+b") as file:
                file.write(bytes(os.path.getsize(path)))
        with pytest.raises(IntegrityError, match="casstore quarantine REF"):
            read_model(store, REF)


@pytest.mark.parametrize("in_its_place", ["directory", "pipe"])
@pytest.mark.parametrize("prefix", ["refs/models/", PACK_PREFIX])
def test_check_names_what_has_the_name_of_a_file_and_is_none(place, prefix, in_its_place):
    with opened(place.root) as store:
        key = next(iter(store.backend.list_keys(prefix)))
        path = os.path.join(place.root, key)
        os.unlink(path)
        if in_its_place == "pipe":
            os.mkfifo(path)
        else:
            os.mkdir(path)
            with open(os.path.join(path, "x"), "w"):
                pass
        assert f"{key} is no plain file" in " ".join(problem.message for problem in check(store).problems)


@pytest.mark.parametrize("how", ["emptied", "flipped", "deleted"])
def test_a_lost_format_file_can_be_replaced(place, how):
    path = os.path.join(place.root, "format")
    os.chmod(path, 0o600)
    DAMAGE[how](path)
    with pytest.raises((FormatError, ConfigError), match="copy the `format` file of a new, empty store"):
        Store(place.root, create=True)
    other = os.path.join(os.path.dirname(place.root), "new")
    Store(other, create=True).close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    shutil.copy(os.path.join(other, "format"), path)
    place.add()
    place.assert_whole()
    with opened(place.root) as store:
        assert_clean(store)


def test_a_damaged_tombstone_tells_when_it_may_go(place):
    key = f"{marks.TOMBSTONE_PREFIX}{uuid.uuid4()}"
    with opened(place.root) as store:
        store.backend.put(key, [b""])
        with pytest.raises(FormatError, match=f"{key} .* remove it, if no collector is at work"):
            store.tag("t", REF)


@pytest.mark.parametrize("fault", ["bad sectors", "a file in place of the folder"])
def test_one_pack_that_the_disk_cannot_read_is_damage(place, monkeypatch, tmp_path, fault):
    """As one with wrong bytes: the rest is done, the culprit named, and there is a way back."""
    with opened(place.root) as store:
        packs = [os.path.join(place.root, key) for key in set(place.packs(store)) - place.others]
    # Packs of other models stay whole, also where they are in the same folder.
    spared = {os.path.dirname(os.path.join(place.root, key)) for key in place.others}
    for path in packs:
        if fault == "bad sectors":
            cannot_read(monkeypatch, path)
        elif (folder := os.path.dirname(path)) not in spared and not os.path.isfile(folder):
            shutil.rmtree(folder)
            with open(folder, "w"):
                pass
    with opened(place.root) as store, opened(tmp_path / "there", create=True) as there:
        with pytest.raises(IntegrityError, match="packs/"):
            read_model(store, REF)
        assert read_model(store, "models/other") == OTHER
        assert not check(store).ok
        find_leftovers(store)
        report = execute(plan_sync(store, there, keep_going=True))
        assert [damage.name for damage in report.damaged] == [REF]
        assert read_model(there, "models/other") == OTHER
    place.quarantine()
    for _ in range(9):
        # A new pack may belong in the folder that the file replaces, and its next attempt in another one.
        with contextlib.suppress(BackendError):
            place.add()
            break
    place.assert_whole()
    with opened(place.root) as store, opened(tmp_path / "there") as there:
        assert execute(plan_sync(store, there, keep_going=True)).damaged == ()
        assert read_model(there, REF) == MODEL


def test_one_record_that_the_disk_cannot_read_stops_no_listing(place, monkeypatch):
    with opened(place.root) as store:
        cannot_read(monkeypatch, os.path.join(place.root, store.record(REF).key))
    shutil.rmtree(cache_folder(), ignore_errors=True)
    with opened(place.root) as store:
        assert list(store.refs()) == ["models/other"]
        with pytest.raises(CasstoreError, match="Input/output error"):
            store.record(REF)
        store.rm(REF)
    place.add()
    place.assert_whole()


def test_what_is_in_the_way_of_temporary_files_is_a_problem_of_a_check(place):
    temporary = os.path.join(place.root, ".tmp")
    shutil.rmtree(temporary)
    with open(temporary, "w"):
        pass
    with opened(place.root) as store:
        report = check(store)
    assert report.models == 2
    assert "in the way" in report.problems[0].message


def test_a_check_beside_a_collector_finds_nothing_wrong(place, monkeypatch):
    def collected_meanwhile(backend):
        for key in place.others:
            backend.delete(key)
        return read_quarantine(backend)

    monkeypatch.setattr(stored_packs, "read_quarantine", collected_meanwhile)
    with opened(place.root) as store:
        store.rm("models/other")
        assert_clean(store)


def test_a_damaged_version_number_is_no_newer_version(place):
    with opened(place.root) as store:
        path = os.path.join(place.root, min(place.others))
        os.chmod(path, 0o600)
        flip(path, 8)
        problem = check(store, read_data=True).problems[0]
    assert "does not have the hash that names it" in problem.message
