"""Files that cannot be read, or change while they are read: refused by name, with nothing left behind."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from fakes.folders import Meanwhile, ordinary_user, write_tree
from fakes.model_files import safetensors_bytes
from fakes.stores import assert_nothing_added, noise

from casstore import (
    ConfigError,
    ConflictError,
    Store,
)
from casstore.errors import AccessDenied, BackendUnavailable

MIB = 1 << 20
LONG_AGO = 1_500_000_000

# ---- paths that cannot be read


@pytest.mark.parametrize("name", ["nothing", "nothing/below", "model/config.json/below", "model/nothing"])
def test_a_path_that_is_not_there(store, model, name):
    with pytest.raises(ConfigError, match=name):
        store.add(model.parent / name)
    assert_nothing_added(store)


def test_an_empty_path(store):
    with pytest.raises(ConfigError):
        store.add("")


def test_a_path_with_a_nul(store, model):
    with pytest.raises(ConfigError):
        store.add(f"{model}\0x")


def test_an_unreadable_file(open_folder):
    write_tree(open_folder / "model", {"a.bin": b"a", "secret.bin": b"s"})
    (open_folder / "model/secret.bin").chmod(0)
    store = Store("memory://unreadable-file", create=True)
    with ordinary_user(), pytest.raises(AccessDenied, match=r"secret\.bin cannot be read.*permissions"):
        store.add(open_folder / "model")
    assert store.refs() == {}


def test_an_unreadable_onnx_beside_a_file_that_it_describes(open_folder):
    write_tree(open_folder / "model", {"m.onnx": b"o", "weights.data": b"s"})
    (open_folder / "model/m.onnx").chmod(0)
    store = Store("memory://unreadable-onnx", create=True)
    with ordinary_user(), pytest.raises(AccessDenied, match=r"m\.onnx"):
        store.add(open_folder / "model")


def test_an_unreadable_folder(open_folder):
    write_tree(open_folder / "model", {"a.bin": b"a", "secret/b.bin": b"s"})
    (open_folder / "model/secret").chmod(0)
    store = Store("memory://unreadable-folder", create=True)
    try:
        with ordinary_user(), pytest.raises(AccessDenied, match=r"secret cannot be read.*permissions"):
            store.add(open_folder / "model")
        with ordinary_user(), pytest.raises(AccessDenied, match=r"secret/b\.bin cannot be read"):
            store.add(open_folder / "model/secret/b.bin")
    finally:
        (open_folder / "model/secret").chmod(0o755)
    assert store.refs() == {}


@pytest.mark.parametrize("call", ["pread", "preadv"])
def test_a_disk_that_cannot_read_a_file(store, tmp_path, monkeypatch, call):
    """pread is how headers are parsed, preadv how content is read."""
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes({"w": np.zeros(100, np.float32)}))

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(BackendUnavailable, match=r"m\.safetensors cannot be read: Input/output error"):
            store.add(tmp_path / "m.safetensors")
    assert_nothing_added(store)


# ---- files that change while they are read


def _append(path):
    with path.open("ab") as file:
        file.write(b"more")


def _truncate(path):
    os.truncate(path, 12 * MIB)


def _empty(path):
    os.truncate(path, 0)


def _rewrite_ahead(path):
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x" * 100)


def _rewrite_behind(path):
    with path.open("r+b") as file:
        file.write(b"x" * 100)


def _rewrite_and_restore_times(path):
    _rewrite_ahead(path)
    os.utime(path, (LONG_AGO, LONG_AGO))


def _replace(path):
    other = path.with_name("other")
    other.write_bytes(noise(8, path.stat().st_size))
    other.replace(path)


def _remove(path):
    path.unlink()


CHANGES = [
    _append,
    _truncate,
    _empty,
    _rewrite_ahead,
    _rewrite_behind,
    _rewrite_and_restore_times,
    _replace,
    _remove,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read(store, tmp_path, change):
    path = tmp_path / "big.bin"
    path.write_bytes(noise(7, 20 * MIB))
    os.utime(path, (LONG_AGO, LONG_AGO))
    callback = Meanwhile(1, lambda: change(path))
    with pytest.raises(ConflictError, match=r"big\.bin changed while it was read.*add it again"):
        store.add(path, callback=callback)
    assert callback.done
    assert_nothing_added(store)
    if path.exists():
        result = store.add(path)
        with store.open_file(result.ref, "big.bin") as file:
            assert file.read() == path.read_bytes()


def _to_pipe(path):
    path.unlink()
    os.mkfifo(path)


def _to_folder(path):
    path.unlink()
    path.mkdir()


def _to_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere2")
    path.with_name("elsewhere2").write_bytes(b"small")


@pytest.mark.parametrize(
    "change", [_append, _rewrite_behind, _replace, _remove, _to_pipe, _to_folder, _to_link]
)
@pytest.mark.timeout(60)
def test_a_file_that_changes_before_its_turn_comes(store, tmp_path, change):
    write_tree(tmp_path / "model", {"a-big.bin": noise(7, 12 * MIB), "later.bin": noise(7, 1000)})
    for path in (tmp_path / "model").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    callback = Meanwhile(1, lambda: change(tmp_path / "model/later.bin"))
    with pytest.raises(ConflictError, match=r"later\.bin (changed|disappeared) while"):
        store.add(tmp_path / "model", callback=callback)
    assert callback.done
    assert_nothing_added(store)


def test_an_interrupted_add_leaves_nothing(store, tmp_path):
    (tmp_path / "big.bin").write_bytes(noise(7, 12 * MIB))

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add(tmp_path / "big.bin", callback=Meanwhile(10 * MIB, interrupt))
    assert_nothing_added(store)
