"""Disks that are full, read-only or owned by somebody else: an error that says so, and a store that is whole."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.folders import ordinary_user, tree_of, write_tree
from fakes.stores import noise

import casstore
from casstore import (
    ConfigError,
    ConflictError,
    IntegrityError,
    RefNotFound,
    Store,
)
from casstore.backend import LocalBackend
from casstore.backend.local.syscalls import SystemCalls
from casstore.errors import AccessDenied, BackendError, CasstoreError
from casstore.machine.state import MachineState
from casstore.ops.check import check
from casstore.ops.stats import measure
from casstore.store.model_store import ModelStore

MIB = 1 << 20

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
    write_tree(tmp_path / "big", {"w.bin": noise(7, 3 * MIB)})
    write_tree(tmp_path / "m", {"w.bin": noise(9, 3 * MIB), "small": b"x"})
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
    write_tree(tmp_path / "m", {"w.bin": noise(7, 300_000), "config.json": b"{}"})
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
    assert measure(stuck).models == 1
    assert check(stuck, read_data=True).ok
    assert tree_of(Path(store.backend.local_path("format")).parent) == before


def test_a_store_that_someone_else_owns(open_folder):
    """Real permissions: reading works, writing is refused, and nothing appears."""
    root = open_folder / "store"
    write_tree(open_folder / "m", {"w.bin": noise(7, 100_000)})
    with Store(root, create=True) as store:
        store.add(open_folder / "m", ref="models/m")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree_of(root)
    with ordinary_user():
        for readonly in (False, True):
            with Store(root, read_only=readonly) as store:
                with store.open_file("models/m", "w.bin") as file:
                    assert file.read() == noise(7, 100_000)
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
