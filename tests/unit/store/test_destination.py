"""What a destination cannot hold is found by trying, named, and refused before anything is written."""

from __future__ import annotations

import errno
import os
import time
import unicodedata
from pathlib import Path

import pytest
from fakes.stores import model_of, write_model

from casstore import ConfigError, Store
from casstore.errors import BackendError
from casstore.store.checkout.checkout import Checkout
from casstore.store.checkout.destination import FolderCalls, check_destination


def disk(change=lambda name: name, *, shown=lambda name: name, asked=None):
    """Return the calls of a real folder that keeps a name under the one that `change` gives, and lists it as `shown`.

    `change` raises OSError for a name that is refused.
    """

    def make(name, folder):
        if asked is not None:
            asked.append((name, os.fstat(folder).st_ino))
        os.close(os.open(change(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=folder))

    return FolderCalls(
        make=make,
        remove=lambda name, folder: os.unlink(change(name), dir_fd=folder),
        list=lambda folder: [shown(name) for name in os.listdir(folder)],
    )


def folding():
    """Return the calls of a file system that keeps the case and form of names, and takes any other for the same."""
    kept = {}

    def fold(name):
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
        kept.setdefault(folded, name)
        return folded

    return disk(fold, shown=lambda name: kept[name])


def windows(name):
    """What Windows does to names: refuses most, and drops what is at the end of others."""
    if name.partition(".")[0].lower() in {"con", "aux", "nul"} or set(name) & set('<>:"|?*\\\t'):
        raise OSError(errno.EINVAL, "Invalid argument")
    if len(name) > 255:
        raise OSError(errno.ENAMETOOLONG, "File name too long")
    return name.rstrip(". ")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


def add(store, tmp_path, *paths, empty=()):
    for path in paths:
        (tmp_path / "m" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / path).write_bytes(path.encode())
    for path in empty:
        (tmp_path / "m" / path).mkdir(parents=True)
    return store.add(tmp_path / "m", ref="models/m")


def check_out(store, destination, calls, *, force=False):
    model = store.model("models/m")
    work = Checkout(str(destination), force=force, callback=None, calls=calls)
    work.run(model.tree, model.layouts, store.objects)


@pytest.mark.parametrize("prepared", ["nothing", "an empty folder", "a folder with files"])
def test_all_that_windows_does_not_take_is_named_and_nothing_written(store, tmp_path, prepared):
    bad = ["12:00.json", "a*b", "aux.py", "deep/er/what?", "dot.", "space ", "tab\t"]
    add(store, tmp_path, *bad, "config.json", "con/x", "con/y", "deep/ok", empty=["nul"])
    (tmp_path / "w").mkdir()
    out = tmp_path / "w/out"
    if prepared != "nothing":
        out.mkdir()
    if prepared == "a folder with files":
        (out / "deep").mkdir()
        (out / "deep/mine").write_bytes(b"mine")
    before = sorted((tmp_path / "w").rglob("*"))
    with pytest.raises(ConfigError, match="cannot hold these names") as caught:
        check_out(store, out, disk(windows), force=True)
    for path in [*bad, "con", "nul"]:
        assert repr(path) in str(caught.value)
    for path in ("config.json", "con/x", "deep/ok"):
        assert repr(path) not in str(caught.value)
    assert "would be called 'dot'" in str(caught.value)
    assert "Invalid argument" in str(caught.value)
    assert sorted((tmp_path / "w").rglob("*")) == before


ALIKE = [
    (("README.md", "readme.md"), "'readme.md' (is the same name as 'README.md' there)"),
    (("deep/Layer/a", "deep/layer/b"), "'deep/layer' (is the same name as 'Layer' there)"),
    (("\u00e9", "e\u0301"), "is the same name as"),
    (("stra\u00dfe", "strasse"), "'strasse' (is the same name as 'stra\u00dfe' there)"),
    (("K", "\u212a"), "(is the same name as 'K' there)"),
    (("x", "X/y"), "'x' (is the same name as 'X' there)"),
]


@pytest.mark.parametrize(("pair", "told"), ALIKE)
def test_names_that_a_file_system_takes_for_one(store, tmp_path, pair, told):
    add(store, tmp_path, *pair, "other")
    with pytest.raises(ConfigError, match=r"is the same name as .* there") as caught:
        check_out(store, tmp_path / "out", folding())
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    check_out(store, tmp_path / "out", disk())
    assert all((tmp_path / "out" / path).read_bytes() == path.encode() for path in pair)


@pytest.mark.parametrize("names", [["a/Readme", "b/readme"], ["Readme", "README2"], ["\u00e9", "f\u0301"]])
def test_names_that_only_look_alike_are_written(store, tmp_path, names):
    add(store, tmp_path, *names)
    check_out(store, tmp_path / "out", folding())
    assert all((tmp_path / "out" / path).is_file() for path in names)


def test_one_unicode_form_is_as_good_as_the_other(store, tmp_path):
    """macOS's older file system decomposes names, and finds them by any form."""
    add(store, tmp_path, "mod\u00e8le.bin")
    check_out(store, tmp_path / "out", disk(lambda name: unicodedata.normalize("NFD", name)))
    assert (tmp_path / "out/mod\u00e8le.bin").is_file()


def test_names_that_are_longer_than_the_destination_allows(store, tmp_path):
    add(store, tmp_path, "x" * 200, "y" * 140, "z" * 20)

    def short(name):
        if len(name) > 143:
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        return name

    with pytest.raises(ConfigError, match="too long") as caught:
        check_out(store, tmp_path / "out", disk(short))
    assert "y" * 140 not in str(caught.value)
    check_out(store, tmp_path / "out", disk())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_what_has_nothing_to_do_with_names_is_told_as_it_is(store, tmp_path, number):
    add(store, tmp_path, "a:b")

    def fail(name):
        raise OSError(number, os.strerror(number))

    with pytest.raises(BackendError):
        check_out(store, tmp_path / "out", disk(fail))
    assert not (tmp_path / "out").exists()


def test_ordinary_names_are_not_tried(store, tmp_path):
    add(
        store,
        tmp_path,
        "config.json",
        "model-00001-of-00002.safetensors",
        "onnx/Model (1).onnx",
        "a b/.hidden",
    )
    asked = []
    check_out(store, tmp_path / "out", disk(asked=asked))
    assert asked == []


def test_names_are_tried_where_they_will_be(store, tmp_path):
    """A folder of the destination may be another file system than the one that it lies in."""
    add(store, tmp_path, "there/deep/a:b", "not-there/a:b", "link/a:b")
    (tmp_path / "out/there").mkdir(parents=True)
    (tmp_path / "out/link").symlink_to("there")
    asked, opened = [], []

    def open_folder(path):
        opened.append(path)
        if path == "link":
            raise ConfigError("in the way")
        return os.open(tmp_path / "out" / path, os.O_RDONLY | os.O_DIRECTORY)

    paths = [entry.path for entry in store.model("models/m").tree.entries]
    check_destination(paths, shown="out", open_folder=open_folder, calls=disk(asked=asked))
    assert [name for name, _ in asked] == ["a:b"] * 2
    assert set(opened) == {"", "link", "not-there", "there", "there/deep"}
    assert opened.count("there/deep") == 1
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["link", "there"]


def test_ten_thousand_names_are_tried_in_no_time_and_a_few_are_named(tmp_path):
    paths = [f"{folder}/{number}:x" for folder in range(10) for number in range(1000)]
    paths += [f"case/{number}{x}" for number in range(2000) for x in "xX"]
    open_folder = lambda path: os.open(tmp_path / path, os.O_RDONLY | os.O_DIRECTORY)  # noqa: E731
    started = time.perf_counter()
    check_destination(paths, shown="out", open_folder=open_folder)
    with pytest.raises(ConfigError, match=r"'0/0:x' \(Invalid argument\), .*, and 9980 more") as caught:
        check_destination(paths, shown="out", open_folder=open_folder, calls=disk(windows))
    assert time.perf_counter() - started < 10
    assert len(str(caught.value)) < 2000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["\u00fc" * 120, "x" * 255, "\u65e5\u672c" * 40])
@pytest.mark.parametrize("there", [False, True])
def test_destinations_with_long_names(store, tmp_path, name, there):
    """Temporary names beside it have a bounded number of bytes, not of characters."""
    write_model(model_of(f=b"x"), tmp_path / "m")
    store.add(tmp_path / "m", ref="models/m")
    if there:
        (tmp_path / name).mkdir()
    store.get("models/m", tmp_path / name)
    assert (tmp_path / name / "f").read_bytes() == b"x"
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_files_with_long_names(store, tmp_path):
    names = ["x" * 255, "\u00fc" * 127, "d" * 255 + "/" + "\u65e5" * 85]
    add(store, tmp_path, *names)
    store.get("models/m", tmp_path / "out")
    assert all(Path(tmp_path / "out" / name).read_bytes() == name.encode() for name in names)
