"""Which files count as unchanged by their stat identity (invariant 14)."""

import mmap
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fakes.fresh_files import trust_fresh_files
from fakes.model_files import onnx_bytes, onnx_external_bytes

from casstore import Store
from casstore.machine import unchanged
from casstore.machine.stat_identity import StatIdentity
from casstore.machine.unchanged import FLUSHED_AGE, MIN_AGE, UnchangedFiles, file_system_mark
from casstore.store.adding.sources import find_sources

SECOND = 1_000_000_000
NOW = time.time_ns()


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


def identity(path):
    return StatIdentity.of(os.stat(path))


def known(path, **options):
    return UnchangedFiles(**{"mark": lambda _: b"test", **options}).trusts(str(path), identity(path))


def stored(store, path):
    with store.open_file(store.add(path, ref="models/f").ref, path.name) as file:
        return file.read()


@pytest.mark.parametrize("file", ["/proc/self/status", "/proc/version", "/sys/class/net/lo/mtu"])
def test_file_systems_that_prove_nothing(file):
    assert file_system_mark(os.fsencode(file)) is None
    assert not UnchangedFiles(min_age=-(1 << 62)).trusts(file, identity(file))


def test_a_file_system_that_cannot_be_asked(tmp_path):
    assert file_system_mark(os.fsencode(tmp_path / "gone")) is None
    assert known(tmp_path, min_age=0)
    assert not known(tmp_path, min_age=0, mark=lambda _: None)


def test_each_mount_has_a_mark_of_its_own(tmp_path, monkeypatch):
    """Two images that are built reproducibly differ in their bytes only, and a kernel saw neither being made."""

    class EveryType(dict):
        def get(self, _):
            return "ext4"

    path = os.fsencode(tmp_path)
    monkeypatch.setattr(unchanged, "_LINUX_TYPES", EveryType())
    monkeypatch.setattr(unchanged, "_DARWIN_TYPES", ())
    for source, other in (("_mounted_device", "_mount_id"), ("_mount_id", "_mounted_device")):
        monkeypatch.setattr(unchanged, other, lambda *_: None)
        marks = []
        for number in (7, 8, None):
            monkeypatch.setattr(unchanged, source, lambda *_, number=number: number)
            marks.append(file_system_mark(path))
        if sys.platform == "linux":
            assert marks[2] is None not in marks[:2]
            assert marks[0] != marks[1]


def test_the_kernel_numbers_mounts(tmp_path):
    path = os.fsencode(tmp_path)
    assert file_system_mark(path) == file_system_mark(path)
    if sys.platform == "linux":
        assert unchanged._mounted_device(b"/proc", "ext4") is None
        assert unchanged._mount_id(b"/gone") is None
        assert unchanged._mount_id(b"/proc") == unchanged._mount_id(b"/proc/self/status")


@pytest.mark.parametrize("which", ["mtime", "ctime"])
@pytest.mark.parametrize(
    ("age", "trusted"), [(-SECOND, False), (0, False), (MIN_AGE - 1, False), (MIN_AGE, True)]
)
def test_how_old_a_file_must_be(tmp_path, which, age, trusted):
    times = {"mtime": NOW - 2 * MIN_AGE, "ctime": NOW - 2 * MIN_AGE, which: NOW - age}
    found = StatIdentity(1, 2, 3, times["mtime"], times["ctime"])
    asked = UnchangedFiles(now=NOW, mark=lambda _: b"test")
    assert asked.trusts(str(tmp_path), found) is trusted


def test_a_clock_or_a_file_from_the_future(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    assert known(path, min_age=0)
    assert not known(path, min_age=0, now=NOW - 3600 * SECOND)
    os.utime(path, (4_000_000_000, 4_000_000_000))
    assert not known(path, min_age=0)
    assert FLUSHED_AGE < MIN_AGE


def test_the_key_covers_the_place(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"x")
    os.link(tmp_path / "a" / "f", tmp_path / "a" / "g")
    (tmp_path / "link").symlink_to("a/f")
    (tmp_path / "folder").symlink_to("a")
    asked = UnchangedFiles(min_age=0, mark=lambda _: b"test")
    keys = {
        name: asked.key(str(tmp_path / name), identity(tmp_path / "a" / "f"))
        for name in ("a/f", "a/g", "link", "folder/f")
    }
    assert keys["a/f"] == keys["link"] == keys["folder/f"] != keys["a/g"]
    monkeypatch.chdir(tmp_path)
    found = identity("a/f")
    assert asked.key("a/f", found) == asked.key(b"a/f", found) == keys["a/f"]
    other = UnchangedFiles(min_age=0, mark=lambda _: b"another file system")
    assert other.key("a/f", found) not in {None, keys["a/f"]}
    rebooted = UnchangedFiles(min_age=0, mark=lambda _: b"test", boot=lambda: b"after a crash")
    assert rebooted.key("a/f", found) not in {None, keys["a/f"]}
    unsure = UnchangedFiles(min_age=0, mark=lambda _: b"test", boot=lambda: None)
    assert unsure.key("a/f", found) is None


def test_file_systems_are_asked_once_per_folder_in_each_call(tmp_path):
    asked = []

    def mark(path):
        asked.append(os.path.dirname(path))
        return b"test"

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in "1234":
            (tmp_path / folder / name).write_bytes(b"x")
    sources = find_sources(str(tmp_path))
    for calls in (2, 4):
        sources.stat_keys(UnchangedFiles(min_age=0, mark=mark))
        assert len(asked) == calls
    assert len(set(asked)) == 2


@pytest.mark.parametrize("operation", ["add", "content_id"])
def test_a_change_through_a_map_is_seen(store, tmp_path, operation):
    """A page that is dirty already changes without a trace, until what was remembered is written back first."""
    # The file system is asked for its real type: on one that is not trusted, the file is read for that reason.
    store.machine.unchanged_files = partial(UnchangedFiles, min_age=0)
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(1 << 20))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for value in (b"1", b"2", b"3"):
            mapped[:] = value * len(mapped)
            if operation == "add":
                assert stored(store, path) == value * len(mapped)
            else:
                expected = store.add(path, ref="models/f", stat_cache=False).model_id
                assert store.content_id(str(path)) == expected


def test_by_default_a_fresh_file_is_read(store, tmp_path):
    path = tmp_path / "f.bin"
    path.write_bytes(b"1" * 5000)
    assert stored(store, path) == b"1" * 5000
    status = os.stat(path)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:1] = b"2"
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert stored(store, path)[:1] == b"2"
    assert store.content_id(str(path)) == store.add(path, ref="models/f").model_id


def test_what_cannot_be_written_back_is_not_remembered(store, tmp_path, monkeypatch):
    trust_fresh_files(store)
    path = Path(tmp_path / "f")
    path.write_bytes(b"x")
    for module in ("blocks", "content"):
        monkeypatch.setattr(f"casstore.store.adding.{module}.flush", lambda _: False)
    store.add(path)
    store.content_id(str(path))
    key = find_sources(str(path)).stat_keys(store.machine.unchanged_files())[0]
    assert store.machine.known_files([key]) == [None]
    monkeypatch.undo()
    store.add(path)
    assert store.machine.known_files([key]) != [None]


def test_a_graph_that_may_have_changed_proves_nothing_of_its_tensors(store, tmp_path):
    """Weights that are known by their times are cut as the .onnx beside them says, which no time tells of here."""
    store.machine.unchanged_files = partial(
        UnchangedFiles, min_age=0, mark=lambda path: None if path.endswith(b".onnx") else b"test"
    )
    one, two = np.zeros(1 << 16, "f4"), np.ones(1 << 16, "f4")
    graphs = [
        onnx_bytes(tensors, external="w.bin") for tensors in ({"a": one, "b": two}, {"b": one, "a": two})
    ]
    model, weights = tmp_path / "model" / "m.onnx", tmp_path / "weights" / "w.bin"
    for path, data in ((model, graphs[0]), (weights, onnx_external_bytes({"a": one, "b": two}))):
        path.parent.mkdir()
        path.write_bytes(data)
    model.with_name("w.bin").symlink_to(weights)
    with open(model, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for graph, values in zip(graphs, ({"a": one, "b": two}, {"b": one, "a": two}), strict=True):
            mapped[:] = graph
            ref = store.add(model.parent, ref="models/m").ref
            for name, value in values.items():
                assert (store.read_tensor(ref, name, file="w.bin") == value).all()
