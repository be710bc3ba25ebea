"""Everything that people hand over and that cannot be kept as it is: refused by name, with nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fakes.model_files import safetensors_bytes
from fakes.stores import assert_clean
from fsspec import Callback

import casstore
from casstore import (
    ConfigError,
    ConflictError,
    IntegrityError,
    PathNotFound,
    RefNotFound,
    Store,
    TensorNotFound,
)
from casstore.backend import LocalBackend
from casstore.backend.local.syscalls import SystemCalls
from casstore.digest import digest
from casstore.errors import AccessDenied, BackendError, BackendUnavailable, CasstoreError, UnsupportedVersion
from casstore.format import canonical, envelope
from casstore.format.manifest import TreeEntry, encode_tree, make_tree
from casstore.machine.state import MachineState
from casstore.ops.check import check
from casstore.store.checkout import checkout
from casstore.store.model_store import ModelStore

MIB = 1 << 20
NOBODY = 65534
LONG_AGO = 1_500_000_000


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    write_tree(folder, {"config.json": b'{"layers": 2}', "sub/weights.bin": noise(300_000)})
    return folder


def noise(size, seed=7):
    return np.random.default_rng(seed).bytes(size)


def write_tree(folder, contents):
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def tree_of(folder):
    """Every path below a folder: a file's bytes, a link's target, None for a directory."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


def assert_nothing_added(store):
    assert store.refs() == {}
    assert list(store.backend.list_temporaries()) == []
    with Store(store.backend.url) as again:
        report = check(again, read_data=True)
        assert report.ok, report.problems
        assert report.records == 0


@contextlib.contextmanager
def ordinary_user():
    """Root may read everything, so whoever tests as root becomes someone else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that an ordinary user can reach, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="casstore-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


class DuringAdd(Callback):
    """Runs an action once `after` bytes were read."""

    def __init__(self, after, action):
        super().__init__()
        self._left = after
        self._action = action
        self.done = False

    def relative_update(self, inc=1):
        self._left -= inc
        if self._left <= 0 and not self.done:
            self.done = True
            self._action()


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
    other.write_bytes(noise(path.stat().st_size, seed=8))
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
    path.write_bytes(noise(20 * MIB))
    os.utime(path, (LONG_AGO, LONG_AGO))
    callback = DuringAdd(1, lambda: change(path))
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
    write_tree(tmp_path / "model", {"a-big.bin": noise(12 * MIB), "later.bin": noise(1000)})
    for path in (tmp_path / "model").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    callback = DuringAdd(1, lambda: change(tmp_path / "model/later.bin"))
    with pytest.raises(ConflictError, match=r"later\.bin (changed|disappeared) while"):
        store.add(tmp_path / "model", callback=callback)
    assert callback.done
    assert_nothing_added(store)


def test_an_interrupted_add_leaves_nothing(store, tmp_path):
    (tmp_path / "big.bin").write_bytes(noise(12 * MIB))

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add(tmp_path / "big.bin", callback=DuringAdd(10 * MIB, interrupt))
    assert_nothing_added(store)


# ---- stores that are none


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no directory.*create=True"):
        Store(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_is_no_store(tmp_path):
    write_tree(tmp_path / "folder", {"notes.txt": b"mine"})
    before = tree_of(tmp_path / "folder")
    with pytest.raises(ConfigError, match=r"folder is not a casstore store"):
        Store(tmp_path / "folder")
    with pytest.raises(ConfigError, match=r"folder is not empty"):
        Store(tmp_path / "folder", create=True)
    assert tree_of(tmp_path / "folder") == before


@pytest.mark.parametrize("create", [False, True])
def test_a_file_is_no_store(tmp_path, create):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises((ConfigError, BackendError), match="file"):
        Store(tmp_path / "file", create=create)


def test_creating_a_store_again_opens_it(tmp_path):
    first = Store(tmp_path / "s", create=True).store_id
    assert Store(tmp_path / "s", create=True).store_id == first


def _format(**changes):
    body = {"type": "store", "version": 1, "hash": "blake3-256", "id": bytes(16), "requires": []}
    return envelope.seal(b"casstore", canonical.encode({**body, **changes}))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (_format(version=2), UnsupportedVersion, "version 2; upgrade"),
        (_format(requires=["encryption"]), UnsupportedVersion, "requires encryption; upgrade"),
        (_format(hash="sha3-256"), UnsupportedVersion, "sha3-256; upgrade"),
        (_format(version=0), IntegrityError, "version 0"),
        (_format(id=b"short"), IntegrityError, "id"),
        (_format(type="record"), IntegrityError, "store"),
        (_format()[:-1], IntegrityError, "format"),
        (_format()[:5], IntegrityError, "format"),
        (b"", IntegrityError, "format"),
        (b"a format of something else" * 4, IntegrityError, "format"),
    ],
)
def test_a_format_file_that_is_wrong(tmp_path, data, error, message):
    write_tree(tmp_path / "s", {"format": data})
    for create in (False, True):
        with pytest.raises(error, match=message) as caught:
            Store(tmp_path / "s", create=create)
        assert isinstance(caught.value, UnsupportedVersion) == (error is UnsupportedVersion)
    assert (tmp_path / "s/format").read_bytes() == data


@pytest.mark.parametrize(
    "arguments",
    [{"durability": "some"}, {"shared": "world"}, {"read_only": True, "create": True}, {"key": "x"}],
)
def test_settings_that_make_no_sense(tmp_path, arguments):
    with pytest.raises(ConfigError):
        Store(tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


# ---- refs


INVALID_NAMES = [
    "",
    "models",
    "models/",
    "models//x",
    "models/../x",
    "models/./x",
    "/models/x",
    "models/x/",
    "other/x",
    "MODELS/x",
    "models/a@1",
    "models/a\nb",
    "models/a\0",
    "models/a\x85",
    "models/" + "x" * 201,
    "models/" + "é" * 40,
    "models/\udcff",
]


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_an_invalid_ref_name_is_refused_before_anything_is_read(store, model, name):
    reached = []
    with pytest.raises(ConfigError):
        store.add(model, ref=name, callback=DuringAdd(1, lambda: reached.append(1)))
    assert not reached
    with pytest.raises(ConfigError):
        store.rm(name)
    for use in (store.model, store.resolve):
        with pytest.raises(RefNotFound):
            use(name)
    assert_nothing_added(store)


GOOD_NAMES = [
    "run 2024-05-05T12:00:00",
    "con",
    "con.v1",
    "AUX.x/nul",
    "a.",
    "a ",
    ".hidden",
    "a\\b",
    'what? <"a|b*">',
    "100%41",
    "x=3d",
    "\u65e5\u672c",
    "x" * 200,
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_ref_names_that_are_safe_once_they_are_escaped(store, model, tmp_path, name):
    """What the key is made of is safe everywhere, whatever the name holds."""
    ref = f"models/{name}"
    added = store.add(model, ref=ref)
    assert store.tag(name, ref) == f"tags/{name}"
    with Store(store.backend.url) as again:
        assert set(again.refs()) == {ref, f"tags/{name}"}
        assert again.resolve(name).ref == ref
        assert [row.name for row in again.find(target=added.model_id)] == [f"tags/{name}", ref]
        again.get(ref, tmp_path / "out")
        again.rm(ref)
    assert list(store.refs()) == [f"tags/{name}"]
    assert_clean(store)


@pytest.mark.parametrize("name", ["", "a@b", "a/../b", "a\n", "a\0", "\udcff"])
def test_an_invalid_tag_name(store, model, name):
    store.add(model, ref="models/m")
    with pytest.raises(ConfigError):
        store.tag(name, "models/m")
    assert list(store.refs()) == ["models/m"]


@pytest.mark.parametrize("name", ["models/no", "no", "tags/no", "ab", "abcd", "0" * 64, "f" * 63])
def test_a_ref_that_is_not_there(store, model, tmp_path, name):
    result = store.add(model, ref="models/m")
    assert not result.model_id.startswith("abcd")
    uses = [
        lambda: store.model(name),
        lambda: store.get(name, tmp_path / "out"),
        lambda: store.open_file(name, "config.json"),
        lambda: store.read_tensor(name, "w", file="config.json"),
        lambda: store.tag("t", name),
        lambda: store.add(model, base=name),
    ]
    for use in uses:
        with pytest.raises(RefNotFound, match=name):
            use()
    assert not (tmp_path / "out").exists()
    assert list(store.refs()) == ["models/m"]


def test_deleting_a_ref_that_is_not_there(store, model):
    with pytest.raises(RefNotFound, match="models/no"):
        store.rm("models/no")
    store.add(model, ref="models/m")
    store.rm("models/m")
    for use in (store.rm, store.model):
        with pytest.raises(RefNotFound, match="models/m"):
            use("models/m")


def test_a_file_or_tensor_that_a_model_lacks(store, tmp_path):
    data = safetensors_bytes({"w": np.zeros(100, np.float32)})
    write_tree(tmp_path / "m", {"m.safetensors": data, "notes.txt": b"text"})
    store.add(tmp_path / "m", ref="models/m")
    with pytest.raises(PathNotFound, match=r"no\.bin.*m\.safetensors"):
        store.open_file("models/m", "no.bin")
    with pytest.raises(TensorNotFound, match=r"no tensor 'v'.*w"):
        store.read_tensor("models/m", "v", file="m.safetensors")
    with pytest.raises(TensorNotFound, match=r"notes\.txt has no tensors"):
        store.read_tensor("models/m", "w", file="notes.txt")


def _model_id(path, data):
    return digest(encode_tree(make_tree([TreeEntry(path, len(data), digest(data))]))).hex()


def test_an_ambiguous_prefix(store, tmp_path):
    seen = {}
    for number in itertools.count():
        data = b"%d" % number
        model_id = _model_id("f", data)
        if model_id[:4] in seen:
            break
        seen[model_id[:4]] = data
    for folder, content in (("a", seen[model_id[:4]]), ("b", data)):
        write_tree(tmp_path / folder, {"f": content})
    ids = [store.add(tmp_path / "a", ref="models/a").model_id, store.add(tmp_path / "b").model_id]
    assert ids[0][:4] == ids[1][:4] == model_id[:4]
    assert ids[1] == model_id
    with pytest.raises(RefNotFound, match=rf"'{model_id[:4]}' is ambiguous.*2 model ids"):
        store.resolve(model_id[:4])
    longer = next(at for at in range(64) if ids[0][at] != ids[1][at]) + 1
    for found in ids:
        assert store.resolve(found[:longer]).model_id == found
        assert store.resolve(found).model_id == found
    store.tag("again", "models/a")
    assert store.resolve(ids[0][:longer]).model_id == ids[0]


def test_a_model_id_never_means_another_model(store, tmp_path):
    """A ref may be called anything, also like the id of a model that it does not name."""
    for folder in ("a", "b"):
        write_tree(tmp_path / folder, {"f": folder.encode()})
    first = store.add(tmp_path / "a", ref="models/a").model_id
    store.add(tmp_path / "b", ref=f"models/{first}")
    assert store.resolve(first).model_id == first
    with store.open_file(first, "f") as file:
        assert file.read() == b"a"


# ---- metadata


@pytest.mark.parametrize(
    "metadata",
    [
        {1: "x"},
        {"x": object()},
        {"x": 1 << 70},
        {"x": {1, 2}},
        {"x": "\udcff"},
        {"x": np.float32(1)},
        {"a": {"b": {3: 4}}},
    ],
)
def test_metadata_that_cannot_be_kept_is_refused_before_anything_is_read(store, model, metadata):
    reached = []
    with pytest.raises(ConfigError):
        store.add(model, metadata=metadata, callback=DuringAdd(1, lambda: reached.append(1)))
    assert not reached
    assert_nothing_added(store)


def test_metadata_deeper_than_the_format_allows(store, model):
    deep = {}
    for _ in range(40):
        deep = {"x": deep}
    with pytest.raises(ConfigError, match="deep"):
        store.add(model, metadata=deep)
    assert_nothing_added(store)


def test_metadata_as_pipelines_have_it(store, model):
    """Tuples, and losses that are not numbers, are everyday values."""
    metadata = {"loss": math.nan, "best": math.inf, "shape": (2, 3), "steps": [{"lr": 0.1}], "none": None}
    store.add(model, ref="models/m", metadata=metadata)
    kept = store.refs()["models/m"].metadata
    assert math.isnan(kept.pop("loss"))
    assert kept == {"best": math.inf, "shape": [2, 3], "steps": [{"lr": 0.1}], "none": None}
    assert store.tag("t", "models/m") == "tags/t"
    store.add(model, ref="models/m", metadata=metadata)
    assert math.isnan(store.refs()["models/m"].metadata["loss"])
    assert len(store.history("models/m")) == 1
    for number, flag in enumerate((1, True, 1.0), start=2):
        store.add(model, ref="models/m", metadata={"flag": flag})
        assert (len(store.history("models/m")), type(store.record("models/m").metadata["flag"])) == (
            number,
            type(flag),
        )


# ---- links


def test_a_hugging_face_snapshot_is_kept_as_its_files(store, tmp_path):
    cache = tmp_path / "models--org--name"
    weights = noise(200_000)
    write_tree(cache, {"blobs/aaa": b"{}", "blobs/bbb": weights, "refs/main": b"123"})
    for name, blob in {"config.json": "../../blobs/aaa", "onnx/model.bin": "../../../blobs/bbb"}.items():
        link = cache / "snapshots/123" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    result = store.add(cache / "snapshots/123", ref="models/hf")
    assert (result.files, result.bytes_total) == (2, 200_002)
    store.get("models/hf", tmp_path / "out")
    assert tree_of(tmp_path / "out") == {"config.json": b"{}", "onnx": None, "onnx/model.bin": weights}
    assert not (tmp_path / "out/config.json").is_symlink()
    plain = tmp_path / "plain"
    write_tree(plain, {"config.json": b"{}", "onnx/model.bin": weights})
    assert store.add(plain).model_id == result.model_id


def test_links_are_refused_where_they_are_not_followed(store, tmp_path):
    write_tree(tmp_path / "m", {"real.bin": b"x", "folder/y.bin": b"y"})
    store.add(tmp_path / "m", follow_links=False, ref="models/no-links")
    store.rm("models/no-links")
    (tmp_path / "top").symlink_to("m")
    (tmp_path / "file").symlink_to("m/real.bin")
    for name in ("top", "file"):
        with pytest.raises(ConfigError, match=rf"{name} is a link, and following links is switched off"):
            store.add(tmp_path / name, follow_links=False)
    for name, target in {"to-file": "real.bin", "to-folder": "folder", "broken": "nothing"}.items():
        link = tmp_path / "m" / name
        link.symlink_to(target)
        with pytest.raises(ConfigError, match=rf"{name} is a link, and following links is switched off"):
            store.add(tmp_path / "m", follow_links=False)
        link.unlink()
    assert store.refs() == {}


@pytest.mark.parametrize("target", ["nothing", "/nothing/at/all", "../gone"])
def test_a_broken_link_is_refused_by_name(store, model, target):
    (model / "sub/broken").symlink_to(target)
    with pytest.raises(ConfigError, match=rf"sub/broken is a link to {target}, which does not exist"):
        store.add(model)
    with pytest.raises(ConfigError, match="broken"):
        store.add(model / "sub/broken")
    assert_nothing_added(store)


@pytest.mark.parametrize("target", ["..", ".", "../..", "ABSOLUTE"])
def test_a_folder_that_links_to_one_above_it(store, model, target):
    (model / "sub/loop").symlink_to(model if target == "ABSOLUTE" else target)
    with pytest.raises(ConfigError, match=r"loop.*links to a folder that it lies in|is the store itself"):
        store.add(model)
    assert_nothing_added(store)


def test_a_cycle_through_two_links(store, tmp_path):
    for here, there in (("a", "b"), ("b", "a")):
        (tmp_path / "m" / here).mkdir(parents=True)
        (tmp_path / "m" / here / "to").symlink_to(f"../{there}")
    with pytest.raises(ConfigError, match=r"m/a/to/to links to a folder that it lies in"):
        store.add(tmp_path / "m")
    assert_nothing_added(store)


@pytest.mark.parametrize("links", [{"self": "self"}, {"ping": "pong", "pong": "ping"}])
def test_a_link_to_itself(store, model, links):
    for name, target in links.items():
        (model / name).symlink_to(target)
    with pytest.raises(ConfigError, match=min(links)):
        store.add(model)
    with pytest.raises(ConfigError, match=min(links)):
        store.add(model / min(links))
    assert_nothing_added(store)


def test_two_links_to_one_folder_are_no_cycle(store, tmp_path):
    write_tree(tmp_path / "m", {"shared/x.bin": b"x"})
    for name in ("one", "two"):
        (tmp_path / "m" / name).symlink_to("shared")
    store.add(tmp_path / "m", ref="models/m")
    paths = [entry.path for entry in store.model("models/m").tree.entries]
    assert paths == ["one/x.bin", "shared/x.bin", "two/x.bin"]


# ---- what is no file, and names that no system should have to bear


def test_pipes_sockets_and_devices_are_refused_by_name(store, model, monkeypatch):
    monkeypatch.chdir(model)  # a socket's whole path has to fit into 107 bytes
    os.mkfifo("pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    Path("device").symlink_to(os.devnull)
    with listener:
        for name in ("pipe", "socket", "device"):
            for path in (Path(), Path(name)):
                others = [other for other in ("pipe", "socket", "device") if other != name]
                for other in others:
                    Path(other).rename(f"../{other}")
                with pytest.raises(ConfigError, match=rf"{name} is neither a file nor a folder"):
                    store.add(path)
                for other in others:
                    Path(f"../{other}").rename(other)
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        store.add(os.devnull)
    assert_nothing_added(store)


@pytest.mark.parametrize("name", [b"bad-\xff.bin", b"bad-\xc3\x28", b"bad-\xed\xa0\x80"])
def test_names_that_are_not_utf8_are_refused_by_name(store, model, name):
    for path in (os.fsencode(model) + b"/" + name, os.fsencode(model) + b"/sub/" + name):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        with pytest.raises(ConfigError, match=r"bad-.*not valid UTF-8"):
            store.add(model)
        with pytest.raises(ConfigError, match=r"bad-.*not valid UTF-8"):
            store.add(os.fsdecode(path))
        os.unlink(path)
        os.mkdir(path)
        with pytest.raises(ConfigError, match=r"bad-.*not valid UTF-8"):
            store.add(model)
        os.rmdir(path)
    assert_nothing_added(store)


ODD_NAMES = [
    "a:b",
    "a\\b",
    "what?",
    "a*",
    "a|b",
    "<a>",
    'a"b',
    "a\nb",
    "a\x7f",
    "a\x85",
    "con",
    "NUL.txt",
    "com1.bin",
    "COM¹",
    "aux .txt",
    "dot.",
    "space ",
    "...",
    "x" * 255,
    "é" * 127,
]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("place", ["file", "folder", "empty folder"])
def test_names_that_some_systems_do_not_take_are_kept(store, model, tmp_path, name, place):
    if place == "file":
        (model / name).write_bytes(b"x")
    else:
        (model / name).mkdir()
    if place == "folder":
        (model / name / "inside").write_bytes(b"x")
    store.add(model, ref="models/odd")
    store.get("models/odd", tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(model)
    assert_clean(store)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("readme", "README"),
        ("sub2/x", "Sub2/y"),
        ("straße", "STRASSE"),
        ("e\u0301", "\u00e9"),
        ("Ünder/x", "u\u0308nder"),
    ],
)
def test_names_that_meet_on_other_systems_are_kept(store, model, tmp_path, one, other):
    write_tree(model, {one: b"1", other: b"2"})
    store.add(model, ref="models/alike")
    store.get("models/alike", tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(model)
    assert_clean(store)


@pytest.mark.parametrize(("name", "depth"), [("d", 1100), ("d" * 200, 21), ("é" * 100, 60)])
def test_a_very_deep_folder(store, tmp_path, monkeypatch, name, depth):
    """Deeper than Python calls, and longer than a path that the system takes: kept whole, and written again."""
    top = tmp_path / "deep"
    top.mkdir()
    monkeypatch.chdir(top)
    for _ in range(depth):
        os.mkdir(name)
        os.chdir(name)
    Path("f").write_bytes(b"bottom")
    os.mkdir("hollow")
    os.symlink("f", "link")
    os.chdir(tmp_path)
    try:
        result = store.add(top)
        deepest = f"{name}/" * depth
        assert [file.path for file in store.model(result.ref).tree.files] == [
            f"{deepest}f",
            f"{deepest}link",
        ]
        assert store.model(result.ref).tree.empty == (f"{deepest}hollow",)
        assert store.content_id(str(top)) == result.model_id
        store.get(result.ref, tmp_path / "out")
        assert store.content_id(str(tmp_path / "out")) == result.model_id
        os.chdir(top)
        for _ in range(depth):
            os.chdir(name)
        Path("f").unlink()
        os.chdir(tmp_path)
        with pytest.raises(ConfigError, match="link to f, which does not exist"):
            store.add(top)
    finally:
        for folder in ("deep", "out"):  # deeper than shutil's recursion
            subprocess.run(["rm", "-rf", tmp_path / folder], check=True)


def test_broken_model_files_are_kept_as_plain_bytes(store, tmp_path):
    valid = safetensors_bytes({"w": np.arange(50_000, dtype=np.float32)})
    contents = {
        "cut.safetensors": valid[:-1],
        "head.safetensors": valid[:20],
        "huge.safetensors": b"\xff" * 8 + valid[8:],
        "a.gguf": b"GGUF\x03\0\0\0" + b"\xff" * 64,
        "b.npy": b"\x93NUMPY\x01\0\xff\xff{'descr'",
        "c.pt": b"PK\x03\x04" + b"\0" * 100 + b"PK\x05\x06" + b"\xff" * 18,
        "d.onnx": b"\x08\x0a\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        "e.onnx": b"",
        "f.pt": b"\x80\x02cposix\nsystem\n(X\x04\0\0\0falsetR.",
    }
    write_tree(tmp_path / "m", contents)
    store.add(tmp_path / "m", ref="models/m")
    store.get("models/m", tmp_path / "out")
    assert tree_of(tmp_path / "out") == contents
    assert all(not layout.spans for layout in store.model("models/m").layouts)


# ---- empty things, and the executable bit


def test_empty_files_and_folders_and_the_executable_bit_are_kept(store, tmp_path):
    write_tree(
        tmp_path / "m", {"empty.bin": b"", "run.sh": b"#!/bin/sh\n", "deep/er/empty": b"", "zero.sh": b""}
    )
    for folder in ("hollow", "outer/inner", "deep/hole"):
        (tmp_path / "m" / folder).mkdir(parents=True)
    for name in ("run.sh", "zero.sh"):
        (tmp_path / "m" / name).chmod(0o755)
    result = store.add(tmp_path / "m", ref="models/m")
    assert (result.files, result.bytes_total) == (4, 10)
    store.get("models/m", tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "m")
    for name, executable in {
        "empty.bin": False,
        "run.sh": True,
        "deep/er/empty": False,
        "zero.sh": True,
    }.items():
        assert bool((tmp_path / "out" / name).stat().st_mode & stat.S_IXUSR) == executable
    assert store.add(tmp_path / "out").model_id == result.model_id
    (tmp_path / "out/run.sh").chmod(0o644)
    assert store.add(tmp_path / "out").model_id == result.model_id
    with store.open_file("models/m", "empty.bin") as file:
        assert file.read() == b""
    report = check(store, read_data=True)
    assert report.ok, report.problems


@pytest.mark.parametrize("force", [False, True])
def test_an_empty_model(store, tmp_path, force):
    (tmp_path / "m").mkdir()
    result = store.add(tmp_path / "m", ref="models/m")
    assert (result.files, result.bytes_total, result.chunks) == (0, 0, 0)
    store.get("models/m", tmp_path / "out", force=force)
    assert tree_of(tmp_path / "out") == {}
    assert (tmp_path / "out").is_dir()


def test_one_file_is_a_model(store, tmp_path):
    (tmp_path / "one.bin").write_bytes(b"alone")
    (tmp_path / "link.bin").symlink_to("one.bin")
    store.add(tmp_path / "one.bin", ref="models/one")
    store.add(tmp_path / "link.bin", ref="models/link")
    store.get("models/one", tmp_path / "out1")
    store.get("models/link", tmp_path / "out2")
    assert tree_of(tmp_path / "out1") == {"one.bin": b"alone"}
    assert tree_of(tmp_path / "out2") == {"link.bin": b"alone"}


# ---- the store inside what is added


def test_a_folder_that_holds_the_store_is_refused(store, tmp_path):
    write_tree(tmp_path, {"model.bin": b"x"})
    store_path = Path(store.backend.local_path("format")).parent
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/linked").symlink_to(store_path)
    for path in (tmp_path, store_path, tmp_path / "elsewhere"):
        with pytest.raises(ConfigError, match="is the store itself"):
            store.add(path)
    assert_nothing_added(store)


def test_a_store_opened_through_a_link_knows_itself(store, tmp_path):
    (tmp_path / "alias").symlink_to(Path(store.backend.local_path("format")).parent)
    write_tree(tmp_path, {"model.bin": b"x"})
    with Store(tmp_path / "alias") as alias, pytest.raises(ConfigError, match="is the store itself"):
        alias.add(tmp_path)


# ---- destinations


@pytest.fixture
def kept(store, model):
    return store.add(model, ref="models/m")


@pytest.mark.parametrize("force", [False, True])
def test_a_destination_that_is_a_file(store, kept, tmp_path, force):
    (tmp_path / "out").write_bytes(b"mine")
    for place in ("out", "out/below", "out/below/more"):
        with pytest.raises((ConfigError, BackendError), match="out"):
            store.get("models/m", tmp_path / place, force=force)
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_destination_that_is_a_broken_link(store, kept, tmp_path, force):
    (tmp_path / "out").symlink_to("nothing")
    with pytest.raises(ConfigError, match="out is a broken link"):
        store.get("models/m", tmp_path / "out", force=force)
    assert os.readlink(tmp_path / "out") == "nothing"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("spelling", ["new", "new/", "new/.", "deep/er/new", "./new"])
@pytest.mark.usefixtures("kept")
def test_new_destinations_however_they_are_spelled(store, model, tmp_path, monkeypatch, spelling):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    store.get("models/m", spelling)
    assert tree_of(tmp_path / "work" / spelling) == tree_of(model)
    assert len(list((tmp_path / "work").iterdir())) == 1


def test_many_small_files_need_few_descriptors(store, tmp_path, monkeypatch):
    """With as many workers as a large machine has, and the 256 descriptors that some systems allow."""
    monkeypatch.setattr(checkout, "worker_count", lambda: 16)
    contents = {f"{number % 7}/{number}": b"%d" % number for number in range(700)}
    write_tree(tmp_path / "m", contents)
    store.add(tmp_path / "m", ref="models/m")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        store.get("models/m", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {name: data for name, data in tree_of(tmp_path / "out").items() if data is not None} == contents


def test_an_empty_destination_and_a_link_to_one(store, kept, model, tmp_path):
    for name in ("empty", "behind"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("behind")
    for name in ("empty", "link"):
        store.get("models/m", tmp_path / name)
        assert tree_of(tmp_path / name) == tree_of(model)
    assert (tmp_path / "link").is_symlink()


def test_a_destination_that_is_not_empty(store, kept, model, tmp_path):
    write_tree(tmp_path / "out", {"mine.txt": b"mine", "config.json": b"old", "sub/mine.txt": b"too"})
    before = tree_of(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"out is not empty.*--force"):
        store.get("models/m", tmp_path / "out")
    assert tree_of(tmp_path / "out") == before
    store.get("models/m", tmp_path / "out", force=True)
    mine = {"mine.txt": b"mine", "sub/mine.txt": b"too"}
    assert tree_of(tmp_path / "out") == {**tree_of(model), **mine}


def test_force_replaces_a_name_and_not_the_file_behind_it(store, kept, model, tmp_path):
    """A hard link elsewhere, and a file that may not be written, keep their bytes."""
    write_tree(tmp_path, {"precious": b"precious"})
    (tmp_path / "out").mkdir()
    os.link(tmp_path / "precious", tmp_path / "out/config.json")
    (tmp_path / "precious").chmod(0o400)
    store.get("models/m", tmp_path / "out", force=True)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert tree_of(tmp_path / "out") == tree_of(model)


def _folder(path):
    path.mkdir(parents=True)
    (path / "mine").write_bytes(b"mine")


def _link_to_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("../precious")


def _link_to_folder(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("../precious-folder")


def _broken_link(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("../made-by-mistake")


def _pipe(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def _file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")


IN_THE_WAY = [
    *[
        ("config.json", obstacle)
        for obstacle in (_folder, _link_to_file, _link_to_folder, _broken_link, _pipe)
    ],
    *[("sub", obstacle) for obstacle in (_file, _link_to_file, _link_to_folder, _broken_link, _pipe)],
    *[("sub/weights.bin", obstacle) for obstacle in (_folder, _link_to_file, _broken_link)],
]


@pytest.mark.parametrize(("name", "obstacle"), IN_THE_WAY)
@pytest.mark.timeout(60)
def test_force_never_replaces_or_follows_what_is_no_file(store, kept, tmp_path, name, obstacle):
    write_tree(tmp_path, {"precious": b"p", "precious-folder/weights.bin": b"q", "out/mine.txt": b"mine"})
    obstacle(tmp_path / "out" / name)

    def state():
        listed = {str(p): p.lstat() for p in tmp_path.joinpath("out").rglob("*")}
        return {path: (s.st_ino, s.st_mode, s.st_size) for path, s in listed.items() if "config" not in path}

    before = state()
    with pytest.raises(ConfigError, match=rf"{name} is in the way in .*out.*Move it"):
        store.get("models/m", tmp_path / "out", force=True)
    after = state()
    assert {path: after.get(path) for path in before} == before
    assert set(after) - set(before) <= {str(tmp_path / "out/sub")}
    assert (tmp_path / "precious").read_bytes() == b"p"
    assert tree_of(tmp_path / "precious-folder") == {"weights.bin": b"q"}
    assert not (tmp_path / "made-by-mistake").exists()


@pytest.fixture
def damaged(store, tmp_path):
    """A model whose last file cannot be read, in a store of its own."""
    big = noise(3 * MIB, seed=5)
    contents = {"a.bin": b"first", "deep/er/b.bin": b"second", "new/c.bin": noise(9 * MIB), "z.bin": big}
    write_tree(tmp_path / "damaged", contents)
    (tmp_path / "damaged/hollow").mkdir()
    store.add(tmp_path / "damaged", ref="models/damaged")
    for entry in store.backend.list("packs/"):
        path = Path(store.backend.local_path(entry.key))
        data = bytearray(path.read_bytes())
        at = data.find(big[-64:])
        if at >= 0:
            data[at] ^= 1
            path.chmod(0o600)
            path.write_bytes(data)
            return contents
    raise AssertionError("the noise is not where it must be")


def test_a_failing_checkout_into_a_new_folder_leaves_nothing(store, damaged, tmp_path):
    (tmp_path / "work").mkdir()
    with pytest.raises(IntegrityError, match="packs/"):
        store.get("models/damaged", tmp_path / "work/out")
    assert tree_of(tmp_path / "work") == {}


def test_a_failing_checkout_into_an_empty_folder_leaves_it_empty(store, damaged, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(IntegrityError, match="packs/"):
        store.get("models/damaged", tmp_path / "out")
    assert tree_of(tmp_path / "out") == {}
    assert (tmp_path / "out").is_dir()


def test_a_failing_checkout_with_force_removes_only_what_it_made(store, damaged, tmp_path):
    mine = {"mine.txt": b"mine", "a.bin": b"old", "deep/mine.txt": b"mine", "z.bin": b"old z"}
    write_tree(tmp_path / "out", mine)
    with pytest.raises(IntegrityError, match="packs/"):
        store.get("models/damaged", tmp_path / "out", force=True)
    left = tree_of(tmp_path / "out")
    # A file that was replaced holds verified bytes; a name that was there is there.
    assert left.pop("a.bin") in (b"old", damaged["a.bin"])
    assert left == {"mine.txt": b"mine", "deep": None, "deep/mine.txt": b"mine", "z.bin": b"old z"}


def test_a_failing_checkout_keeps_what_others_put_into_its_folders(store, damaged, tmp_path):
    def intrude():
        (tmp_path / "out/new/theirs.txt").write_bytes(b"theirs")

    (tmp_path / "out").mkdir()
    callback = DuringAdd(9 * MIB, intrude)
    with pytest.raises(IntegrityError):
        store.get("models/damaged", tmp_path / "out", callback=callback)
    assert callback.done
    assert tree_of(tmp_path / "out") == {"new": None, "new/theirs.txt": b"theirs"}


def test_a_failing_checkout_removes_nothing_through_a_link(store, damaged, tmp_path):
    """Someone moves a folder away and puts a link there: what lies behind the link was never ours."""
    write_tree(tmp_path / "precious", {"er/b.bin": b"precious", "b.bin": b"precious", "c.bin": b"precious"})
    before = tree_of(tmp_path / "precious")

    def swap():
        for name in ("deep", "new"):
            (tmp_path / "out" / name).rename(tmp_path / f"moved-{name}")
            (tmp_path / "out" / name).symlink_to(tmp_path / "precious")

    (tmp_path / "out").mkdir()
    callback = DuringAdd(9 * MIB, swap)
    with pytest.raises((IntegrityError, ConfigError)):
        store.get("models/damaged", tmp_path / "out", callback=callback)
    assert callback.done
    assert tree_of(tmp_path / "precious") == before


def test_a_destination_that_someone_else_fills_meanwhile(store, damaged, tmp_path):
    write_tree(tmp_path / "m", {"f.bin": noise(10 * MIB)})
    store.add(tmp_path / "m", ref="models/m")
    callback = DuringAdd(1, lambda: write_tree(tmp_path / "work/out", {"theirs": b"theirs"}))
    with pytest.raises(ConflictError, match="out was made by someone else meanwhile"):
        store.get("models/m", tmp_path / "work/out", callback=callback)
    assert tree_of(tmp_path / "work") == {"out": None, "out/theirs": b"theirs"}


def test_a_destination_that_may_not_be_written(open_folder):
    store = Store("memory://no-destination", create=True)
    write_tree(open_folder / "m", {"f": b"x"})
    store.add(open_folder / "m", ref="models/m")
    (open_folder / "empty").mkdir(mode=0o555)
    open_folder.chmod(0o555)
    try:
        for place in ("new", "empty", "new/er"):
            with ordinary_user(), pytest.raises(AccessDenied, match="Permission denied"):
                store.get("models/m", open_folder / place)
    finally:
        open_folder.chmod(0o755)
    assert tree_of(open_folder) == {"m": None, "m/f": b"x", "empty": None}


@pytest.mark.parametrize("destination", ["", "a\0b"])
def test_a_destination_that_is_no_path(store, kept, tmp_path, monkeypatch, destination):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConfigError, match="not a path"):
        store.get("models/m", destination)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# ---- full and read-only disks


LIMITED = """
import resource, sys, traceback
import casstore
store = casstore.Store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
for work in (lambda: store.add(sys.argv[2], ref="models/big"), lambda: store.get("models/m", sys.argv[3])):
    try:
        work()
    except casstore.BackendError as error:
        print(type(error).__name__, error)
    else:
        print("done")
"""


def test_files_that_may_not_grow_any_more(store, tmp_path):
    """A limit on file sizes stops writes half-way, like a disk that is full."""
    write_tree(tmp_path / "big", {"w.bin": noise(3 * MIB)})
    write_tree(tmp_path / "m", {"w.bin": noise(3 * MIB, seed=9), "small": b"x"})
    store.add(tmp_path / "m", ref="models/m")
    arguments = [store.backend.url, tmp_path / "big", tmp_path / "out"]
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = ran.stdout.splitlines()
    assert [line.split(" ")[0] for line in said] == ["BackendError", "BackendError"], ran.stdout + ran.stderr
    assert "store" in said[0]
    assert "out" in said[1]
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert list(store.backend.list_temporaries()) == []
    assert list(store.refs()) == ["models/m"]
    assert store.add(tmp_path / "big", ref="models/big").bytes_new == 3 * MIB
    assert check(store, read_data=True).ok


class Broken(SystemCalls):
    """Real calls, of which those named in `broken` fail: all of them, or the one with index `only`."""

    def __init__(self, number, broken, only=None):
        self.number = number
        self.broken = broken
        self.only = only
        self.count = 0

    def _fail(self, name):
        if name in self.broken:
            self.count += 1
            if self.only is None or self.count - 1 == self.only:
                raise OSError(self.number, os.strerror(self.number))

    def open(self, path, flags, mode=0o600):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            self._fail("open")
        return super().open(path, flags, mode)

    def write(self, fd, parts):
        self._fail("write")
        return super().write(fd, parts)

    def fsync(self, fd):
        self._fail("fsync")
        super().fsync(fd)

    def mkdir(self, path, mode):
        self._fail("mkdir")
        super().mkdir(path, mode)

    def link(self, source, target):
        self._fail("link")
        super().link(source, target)

    def unlink(self, path):
        self._fail("unlink")
        super().unlink(path)


def on_broken_disk(store, calls):
    backend = LocalBackend(Path(store.backend.local_path("format")).parent, calls=calls)
    return ModelStore(backend, store_id=bytes.fromhex(store.store_id), machine=MachineState(None))


def fails_for_space(work, *arguments, **options):
    """Say whether this fails; if it does, then with casstore's own error and for the right reason."""
    try:
        work(*arguments, **options)
    except CasstoreError as caught:
        error = caught
    else:
        return False
    assert isinstance(error, BackendError)
    assert "the disk is full" in str(error)
    return True


def test_a_full_disk_at_every_step_of_an_add(store, tmp_path):
    write_tree(tmp_path / "m", {"w.bin": noise(300_000), "config.json": b"{}"})
    # An add that fails to make the ballast goes on without.
    on_broken_disk(store, SystemCalls()).backend.keep_spare_room()
    failures = 0
    for step in itertools.count():
        calls = Broken(errno.ENOSPC, {"open", "write", "fsync", "mkdir", "link"}, only=step)
        broken = on_broken_disk(store, calls)
        if not fails_for_space(broken.add, tmp_path / "m", ref="models/m"):
            break
        failures += 1
        # A failure after the record became visible may leave it; a whole model or none is the rule.
        assert list(store.backend.list_temporaries()) == []
        fresh = on_broken_disk(store, SystemCalls())
        report = check(fresh, read_data=True)
        assert report.ok, (step, report.problems)
        if "models/m" in fresh.refs():
            fresh.rm("models/m")
    assert failures >= 12


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_disk(store, kept, model, tmp_path, number):
    before = tree_of(Path(store.backend.local_path("format")).parent)
    everything = {"open", "write", "mkdir", "link", "unlink"}
    stuck = on_broken_disk(store, Broken(number, everything))
    writes = [
        lambda: stuck.add(model, ref="models/again"),
        lambda: stuck.tag("t", "models/m"),
        lambda: stuck.rm("models/m"),
    ]
    for write in writes:
        with pytest.raises(AccessDenied, match=r"read-only|owner, group and mode"):
            write()
    assert stuck.get("models/m", tmp_path / "out").model_id == kept.model_id
    assert tree_of(tmp_path / "out") == tree_of(model)
    assert stuck.stats().models == 1
    assert check(stuck, read_data=True).ok
    assert tree_of(Path(store.backend.local_path("format")).parent) == before


def test_a_store_that_someone_else_owns(open_folder):
    """Real permissions: reading works, writing is refused, and nothing appears."""
    root = open_folder / "store"
    write_tree(open_folder / "m", {"w.bin": noise(100_000)})
    with Store(root, create=True) as store:
        store.add(open_folder / "m", ref="models/m")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree_of(root)
    with ordinary_user():
        for readonly in (False, True):
            with Store(root, read_only=readonly) as store:
                with store.open_file("models/m", "w.bin") as file:
                    assert file.read() == noise(100_000)
                assert check(store, read_data=True).ok
                for write in (lambda: store.add(open_folder / "m"), lambda: store.rm("models/m")):
                    with pytest.raises(AccessDenied):
                        write()
    assert tree_of(root) == before
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def test_every_refusal_is_one_of_casstores_own_errors():
    """What the tests above catch is public, so that callers can catch it too."""
    assert issubclass(AccessDenied, casstore.BackendError)
    for error in (ConfigError, ConflictError, RefNotFound, IntegrityError, BackendError):
        assert issubclass(error, casstore.CasstoreError)
