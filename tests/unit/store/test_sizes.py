"""Sizes are what was read, whatever stat says (invariant 14); and files that change while they are read."""

import os

import numpy as np
import pytest
from fakes.fresh_files import trust_fresh_files
from fakes.model_files import safetensors_bytes
from fakes.stores import assert_clean, noise

from casstore import ConflictError, Store
from casstore.machine.stat_identity import StatIdentity


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


def assert_reads_back(store, ref, name, data, tmp_path):
    model = store.get(ref, tmp_path / "out")
    (entry,) = [entry for entry in model.tree.files if entry.path == name]
    assert entry.size == len(data)
    assert (tmp_path / "out" / name).read_bytes() == data
    assert_clean(store)


@pytest.mark.parametrize("file", ["/proc/version", "/proc/filesystems", "/sys/class/net/lo/mtu"])
def test_files_of_the_kernel(store, tmp_path, file):
    with open(file, "rb") as opened:
        data = opened.read()
    assert os.stat(file).st_size != len(data)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "linked").symlink_to(file)
    result = store.add(folder, ref="models/m")
    assert result.bytes_total == len(data)
    assert store.content_id(str(folder)) == result.model_id
    assert store.add(folder, ref="models/m", stat_cache=False).model_id == result.model_id
    assert_reads_back(store, "models/m", "linked", data, tmp_path)


@pytest.mark.parametrize("stated", [0, 1, 100_000, 3_000_000, 20_000_000])
@pytest.mark.parametrize("size", [0, 70_000, 5_000_000])
def test_a_file_system_that_states_another_size(store, tmp_path, monkeypatch, size, stated):
    """As FUSE mounts do that unpack or convert what they show."""
    data = noise(1, size)
    path = tmp_path / "f.bin"
    path.write_bytes(data)
    real = StatIdentity.of
    trust_fresh_files(store)
    with monkeypatch.context() as patch:
        patch.setattr(
            StatIdentity,
            "of",
            lambda status: StatIdentity(*real(status).fields()[:2], stated, *real(status).fields()[3:]),
        )
        first = store.add(path, ref="models/m")
        assert store.content_id(str(path)) == first.model_id
        assert store.add(path, ref="models/m").model_id == first.model_id
    assert store.add(path, ref="models/m").model_id == first.model_id
    assert_reads_back(store, "models/m", "f.bin", data, tmp_path)


def test_tensors_beyond_the_end_are_none(store, tmp_path, monkeypatch):
    data = safetensors_bytes({"a": np.ones((300, 300)), "b": np.zeros((500, 300))})
    path = tmp_path / "f.safetensors"
    path.write_bytes(data[:-100_000])
    real = StatIdentity.of
    monkeypatch.setattr(
        StatIdentity,
        "of",
        lambda status: StatIdentity(*real(status).fields()[:2], len(data), *real(status).fields()[3:]),
    )
    store.add(path, ref="models/m")
    assert store.model("models/m").layout("f.safetensors").spans == ()
    assert_reads_back(store, "models/m", "f.safetensors", data[:-100_000], tmp_path)


@pytest.mark.parametrize("operation", ["add", "content_id"])
@pytest.mark.parametrize("change", ["cut", "grow"])
def test_a_file_that_changes_while_it_is_read(store, tmp_path, monkeypatch, operation, change):
    """A map of a file that is cut would end the process; one that grows for ever would never end."""
    path = tmp_path / "f.bin"
    path.write_bytes(noise(1, 9_000_000))
    real = os.preadv

    def preadv(descriptor, buffers, offset, *flags):
        count = real(descriptor, buffers, offset, *flags)
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
            if change == "cut":
                os.truncate(path, 100)
            else:
                with open(path, "ab") as file:
                    file.write(bytes(8_000_000))
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(ConflictError, match="changed while it was read"):
        store.add(path) if operation == "add" else store.content_id(str(path))
    monkeypatch.undo()
    assert not store.refs()
