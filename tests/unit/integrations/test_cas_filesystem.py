"""cas:// as any fsspec file system is used: looked at, opened, read in ranges, copied, pickled."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from fakes import syncer  # noqa: F401  # registers dirfs://, a directory that casstore takes for a remote
from fakes.stores import Content, noise, write_model
from safetensors.numpy import load, save

from casstore.api.store import Store
from casstore.digest import digest
from casstore.errors import ConfigError, IntegrityError
from casstore.integrations.fsspec.filesystem import CasFileSystem

ARRAY = np.arange(600_000, dtype=np.float32)
WEIGHTS = save({"a": ARRAY, "b": ARRAY[::-1].copy()})
FILES = {
    "model.safetensors": (WEIGHTS, False),
    "config.json": (json.dumps({"hidden": 4}).encode(), False),
    "onnx/run.sh": (b"#!/bin/sh\n", True),
    "onnx/deep/noise.bin": (noise(1, 300_000), False),
    "nothing": (b"", False),
}
CONTENT = Content(FILES, frozenset({"hollow/inside"}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cas")
    with Store(folder / "store", create=True, durability="none") as store:
        store.add(write_model(CONTENT, folder / "one"), ref="models/team/one")
        store.add(folder / "one" / "config.json", ref="models/plain")
        store.tag("production", "models/team/one")
    return folder / "store"


@pytest.fixture(params=["near", "far"])
def fs(request, place):
    url = str(place) if request.param == "near" else f"dirfs://{place}"
    opened = fsspec.filesystem("cas", store=url, skip_instance_cache=True)
    yield opened
    opened.close()


MODEL = "models/team/one"


def test_what_there_is(fs):
    assert fs.ls("", detail=False) == ["models", "tags"]
    assert fs.ls("cas://models", detail=False) == ["models/plain", "models/team"]
    assert fs.ls("models/team", detail=False) == [MODEL]
    names = ["config.json", "hollow", "model.safetensors", "nothing", "onnx"]
    assert fs.ls(MODEL, detail=False) == [f"{MODEL}/{name}" for name in names]
    assert fs.ls(f"{MODEL}/onnx/", detail=False) == [f"{MODEL}/onnx/deep", f"{MODEL}/onnx/run.sh"]
    assert fs.ls(f"{MODEL}/hollow/inside") == []
    assert fs.ls(f"{MODEL}/config.json", detail=False) == [f"{MODEL}/config.json"]
    assert sorted(fs.find(MODEL)) == sorted(f"{MODEL}/{path}" for path in FILES)
    everything = {f"{ref}/{path}" for ref in (MODEL, "tags/production") for path in FILES}
    assert set(fs.find("")) == {*everything, "models/plain/config.json"}
    assert fs.glob(f"{MODEL}/**/*.bin") == [f"{MODEL}/onnx/deep/noise.bin"]
    assert fs.glob("models/*/*/*.json") == [f"{MODEL}/config.json"]
    folders = {path: (sorted(directories), sorted(files)) for path, directories, files in fs.walk(MODEL)}
    assert folders[f"{MODEL}/onnx"] == (["deep"], ["run.sh"])
    assert folders[f"{MODEL}/hollow/inside"] == ([], [])


def test_what_is_known_of_a_path(fs):
    for path, (data, executable) in FILES.items():
        info = fs.info(f"cas://{MODEL}/{path}")
        assert (info["name"], info["type"], info["size"]) == (f"{MODEL}/{path}", "file", len(data))
        assert (info["blake3"], info["executable"]) == (digest(data).hex(), executable)
        assert fs.isfile(f"{MODEL}/{path}")
        assert fs.size(f"{MODEL}/{path}") == len(data)
        assert fs.ukey(f"{MODEL}/{path}") == digest(data).hex()
        assert fs.checksum(f"{MODEL}/{path}") == int.from_bytes(digest(data), "big")
    for path in ("", "models", "tags", "models/team", MODEL, f"{MODEL}/onnx", f"{MODEL}/hollow"):
        assert fs.isdir(path), path
        assert not fs.isfile(path), path
        assert fs.info(path)["name"] == path
    model_id = fs.info(MODEL)["model_id"]
    assert len(model_id) == 64
    for name in (model_id, model_id[:8]):
        assert fs.cat_file(f"cas://{name}/config.json") == FILES["config.json"][0]
        assert fs.info(f"{name}/onnx/run.sh")["name"] == f"{name}/onnx/run.sh"


@pytest.mark.parametrize(
    "path",
    [
        "nowhere", "models/nowhere", "models/team/none", f"{MODEL}/none", f"{MODEL}/config.json/more", "runs",
        "models//plain", "models/pla", "0" * 64, "abcd", "models/team/one@2/config.json", f"{MODEL}/../plain",
    ],
)  # fmt: skip
def test_what_is_not_there(fs, path):
    assert not fs.exists(path)
    assert not fs.isdir(path)
    assert not fs.isfile(path)
    for look in (fs.info, fs.ls, fs.open, fs.cat_file, fs.ukey):
        with pytest.raises(FileNotFoundError):
            look(path)


def test_directories_are_not_opened(fs):
    for path in ("", "models", "models/team", MODEL, f"{MODEL}/onnx"):
        with pytest.raises(IsADirectoryError):
            fs.open(path)


def test_files_are_read(fs):
    for path, (data, _) in FILES.items():
        assert fs.cat_file(f"{MODEL}/{path}") == data
        with fs.open(f"{MODEL}/{path}") as file:
            assert file.read() == data
    path, data = f"{MODEL}/model.safetensors", WEIGHTS
    assert fs.cat_file(path, 10, 2_000_000) == data[10:2_000_000]
    assert fs.cat_file(path, -100) == data[-100:]
    assert fs.cat_file(path, 5, -5) == data[5:-5]
    assert fs.cat_file(path, 50, 20) == b""
    assert fs.head(path, 9) == data[:9]
    assert fs.tail(path, 9) == data[-9:]
    assert fs.read_block(f"{MODEL}/onnx/run.sh", 0, 4, delimiter=b"\n") == b"#!/bin/sh\n"
    assert fs.cat([f"{MODEL}/config.json", f"{MODEL}/nothing"]) == {
        f"{MODEL}/config.json": FILES["config.json"][0],
        f"{MODEL}/nothing": b"",
    }
    with fs.open(f"{MODEL}/config.json", "r", encoding="utf-8") as file:
        assert json.load(file) == {"hidden": 4}


def test_ranges_come_in_the_order_that_they_were_asked_for(fs):
    path, other = f"{MODEL}/model.safetensors", f"cas://{MODEL}/onnx/deep/noise.bin"
    wanted = [(path, 3_000_000, 3_000_100), (other, 0, 50), (path, 0, 70), (path, 60, 90), (path, None, 9)]
    wanted += [(other, -7, None), (path, 1_000_000, 1_000_000)]
    contents = {path: WEIGHTS, other: FILES["onnx/deep/noise.bin"][0]}
    got = fs.cat_ranges(*(list(column) for column in zip(*wanted, strict=True)))
    assert got == [contents[name][begin:end] for name, begin, end in wanted]
    assert fs.cat_ranges([path, other], 0, 4) == [WEIGHTS[:4], contents[other][:4]]
    got = fs.cat_ranges([path, "models/nowhere"], [0, 0], [2, 2])
    assert got[0] == WEIGHTS[:2]
    assert isinstance(got[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([path, "models/nowhere"], [0, 0], [2, 2], on_error="raise")
    with pytest.raises(ValueError, match="2 starts"):
        fs.cat_ranges([path, other], [0], [1, 1])


def test_files_are_copied_whole_with_their_mode(fs, tmp_path):
    fs.get(f"{MODEL}/", str(tmp_path / "out"), recursive=True)
    for path, (data, executable) in FILES.items():
        assert (tmp_path / "out" / path).read_bytes() == data
        assert bool((tmp_path / "out" / path).stat().st_mode & 0o100) == executable
    held = io.BytesIO()
    fs.get_file(f"{MODEL}/config.json", held)
    assert held.getvalue() == FILES["config.json"][0]


def test_a_copy_that_fails_leaves_nothing(fs, tmp_path, monkeypatch):
    (tmp_path / "model").write_bytes(b"what was there")
    monkeypatch.setattr(fs, "blocksize", 1 << 16)
    reads = iter(range(3))
    update = fsspec.Callback.relative_update
    monkeypatch.setattr(
        fsspec.Callback,
        "relative_update",
        lambda self, count: update(self, count) if next(reads, None) is not None else 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        fs.get_file(f"{MODEL}/model.safetensors", str(tmp_path / "model"), callback=fsspec.Callback())
    assert os.listdir(tmp_path) == ["model"]
    assert (tmp_path / "model").read_bytes() == b"what was there"


def test_readers_that_take_a_file_object(fs, place, tmp_path):
    np.save(tmp_path / "array.npy", ARRAY)
    with Store(place, durability="none") as store:
        store.add(tmp_path / "array.npy", ref="models/array")
    with fs.open("models/array/array.npy") as file:
        assert np.array_equal(np.load(file), ARRAY)
    with fs.open(f"{MODEL}/model.safetensors") as file:
        assert np.array_equal(load(file.read())["b"], ARRAY[::-1])
    with io.BufferedReader(fs.open(f"{MODEL}/model.safetensors").detach()) as file:
        assert file.read(8) == WEIGHTS[:8]
        file.seek(-8, io.SEEK_END)
        assert file.read() == WEIGHTS[-8:]


def test_writing_is_refused(fs, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    path = f"{MODEL}/config.json"
    for write in (
        lambda: fs.open(path, "wb"),
        lambda: fs.open(path, "ab"),
        lambda: fs.open("models/new", "w"),
        lambda: fs.mkdir("models/new"),
        lambda: fs.makedirs("models/new", exist_ok=True),
        lambda: fs.rm(path),
        lambda: fs.rm(MODEL, recursive=True),
        lambda: fs.rm_file(path),
        lambda: fs.rmdir(MODEL),
        lambda: fs.mv(path, "models/new"),
        lambda: fs.cp(path, "models/new"),
        lambda: fs.copy(path, "models/new"),
        lambda: fs.put(str(tmp_path / "file"), "models/new"),
        lambda: fs.put_file(str(tmp_path / "file"), "models/new"),
        lambda: fs.upload(str(tmp_path / "file"), "models/new"),
        lambda: fs.pipe("models/new", b""),
        lambda: fs.pipe_file("models/new", b""),
        lambda: fs.write_bytes("models/new", b""),
        lambda: fs.touch("models/new"),
        lambda: fs.delete(path),
    ):
        with pytest.raises(OSError, match="read-only"):
            write()
    assert fs.cat_file(path) == FILES["config.json"][0]


def test_a_ref_inside_a_refs_name(place, tmp_path, fs):
    """models/team/one/more begins with another ref: found all the same, unless the shorter one's model has it."""
    with Store(place, durability="none") as store:
        (tmp_path / "x").write_bytes(b"longer")
        store.add(tmp_path / "x", ref=f"{MODEL}/more")
        store.add(tmp_path / "x", ref=f"{MODEL}/onnx")
    assert fs.cat_file(f"{MODEL}/more/x") == b"longer"
    assert fs.cat_file(f"{MODEL}/onnx/x") == b"longer"
    assert fs.cat_file(f"{MODEL}/onnx/run.sh") == FILES["onnx/run.sh"][0]
    assert f"{MODEL}/more" not in fs.ls(MODEL, detail=False)


def test_a_ref_that_moves_is_seen_at_once_when_asked(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as store:
        for at in (1, 2):
            (tmp_path / "f").write_bytes(b"%d" % at)
            os.utime(tmp_path / "f", (at, at))
            store.add(tmp_path / "f", ref="models/m")
            if at == 1:
                fs = CasFileSystem(tmp_path / "store", ref_seconds=3600, skip_instance_cache=True)
                assert fs.cat_file("models/m/f") == b"1"
        assert fs.cat_file("models/m/f") == b"1"
        fs.invalidate_cache()
        assert fs.cat_file("models/m/f") == b"2"
        now = CasFileSystem(tmp_path / "store", ref_seconds=0, skip_instance_cache=True)
        assert not now.exists("models/later")
        store.add(tmp_path / "f", ref="models/later")
        assert now.exists("models/later")
        now.close()
        fs.close()


def test_it_is_found_by_its_protocol_alone(place):
    code = f"""
import sys, fsspec
with fsspec.open("cas://{MODEL}/config.json", store={str(place)!r}) as file:
    print(file.read().decode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout) == {"hidden": 4}


def test_one_url_names_the_store_too(place, monkeypatch):
    for url in (f"cas://{MODEL}/config.json::file://{place}", f"cas://{MODEL}/config.json::dirfs://{place}"):
        with fsspec.open(url) as file:
            assert json.load(file) == {"hidden": 4}
        file.fs = None
    monkeypatch.setenv("CASSTORE_STORE", str(place))
    with fsspec.open(f"cas://{MODEL}/config.json", skip_instance_cache=True) as file:
        assert json.load(file) == {"hidden": 4}


def test_options_that_make_no_sense(place, tmp_path):
    for arguments, says in (
        ({}, "CASSTORE_STORE"),
        ({"store": str(place), "stores": 1}, "no option stores"),
        ({"store": str(place), "fo": "/tmp"}, "give only one of them"),
        ({"store": str(tmp_path)}, "store"),
        ({"store": str(place), "store_options": {"key": "x"}}, "Storage options"),
        ({"store": f"dirfs://{place}", "chunk_cache": 1000}, "too small"),
    ):
        with pytest.raises(ConfigError, match=says):
            fsspec.filesystem("cas", **arguments)


def test_a_pickled_copy_reads_on(fs):
    copy = pickle.loads(pickle.dumps(fs))
    assert copy.cat_file(f"{MODEL}/config.json") == FILES["config.json"][0]
    assert repr(copy) == repr(fs)
    assert copy.fsid == fs.fsid
    opened = pickle.loads(pickle.dumps(fsspec.core.OpenFile(fs, f"{MODEL}/config.json")))
    with opened as file:
        assert json.load(file) == {"hidden": 4}


def test_a_forked_child_reads_on(fs):
    file = fs.open(f"{MODEL}/model.safetensors")
    assert file.read(700_000) == WEIGHTS[:700_000]
    child = os.fork()
    if child == 0:
        try:
            whole = file.read() == WEIGHTS[700_000:] and fs.cat_file(f"{MODEL}/model.safetensors") == WEIGHTS
            os._exit(0 if whole else 1)
        except BaseException:  # noqa: BLE001  # the child of a test may only exit
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.read() == WEIGHTS[700_000:]
    file.close()


def test_damage_is_an_error_and_never_an_absence(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as store:
        store.add(write_model(CONTENT, tmp_path / "one"), ref="models/one")
    for pack in (tmp_path / "store" / "packs").glob("*/*"):
        pack.chmod(0o600)
        data = bytearray(pack.read_bytes())
        data[40 : len(data) // 2] = bytes(byte ^ 255 for byte in data[40 : len(data) // 2])
        pack.write_bytes(data)
    for url in (str(tmp_path / "store"), f"dirfs://{tmp_path / 'store'}"):
        fs = fsspec.filesystem("cas", store=url)
        assert fs.exists("models/one/model.safetensors")  # its manifest lies in the half that is whole
        for read in (fs.cat_file, lambda path, fs=fs: fs.open(path).read(), lambda path, fs=fs: fs.cat(path)):
            with pytest.raises(IntegrityError):
                read("models/one/model.safetensors")
        with pytest.raises(IntegrityError):
            fs.get_file("models/one/model.safetensors", str(tmp_path / "got"))
        assert not (tmp_path / "got").exists()
        [error] = fs.cat_ranges(["models/one/model.safetensors"], [0], [100])
        assert isinstance(error, IntegrityError)
        fs.close()
    gc.collect()
