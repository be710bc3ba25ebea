"""Folders that hold odd things: kept whole, or refused by name, with nothing left behind."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fakes.folders import tree_of, write_tree
from fakes.model_files import safetensors_bytes
from fakes.stores import assert_clean, assert_nothing_added

from casstore import (
    ConfigError,
    Store,
)
from casstore.ops.check import check

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
