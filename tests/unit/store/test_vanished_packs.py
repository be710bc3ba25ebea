"""Readers when a pack has vanished: another copy, a newer value of the ref, the store's remotes, and else what is missing."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from fakes.collector import collect_alone
from fakes.far_stores import far_store
from fakes.model_files import safetensors_bytes
from fakes.stores import assert_clean, model_of, noise, read_folder, read_model, small_packs, write_model

from casstore import BackendError, IntegrityError, MissingObject, Store
from casstore.machine.remotes import Remotes
from casstore.objects import ReadThrough
from casstore.objects.reading import reader as reader_module
from casstore.store.reading import other_stores

TENSOR = np.random.default_rng(5).normal(size=(300, 500)).astype(np.float32)
OLD = model_of(weights=safetensors_bytes({"w": TENSOR}), more=noise(2, 400_000), small=noise(3, 500))
NEW = model_of(weights=noise(7, 500_000), more=noise(8, 40_000), small=noise(9, 500))
REF = "models/m"


class Place:
    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.root, self.hub = str(tmp_path / "store"), str(tmp_path / "hub")
        with self.open(create=True) as store:
            store.add(write_model(OLD, tmp_path / "old"), ref=REF)
            self.id = store.store_id

    def open(self, **options):
        return Store(self.root, durability="none", **options)

    def packs(self):
        return sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(os.path.join(self.root, "packs"))
            for name in names
        )

    def lose(self, how="gone", packs=None):
        for path in packs or self.packs():
            if how == "gone":
                os.unlink(path)
                continue
            os.chmod(path, 0o600)
            with open(path, "r+b") as file:
                data = bytearray(file.read())
                for at in range(60, len(data) - 4000, 1000):
                    data[at] ^= 1
                file.seek(0)
                file.write(data)

    def push(self):
        with self.open() as store:
            store.push(self.hub, create=True)
            Remotes(store.store_id).add("hub", self.hub)

    def set_aside(self):
        """Move the packs away; return a function that brings them back, as from a backup."""
        away = shutil.move(os.path.join(self.root, "packs"), self.tmp_path / "away")
        os.mkdir(os.path.join(self.root, "packs"))
        return lambda: shutil.copytree(away, os.path.join(self.root, "packs"), dirs_exist_ok=True)


@pytest.fixture(params=["one pack", "many packs"])
def place(tmp_path, monkeypatch, request):
    if request.param == "many packs":
        small_packs(monkeypatch, 60_000)
    return Place(tmp_path)


@pytest.fixture
def single(tmp_path):
    return Place(tmp_path)


def cas(root):
    return fsspec.filesystem("cas", store=root, skip_instance_cache=True)


READERS = {
    "get": lambda store, tmp_path: (
        (store.get(REF, tmp_path / "out"), read_folder(tmp_path / "out"))[1] == OLD
    ),
    "open_file": lambda store, _: read_model(store, REF) == OLD,
    "cat": lambda store, _: store.cat(REF, "more") == OLD.files["more"][0],
    "get_file": lambda store, tmp_path: (
        Path(store.get_file(REF, "more", tmp_path / "one")).read_bytes() == OLD.files["more"][0]
    ),
    "read_tensor": lambda store, _: np.array_equal(store.read_tensor(REF, "w"), TENSOR),
    "cas": lambda store, _: cas(store.backend.url).cat_file(f"{REF}/more") == OLD.files["more"][0],
    "cas open": lambda store, _: cas(store.backend.url).open(f"{REF}/more").read() == OLD.files["more"][0],
}


@pytest.mark.parametrize("how", ["gone", "damaged"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_lost_is_read_from_a_remote(single, tmp_path, reader, how):
    single.push()
    single.lose(how)
    before = read_folder(single.root)
    with single.open(read_only=True) as store:
        assert READERS[reader](store, tmp_path)
    assert read_folder(single.root) == before, "repair writes; readers do not"


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_one_lost_pack_of_many(place, tmp_path, how):
    place.push()
    place.lose(how, place.packs()[:1])
    with place.open() as store:
        store.get(REF, tmp_path / "out")
    assert read_folder(tmp_path / "out") == OLD


@pytest.mark.parametrize("reader", READERS)
def test_without_a_remote_the_error_says_what_is_missing(single, tmp_path, reader):
    single.lose()
    with single.open() as store, pytest.raises(MissingObject, match="casstore repair"):
        READERS[reader](store, tmp_path)


def test_the_error_lists_objects_and_files(single, monkeypatch, tmp_path):
    with single.open() as store:
        kept = set(single.packs())
        store.add(
            write_model(model_of(lost=noise(11, 900_000), kept=OLD.files["more"][0]), tmp_path / "n"),
            ref="models/n",
        )
        [pack] = set(single.packs()) - kept
        read_model(store, "models/n")  # keeps the description of the model, which was in that pack
        os.unlink(pack)
        lost = store.model("models/n").layout("lost")
        for read in (
            lambda: store.get("models/n", tmp_path / "out"),
            lambda: store.cat("models/n", "lost"),
        ):
            with pytest.raises(MissingObject) as raised:
                read()
            text = str(raised.value)
            assert f"models/n lacks {lost.chunks} objects" in text
            assert "1 of its 2 files: lost." in text
            assert lost.chunk_ids()[0].hex() in text
        with store.open_file("models/n", "lost") as file, pytest.raises(MissingObject, match="lost lacks"):
            file.read()
        assert store.cat("models/n", "kept") == OLD.files["more"][0]


def test_a_remote_that_cannot_be_reached_hides_no_error(place, monkeypatch, tmp_path):
    place.push()
    place.lose()
    shutil.rmtree(place.hub)
    with place.open() as store:
        with pytest.raises(MissingObject, match=r"No pack holds.*hub \(.*could not be asked"):
            store.get(REF, tmp_path / "out")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with Store(place.hub, create=True) as hub:
            hub.add(tmp_path / "old", ref=REF)
        with pytest.raises(MissingObject):
            store.get(REF, tmp_path / "out")
        later = time.monotonic() + 60
        monkeypatch.setattr(
            "casstore.store.reading.other_stores.time", SimpleNamespace(monotonic=lambda: later)
        )
        store.get(REF, tmp_path / "out")
    assert read_folder(tmp_path / "out") == OLD


def test_a_remote_that_lacks_it_too_is_named(single, tmp_path):
    Store(single.hub, create=True).close()
    Remotes(single.id).add("hub", single.hub)
    single.lose()
    with single.open() as store, pytest.raises(MissingObject, match=r"Not in its remotes either: hub"):
        store.get(REF, tmp_path / "out")


def test_a_damaged_list_of_remotes_hides_no_error(single, own_home):
    single.push()
    [path] = own_home.rglob("remotes.json")
    path.write_text("{")
    single.lose()
    with single.open() as store, pytest.raises(MissingObject, match="list of remotes could not be asked"):
        read_model(store, REF)


def test_a_remote_that_lies_is_not_believed(single, tmp_path):
    single.push()
    single.lose()
    other = Place(tmp_path / "other")
    other.hub, good = single.hub, single.root
    shutil.rmtree(single.hub)
    shutil.copytree(good, single.hub)
    with Store(single.hub) as hub:
        hub.add(tmp_path / "old", ref=REF)
    for folder, _, names in os.walk(os.path.join(single.hub, "packs")):
        for name in names:
            path = os.path.join(folder, name)
            os.chmod(path, 0o600)
            with open(path, "r+b") as file:
                file.seek(200)
                file.write(bytes(100_000))
    with single.open() as store, pytest.raises(IntegrityError):
        read_model(store, REF)


def test_nobody_is_asked_while_all_is_here(single, monkeypatch, tmp_path):
    single.push()
    shutil.rmtree(single.hub)
    monkeypatch.setattr(other_stores.OtherStores, "stores", lambda self: pytest.fail("asked"))
    with single.open() as store:
        for name, reader in READERS.items():
            assert reader(store, tmp_path), name


def test_work_on_the_store_sees_what_is_missing(place):
    place.push()
    place.lose()
    with place.open() as store:
        assert read_model(store, REF) == OLD
        assert store.lacks(store.record(REF)) > 0
        assert not store.check().ok
        with pytest.raises(MissingObject):
            store.tag("best", REF)


def test_without_fallback_no_remote_is_asked(single):
    single.push()
    single.lose()
    with single.open(fallback=False) as store, pytest.raises(MissingObject):
        read_model(store, REF)


@pytest.mark.parametrize("reader", ["get", "cat", "cas"])
def test_a_model_that_was_replaced_and_collected_is_read_as_it_is_now(single, monkeypatch, tmp_path, reader):
    """Its ref is looked up, then another process replaces it and collects the old packs, then they are read."""
    single.push()
    with single.open() as store:
        done = []
        inner = reader_module.plan_ranges

        def replaced_meanwhile(*arguments, **options):
            if not done:
                done.append(1)
                with single.open() as other:
                    other.add(write_model(NEW, tmp_path / "new"), ref=REF)
                    assert collect_alone(other.backend)
            return inner(*arguments, **options)

        file_system = cas(single.root)
        file_system.cat_file(f"{REF}/small")
        monkeypatch.setattr(reader_module, "plan_ranges", replaced_meanwhile)
        if reader == "get":
            store.get(REF, tmp_path / "out")
            assert read_folder(tmp_path / "out") == NEW
        elif reader == "cat":
            assert store.cat(REF, "more") == NEW.files["more"][0]
        else:
            shutil.rmtree(single.hub)
            assert file_system.cat_file(f"{REF}/more") == NEW.files["more"][0]
    assert done


@pytest.mark.parametrize("reader", ["get", "cat", "get_file", "read_tensor", "cas"])
def test_a_model_that_was_deleted_collected_and_added_again_is_read(single, monkeypatch, tmp_path, reader):
    """The same model, so its manifest says nothing; it is back when the reader has looked in vain and asks a remote."""
    Store(single.hub, create=True).close()
    Remotes(single.id).add("hub", single.hub)
    acts = []

    def gone():
        with single.open() as other:
            other.rm(REF)
            assert collect_alone(other.backend)

    def back():
        with single.open() as other:
            other.add(tmp_path / "old", ref=REF, stat_cache=False)

    def once(act):
        if act not in acts:
            acts.append(act)
            thread = Thread(target=act)
            thread.start()
            thread.join()

    ranges, asked = reader_module.plan_ranges, other_stores.OtherStores.read

    def collected_meanwhile(*arguments, **options):
        once(gone)
        return ranges(*arguments, **options)

    def added_meanwhile(*arguments):
        once(back)
        return asked(*arguments)

    file_system = cas(single.root)
    file_system.cat_file(f"{REF}/more")
    monkeypatch.setattr(reader_module, "plan_ranges", collected_meanwhile)
    monkeypatch.setattr(other_stores.OtherStores, "read", added_meanwhile)
    with single.open() as store:
        if reader == "cas":
            assert file_system.cat_file(f"{REF}/more") == OLD.files["more"][0]
        else:
            assert READERS[reader](store, tmp_path)
    assert acts == [gone, back]


class Liar:
    """Other stores, as a reader sees them, that return wrong bytes of the right length."""

    def lengths(self, ids):
        return dict.fromkeys(ids, 500)

    def read(self, ids):
        return {object_id: bytes(500) for object_id in ids}

    def answer(self):
        return "They were asked."

    def close(self):
        pass


def test_whatever_others_return_is_hashed(single):
    with single.open() as store:
        reader = ReadThrough(store.objects, store.backend, Liar())
        [chunk] = store.model(REF).layout("small").chunk_ids()
        assert reader.read(chunk) == OLD.files["small"][0]
        single.lose()
        with pytest.raises(MissingObject, match=r"They were asked\."):
            reader.read(chunk)


# ---- packs that come back


def test_a_pack_that_comes_back_is_read(place):
    with place.open() as store:
        assert read_model(store, REF) == OLD
        restore = place.set_aside()
        with pytest.raises((MissingObject, BackendError)):
            read_model(store, REF)
        restore()
        assert read_model(store, REF) == OLD
        assert store.lacks(store.record(REF)) == 0
        assert store.tag("best", REF)
        assert_clean(store)


def test_a_pack_that_was_damaged_and_comes_back_is_of_use_again(place):
    with place.open() as store:
        copies = {path: Path(path).read_bytes() for path in place.packs()}
        place.lose("damaged")
        with pytest.raises(IntegrityError):
            read_model(store, REF)
        with pytest.raises(MissingObject):
            store.tag("best", REF)
        for path, data in copies.items():
            Path(path).write_bytes(data)
        assert read_model(store, REF) == OLD
        assert store.tag("best", REF)
        assert store.add(os.path.join(place.tmp_path, "old"), ref="models/again").chunks_new == 0


def test_an_open_file_goes_on_when_its_pack_comes_back(single):
    with single.open() as store, store.open_file(REF, "more") as file:
        restore = single.set_aside()
        with pytest.raises(MissingObject):
            file.read(1000)
        restore()
        file.seek(0)
        assert file.read() == OLD.files["more"][0]


def test_a_chunk_cache_sees_what_comes_back(tmp_path, single):
    """A store that is a network away, as far as casstore can tell."""
    with single.open() as near:
        far, _ = far_store(near)
        restore = single.set_aside()
        with pytest.raises(MissingObject):
            read_model(far, REF)
        restore()
        assert read_model(far, REF) == OLD
        far.objects.close()
