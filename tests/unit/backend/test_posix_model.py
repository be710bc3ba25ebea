"""The model must lose what POSIX lets it lose, or the crash tests prove nothing."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest
from fakes.posix_model import KEEP_ALL, LOSE_ALL, PosixModel, SimulatedCrash

from casstore.backend.local.syscalls import SystemCalls

CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL
SEEDS = range(60)


def write(model, path, data, *, sync=False):
    fd = model.open(path, CREATE)
    model.write(fd, [data])
    if sync:
        model.fsync(fd)
    model.close(fd)


def sync_directory(model, path):
    fd = model.open(path, os.O_RDONLY | os.O_DIRECTORY)
    model.fsync(fd)
    model.close(fd)


def outcomes(model):
    return {tuple(sorted(model.crash(choice).tree().items())) for choice in (LOSE_ALL, KEEP_ALL, *SEEDS)}


def test_every_call_is_replaced():
    public = {name for name in vars(SystemCalls) if not name.startswith("_")}
    assert public <= set(vars(PosixModel))


def test_nothing_synced_nothing_promised():
    model = PosixModel()
    write(model, "/f", b"abcd")
    found = outcomes(model)
    assert () in found, "the name may be lost"
    assert (("/f", b""),) in found, "the bytes may be lost"
    assert (("/f", b"abcd"),) in found, "all of it may survive"
    assert any(files and 0 < len(files[0][1]) < 4 for files in found), "a part may survive"


def test_synced_bytes_under_an_unsynced_name():
    model = PosixModel()
    write(model, "/f", b"abcd", sync=True)
    assert outcomes(model) == {(), (("/f", b"abcd"),)}


def test_a_synced_name_with_unsynced_bytes():
    model = PosixModel()
    write(model, "/f", b"abcd")
    sync_directory(model, "/")
    found = outcomes(model)
    assert () not in found
    assert (("/f", b""),) in found


def test_bytes_and_name_synced():
    model = PosixModel()
    write(model, "/f", b"abcd", sync=True)
    sync_directory(model, "/")
    assert outcomes(model) == {(("/f", b"abcd"),)}


def test_writes_may_survive_in_any_subset():
    model = PosixModel()
    fd = model.open("/f", CREATE)
    for part in (b"a", b"b", b"c"):
        model.write(fd, [part])
    sync_directory(model, "/")
    found = {dict(files)["/f"] for files in outcomes(model)}
    assert found >= {b"", b"a", b"ab", b"abc", b"\0b", b"\0bc", b"\0\0c", b"a\0c"}


def test_a_directory_whose_parent_was_not_synced():
    model = PosixModel()
    model.mkdir("/d", 0o700)
    write(model, "/d/f", b"x", sync=True)
    sync_directory(model, "/d")
    assert outcomes(model) == {(), (("/d/f", b"x"),)}
    sync_directory(model, "/")
    assert outcomes(model) == {(("/d/f", b"x"),)}


def test_links_and_removals_survive_independently():
    model = PosixModel()
    write(model, "/f", b"x", sync=True)
    sync_directory(model, "/")
    model.link("/f", "/g")
    model.unlink("/f")
    names = {tuple(path for path, _ in files) for files in outcomes(model)}
    assert names == {("/f",), ("/g",), ("/f", "/g"), ()}
    sync_directory(model, "/")
    assert outcomes(model) == {(("/g", b"x"),)}


def test_a_killed_process_loses_nothing_yet():
    model = PosixModel()
    write(model, "/f", b"x")
    alive = model.kill()
    assert alive.tree() == {"/f": b"x"}
    assert alive.crash(LOSE_ALL).tree() == {}


def test_the_survivor_is_durable_and_apart():
    model = PosixModel()
    write(model, "/f", b"x", sync=True)
    sync_directory(model, "/")
    disk = model.crash(LOSE_ALL)
    assert disk.crash(LOSE_ALL).tree() == {"/f": b"x"}
    model.unlink("/f")
    assert disk.tree() == {"/f": b"x"}


def test_a_failed_fsync_drops_the_bytes_for_good():
    model = PosixModel()
    fd = model.open("/f", CREATE)
    sync_directory(model, "/")
    model.write(fd, [b"lost"])
    model.fail("fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        model.fsync(fd)
    model.fsync(fd)
    assert model.tree() == {"/f": b"lost"}, "the page cache still shows them"
    assert {dict(files)["/f"] for files in outcomes(model)} == {b""}


def test_crash_at_a_call_and_ever_after():
    model = PosixModel(crash_at=2)
    fd = model.open("/f", CREATE)
    model.write(fd, [b"x"])
    for _ in range(3):
        with pytest.raises(SimulatedCrash):
            model.fsync(fd)
    with pytest.raises(SimulatedCrash):
        model.unlink("/f")
    assert model.calls == ["open", "write"]
    assert model.tree() == {"/f": b"x"}
    assert not issubclass(SimulatedCrash, Exception)


def test_errors_by_index_and_by_name():
    model = PosixModel(errors={1: errno.ENOSPC})
    fd = model.open("/f", CREATE)
    with pytest.raises(OSError, match="No space"):
        model.write(fd, [b"x"])
    model.fail("write", errno.EIO, nth=1)
    model.write(fd, [b"y"])
    with pytest.raises(OSError, match="Input/output"):
        model.write(fd, [b"z"])
    assert model.tree() == {"/f": b"y"}


def test_short_transfers():
    model = PosixModel(short=3)
    fd = model.open("/f", CREATE)
    assert model.write(fd, [b"ab", b"cdef"]) == 3
    assert model.write(fd, [b"def"]) == 3
    assert model.pread(fd, 100, 1) == b"bcd"
    buffer = bytearray(10)
    assert model.pread_into(fd, memoryview(buffer), 4) == 2


def test_names():
    model = PosixModel()
    with pytest.raises(FileNotFoundError):
        model.open("/f", os.O_RDONLY)
    write(model, "/f", b"x")
    with pytest.raises(FileExistsError):
        model.open("/f", CREATE)
    with pytest.raises(NotADirectoryError):
        model.open("/f/g", CREATE)
    write(model, "/g", b"y")
    for call in (model.link, model.rename_exclusive):
        with pytest.raises(FileExistsError):
            call("/f", "/g")
    model.rename("/f", "/g")
    assert model.tree() == {"/g": b"x"}


def test_locks():
    model = PosixModel()
    one, two = model.open("/l", os.O_RDWR | os.O_CREAT), model.open("/l", os.O_RDWR)
    model.flock(one, fcntl.LOCK_SH)
    model.flock(two, fcntl.LOCK_SH)
    with pytest.raises(BlockingIOError):
        model.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    model.flock(one, fcntl.LOCK_UN)
    model.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(BlockingIOError):
        model.flock(one, fcntl.LOCK_SH | fcntl.LOCK_NB)
    model.close(two)
    model.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
