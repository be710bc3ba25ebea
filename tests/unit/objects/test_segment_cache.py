"""Copies of a remote store's index segments: fetched once, believed only when whole, never needed."""

from __future__ import annotations

import os
import shutil
import time

import pytest
from fakes.faulty_backend import FaultyBackend
from fakes.stores import assert_clean, model_of, noise, read_model, write_model
from fakes.sync_stores import Side

from casstore.api.store import Store
from casstore.machine.state import MachineState
from casstore.objects.index import merging, segment_cache
from casstore.objects.index.index import Index
from casstore.objects.keys import INDEX_PREFIX
from casstore.store.model_store import ModelStore


class Remote:
    """A store behind fsspec, and the directory where this machine keeps copies of its segments."""

    def __init__(self, tmp_path):
        self.side = Side("objects", tmp_path)
        self.copies = tmp_path / "cache" / "index"
        self.tmp_path = tmp_path
        self.count = 0

    def process(self):
        """Return the store as another process opens it, and the backend that counts its calls."""
        faulty = FaultyBackend(self.side.backend)
        store = ModelStore(
            faulty, store_id=self.side.store_id, machine=MachineState(None), index_copies=str(self.copies)
        )
        return store, faulty

    def add(self, store, size=2000):
        self.count += 1
        folder = write_model(model_of(a=noise(self.count, size)), self.tmp_path / f"m{self.count}")
        store.add(folder, ref=f"models/{self.count}")

    def listed(self):
        return sorted(entry.key.removeprefix(INDEX_PREFIX) for entry in self.side.backend.list(INDEX_PREFIX))

    def kept(self):
        return sorted(os.listdir(self.copies))


def fetched(faulty):
    return [key for op, key in faulty.calls if op.startswith("read") and key.startswith(INDEX_PREFIX)]


@pytest.fixture
def remote(tmp_path):
    return Remote(tmp_path)


def test_each_segment_is_fetched_once_by_a_machine(remote):
    for _ in range(3):
        remote.add(remote.side.plain)
    first, faulty = remote.process()
    first.objects._index.refresh()
    assert len(fetched(faulty)) == 3
    assert remote.kept() == remote.listed()
    second, faulty = remote.process()
    assert read_model(second, "models/2").files["a"][0] == noise(2, 2000)
    assert fetched(faulty) == []


def test_what_this_machine_wrote_is_not_fetched_at_all(remote):
    store, faulty = remote.process()
    for _ in range(merging.MAX_SEGMENTS + 3):
        remote.add(store)
    assert len(remote.listed()) <= merging.MAX_SEGMENTS
    assert fetched(faulty) == []
    assert set(remote.listed()) <= set(remote.kept())
    assert_clean(store)


def test_large_segments_are_fetched_in_parts(remote, monkeypatch):
    remote.add(remote.side.plain, size=3 << 20)
    monkeypatch.setattr(segment_cache, "_FETCH", 300)
    store, faulty = remote.process()
    assert read_model(store, "models/1").files["a"][0] == noise(1, 3 << 20)
    assert len(fetched(faulty)) > 2
    store, faulty = remote.process()
    store.objects._index.refresh()
    assert fetched(faulty) == []


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "longer"])
def test_a_damaged_copy_is_fetched_again(remote, change):
    remote.add(remote.side.plain)
    remote.process()[0].objects._index.refresh()
    [name] = remote.kept()
    path = remote.copies / name
    data = bytearray(path.read_bytes())
    path.unlink()
    data[len(data) // 2] ^= 1
    changed = {"flip": data, "cut": data[:-1], "empty": b"", "longer": data + b"x"}[change]
    path.write_bytes(changed)
    store, faulty = remote.process()
    assert read_model(store, "models/1").files["a"][0] == noise(1, 2000)
    assert len(fetched(faulty)) == 1
    assert path.read_bytes() != bytes(changed)


def test_damage_in_the_store_is_not_kept(remote, caplog):
    remote.add(remote.side.plain)
    store, faulty = remote.process()
    [name] = remote.listed()
    faulty.corrupt(f"{INDEX_PREFIX}{name}", 100)
    for _ in range(2):
        store.objects._index.refresh()
    assert read_model(store, "models/1").files["a"][0] == noise(1, 2000)
    [warning] = caplog.records
    assert name in warning.getMessage()
    assert len(fetched(faulty)) == 1
    assert not remote.copies.exists() or remote.kept() == []
    faulty.heal()
    remote.process()[0].objects._index.refresh()
    assert remote.kept() == [name]


def test_copies_of_what_was_merged_away_go(remote, monkeypatch):
    for _ in range(3):
        remote.add(remote.side.plain)
    remote.process()[0].objects._index.refresh()
    old = remote.kept()
    monkeypatch.setattr(merging, "MAX_SEGMENTS", 2)
    remote.add(remote.side.plain)
    remote.process()[0].objects._index.refresh()
    assert set(old) <= set(remote.kept())  # another process may be about to open them
    hour_ago = time.time() - 2 * segment_cache._IDLE_SECONDS
    for name in old:
        os.utime(remote.copies / name, (hour_ago, hour_ago))
    remote.add(remote.side.plain)
    remote.process()[0].objects._index.refresh()
    assert set(remote.kept()) & set(old) <= set(remote.listed())
    assert set(remote.listed()) <= set(remote.kept())


def test_copies_are_bounded(remote, monkeypatch):
    for _ in range(4):
        remote.add(remote.side.plain)
    sizes = [entry.size for entry in remote.side.backend.list(INDEX_PREFIX)]
    monkeypatch.setattr(segment_cache, "MAX_KEPT", sum(sizes) - 1)
    store, _ = remote.process()
    store.objects._index.refresh()
    assert 0 < len(remote.kept()) < 4
    for number in range(1, 5):
        assert read_model(store, f"models/{number}").files["a"][0] == noise(number, 2000)


@pytest.mark.parametrize("fault", ["a file", "no room", "not ours", "gone"])
def test_without_a_place_for_copies_everything_works(remote, monkeypatch, fault, caplog):
    if fault == "a file":
        remote.copies.parent.mkdir()
        remote.copies.write_bytes(b"in the way")
    elif fault == "no room":

        def full(descriptor, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(segment_cache.os, "write", full)
    elif fault == "not ours":
        opening = os.open

        def refuse(path, *rest, **options):
            if str(path).startswith(str(remote.copies)):
                raise PermissionError(13, "Permission denied")
            return opening(path, *rest, **options)

        monkeypatch.setattr(segment_cache.os, "open", refuse)
    for _ in range(4):
        remote.add(remote.side.plain)
    store, _ = remote.process()
    store.objects._index.refresh()
    if fault == "gone":
        shutil.rmtree(remote.copies)
    remote.add(store)
    assert len(caplog.records) == (fault != "gone"), "one warning, whatever the number of segments"
    for number in (1, 2):
        assert read_model(store, f"models/{number}").files["a"][0] == noise(number, 2000)
    if fault == "no room":
        assert remote.kept() == []


def test_they_may_be_deleted_while_they_are_in_use(remote):
    remote.add(remote.side.plain)
    store, _ = remote.process()
    store.objects._index.refresh()
    again, _ = remote.process()
    again.objects._index.refresh()
    for name in remote.kept():
        (remote.copies / name).unlink()
    for opened in (store, again):
        assert read_model(opened, "models/1").files["a"][0] == noise(1, 2000)


def test_a_local_store_is_mapped_where_it_lies(tmp_path):
    side = Side("local", tmp_path)
    side.add("models/a", model_of(a=noise(1, 2000)))
    index = Index(side.backend, copies=str(tmp_path / "copies"))
    index.refresh()
    assert not (tmp_path / "copies").exists()


def test_an_opened_store_keeps_them_in_the_users_cache(tmp_path, own_home):
    from fakes import syncer  # noqa: F401, PLC0415  # registers dirfs://

    with Store(tmp_path / "store", create=True) as store:
        store.add(write_model(model_of(a=noise(1, 2000)), tmp_path / "m"), ref="models/1")
    with Store(f"dirfs://{tmp_path}/store") as store:
        store.objects._index.refresh()
    [copy] = (own_home / "cache" / "casstore" / "stores").glob("*/index/*")
    assert copy.stat().st_mode & 0o077 == 0
