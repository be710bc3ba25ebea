"""What root does in somebody else's store belongs to that somebody: one `sudo casstore add` locks nobody out."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from fakes.people import can_become_others, run_as
from fakes.stores import noise

from casstore.backend import LocalBackend
from casstore.backend.local.syscalls import SystemCalls
from casstore.errors import AccessDenied

KEY = "packs/ab/" + "ab" * 32
ANN, TEAM = 54321, 54320


class FakeRoot(SystemCalls):
    """Root, as far as this backend can tell; owners are only written down."""

    def __init__(self, *, refused=None, owner=(ANN, TEAM)):
        self.owners = {}
        self.refused = refused
        self.owner = owner
        self.named = []

    def geteuid(self):
        return 0

    def _owned(self, status):
        uid, gid = self.owners.get(status.inode, (0, 0))
        return status._replace(uid=uid, gid=gid)

    def fstat(self, fd):
        return self._owned(super().fstat(fd))

    def stat(self, path, *, follow=True):
        status = self._owned(super().stat(path, follow=follow))
        return status._replace(uid=self.owner[0], gid=self.owner[1]) if path in self.of_the_owner else status

    of_the_owner = ()

    def fchown(self, fd, uid, gid):
        if self.refused is not None:
            raise OSError(self.refused, os.strerror(self.refused))
        self.owners[os.fstat(fd).st_ino] = (uid, gid)

    def link(self, source, target):
        self.named.append((target, self.owners.get(os.stat(source).st_ino)))
        super().link(source, target)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


def below(root):
    return [Path(folder) / name for folder, folders, names in os.walk(root) for name in folders + names]


@pytest.mark.parametrize("of_the_owner", ["format", ""])
def test_everything_is_given_away_before_it_has_its_name(root, of_the_owner):
    LocalBackend(root, create=True).put("format", [b"x"]) if of_the_owner else root.mkdir()
    there = below(root)
    calls = FakeRoot()
    calls.of_the_owner = (str(root / of_the_owner) if of_the_owner else str(root),)
    backend = LocalBackend(root, create=True, calls=calls)
    with backend.publish_lock():
        backend.put(KEY, [b"x"])
    assert backend.creates_exclusively
    backend.create("refs/models/x", [b"x"])
    backend.mark_lockless()
    for key in ("gc/tombstones/x", "quarantine/x"):
        backend.put(key, [b"x"])
    made = [path for path in below(root) if path not in there]
    assert len(made) > 8
    assert {calls.owners.get(path.stat().st_ino) for path in made} == {(ANN, TEAM)}
    assert calls.named
    assert {owner for _, owner in calls.named} == {(ANN, TEAM)}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.EIO])
@pytest.mark.parametrize("first", ["put", "lock", "directory"])
def test_what_cannot_be_given_away_is_not_written(root, number, first):
    ready = LocalBackend(root, create=True)
    ready.put("format", [b"x"])
    if first != "directory":
        with ready.publish_lock():
            ready.put(KEY, [b"x"])
        ready.delete(KEY)
    if first == "lock":
        (root / "gc/.lock").unlink()
    there = below(root)
    calls = FakeRoot(refused=number)
    calls.of_the_owner = (str(root / "format"),)
    backend = LocalBackend(root, calls=calls)
    write = backend.publish_lock().__enter__ if first == "lock" else lambda: backend.put(KEY, [b"x"])
    with pytest.raises(AccessDenied, match=f"belongs to user {ANN}.*nothing was written"):
        write()
    assert below(root) == there
    assert backend.read("format") == b"x"


def test_a_directory_is_given_away_through_no_link(root):
    """The store's owner may put a link where root has just made a directory."""
    root.mkdir()
    (root / "elsewhere").mkdir()

    class Swapped(FakeRoot):
        def mkdir(self, path, mode):
            super().mkdir(path, mode)
            if path.endswith("/packs"):
                os.rmdir(path)
                os.symlink(root / "elsewhere", path)

    calls = Swapped()
    calls.of_the_owner = (str(root),)
    with pytest.raises(Exception, match="in the way"):
        LocalBackend(root, calls=calls).put(KEY, [b"x"])
    assert (root / "elsewhere").stat().st_ino not in calls.owners


def test_others_keep_what_they_make(root):
    class Nobody(FakeRoot):
        def geteuid(self):
            return 1000

    calls = Nobody()
    calls.of_the_owner = (str(root / "format"),)
    LocalBackend(root, create=True, calls=calls).put("format", [b"x"])
    LocalBackend(root, calls=calls).put(KEY, [b"x"])
    assert calls.owners == {}


@pytest.fixture
def place():
    folder = tempfile.mkdtemp(prefix="casstore-test-")
    os.chmod(folder, 0o755)
    yield Path(folder)
    shutil.rmtree(folder)


def person(place, name, uid, groups=()):
    home = place / name
    home.mkdir(mode=0o700)
    (home / "model.bin").write_bytes(noise(uid, 200_000))
    if can_become_others():
        for path in (home, home / "model.bin"):
            os.chown(path, uid, uid)
    return {"uid": uid, "groups": list(groups), "home": str(home)}


@pytest.mark.parametrize("shared", [False, True])
def test_sudo_locks_nobody_out(place, shared):
    """As real people where this may become others; else all of them are the one who runs this."""
    ann = person(place, "ann", ANN, [TEAM])
    boss = person(place, "root", 0 if can_become_others() else os.getuid())
    folder = place / "folder"
    folder.mkdir()
    if can_become_others():
        os.chown(folder, ANN, TEAM if shared else ANN)
    if shared:
        os.chmod(folder, 0o2775)
    store = str(folder / "store")
    at = ["--store", store]
    results = run_as(
        [
            (ann, ["init", *at, *(["--shared", "group"] if shared else [])]),
            (boss, ["add", f"{boss['home']}/model.bin", "--ref", "models/boss", *at]),
            (ann, ["add", f"{ann['home']}/model.bin", "--ref", "models/ann", *at]),
            (boss, ["add", f"{ann['home']}/model.bin", "--ref", "models/again", *at]),
            (ann, ["add", f"{ann['home']}/model.bin", "--ref", "models/more", *at]),
            (ann, ["check", "--read-data", *at]),
            (ann, ["rm", "models/boss", *at]),
            (ann, ["ls", "-q", *at]),
        ]
    )
    assert [code for code, _, _ in results[:4]] == [0] * 4, results
    assert results[4][0] == 0, results[4]
    assert results[6][0] == 0, results[6]
    assert results[7][1].split() == ["models/again", "models/ann", "models/more"]
    if can_become_others():
        expected = {(ANN, TEAM if shared else ANN)}
        assert {(path.stat().st_uid, path.stat().st_gid) for path in below(store)} == expected
        for path in below(store):
            if path.is_dir():
                assert stat.S_IMODE(path.stat().st_mode) == (0o2770 if shared else 0o700)


def test_sudo_that_keeps_home_leaves_the_names_of_remotes_to_their_owner(place):
    ann = person(place, "ann", ANN)
    boss = {**ann, "uid": 0 if can_become_others() else os.getuid()}
    store, there = f"{ann['home']}/store", f"{ann['home']}/there"
    results = run_as(
        [
            (ann, ["init", "--store", store]),
            (ann, ["init", "--store", there]),
            (boss, ["remote", "add", "hub", there, "--store", store]),
            (ann, ["push", "hub", "--store", store]),
            (ann, ["remote", "add", "other", there, "--store", store]),
        ]
    )
    assert [code for code, _, _ in results] == [0] * 5, results
