"""Destinations that a checkout must not touch, or that change under it: nothing else is written or removed."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from fakes.folders import Meanwhile, ordinary_user, tree_of, write_tree
from fakes.stores import noise

from casstore import (
    ConfigError,
    ConflictError,
    IntegrityError,
    Store,
)
from casstore.errors import AccessDenied, BackendError
from casstore.store.checkout import checkout

MIB = 1 << 20


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
    big = noise(5, 3 * MIB)
    contents = {"a.bin": b"first", "deep/er/b.bin": b"second", "new/c.bin": noise(7, 9 * MIB), "z.bin": big}
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
    callback = Meanwhile(9 * MIB, intrude)
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
    callback = Meanwhile(9 * MIB, swap)
    with pytest.raises((IntegrityError, ConfigError)):
        store.get("models/damaged", tmp_path / "out", callback=callback)
    assert callback.done
    assert tree_of(tmp_path / "precious") == before


def test_a_destination_that_someone_else_fills_meanwhile(store, damaged, tmp_path):
    write_tree(tmp_path / "m", {"f.bin": noise(7, 10 * MIB)})
    store.add(tmp_path / "m", ref="models/m")
    callback = Meanwhile(1, lambda: write_tree(tmp_path / "work/out", {"theirs": b"theirs"}))
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
