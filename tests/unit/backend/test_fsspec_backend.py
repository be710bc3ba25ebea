from __future__ import annotations

import math
import os
import uuid
from datetime import datetime, timezone
from functools import partial

import fsspec
import pytest
from contract.backends import (
    ObjectDriver,
    ObjectFileSystem,
    fsspec_local,
    fsspec_objects,
    fsspec_renames,
    fsspec_unordered_bucket,
)
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from casstore.backend.fsspec.backend import FsspecBackend
from casstore.backend.fsspec.info import entry
from casstore.backend.fsspec.spool import SpoolingWriter, new_file
from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    ConfigError,
    ObjectExists,
    ObjectNotFound,
)

KEY = "packs/ab/x"


def register(cls):
    fsspec.register_implementation(cls.protocol, cls, clobber=True)
    return cls


@register
class IgnoresMode(ObjectFileSystem):
    protocol = "ignores-mode"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix(f"{cls.protocol}://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value)


@register
class RefusesMode(IgnoresMode):
    protocol = "refuses-mode"

    def pipe_file(self, path, value, **kwargs):
        if kwargs:
            raise TypeError("unexpected keyword argument 'mode'")
        super().pipe_file(path, value)


@register
class LooksFirst(IgnoresMode):
    """Has fsspec's default create, which looks and then writes: two writers may both succeed."""

    protocol = "looks-first"
    pipe_file = fsspec.AbstractFileSystem.pipe_file


@register
class Moody(IgnoresMode):
    """Raises `error` from every call but the first `calm` ones."""

    protocol = "moody"
    error = None
    calm = 0

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self.complain()
        ObjectFileSystem.pipe_file(self, path, value, mode=mode)

    def find(self, path, **kwargs):
        self.complain()
        return super().find(path, **kwargs)

    def complain(self):
        cls = type(self)
        if cls.error is not None:
            cls.calm -= 1
            if cls.calm < 0:
                raise cls.error


def make(protocol, **options):
    return FsspecBackend(
        f"{protocol}://{uuid.uuid4().hex}/store", create=True, driver=ObjectDriver, **options
    )


@pytest.fixture
def moody(monkeypatch):
    monkeypatch.setattr(Moody, "error", None)
    monkeypatch.setattr(Moody, "calm", 0)
    return make("moody")


@pytest.mark.parametrize("protocol", ["ignores-mode", "refuses-mode", "looks-first"])
def test_create_needs_the_servers_own(protocol):
    backend = make(protocol)
    assert not backend.creates_exclusively
    with pytest.raises(ConfigError):
        backend.create("refs/x", [b"x"])
    assert list(backend.list("")) == []
    backend.put("refs/x", [b"x"])
    with pytest.raises(ObjectExists):
        backend.put("refs/x", [b"y"])


def test_fsspecs_default_create_would_pass_a_trial():
    backend = make("looks-first")
    assert backend._publisher.try_create(), "or the check for the file system's own is not needed any more"


@pytest.mark.parametrize("calm", [0, 1])
@pytest.mark.parametrize("error", [TimeoutError(), PermissionError("no")])
def test_an_outage_is_no_answer_about_create(moody, calm, error, monkeypatch):
    monkeypatch.setattr(Moody, "error", error)
    monkeypatch.setattr(Moody, "calm", calm)
    with pytest.raises((BackendUnavailable, AccessDenied)):
        _ = moody.creates_exclusively
    monkeypatch.setattr(Moody, "error", None)
    assert moody.creates_exclusively
    assert list(moody.list("")) == [], "the trial leaves nothing behind"


def test_a_failed_listing_is_an_error(moody, monkeypatch):
    moody.put(KEY, [b"x"])
    monkeypatch.setattr(Moody, "error", OSError("half a listing"))
    with pytest.raises(BackendError):
        list(moody.list("packs/"))


@register
class Forbidding(LocalFileSystem):
    protocol = "forbidding"
    error = PermissionError("no")

    def ls(self, path, detail=False, **kwargs):  # noqa: FBT002  # fsspec's signature
        if path.endswith("/cd"):
            raise self.error
        return super().ls(path, detail=detail, **kwargs)


@pytest.mark.parametrize(
    "error", [PermissionError("no"), FileNotFoundError("x"), OSError("odd"), TimeoutError()]
)
def test_a_directory_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch, error):
    backend = FsspecBackend(f"forbidding://{tmp_path}/s", create=True)
    for key in ("packs/ab/1", "packs/cd/2", "packs/ef/3"):
        backend.put(key, [b"x"])
    monkeypatch.setattr(Forbidding, "error", error)
    fs = backend._connection.driver.fs
    assert len(fs.find(f"{tmp_path}/s/packs")) == 2, "fsspec's own find leaves it out"
    with pytest.raises(BackendError):
        list(backend.list(""))
    assert [entry.key for entry in backend.list("packs/ab/")] == ["packs/ab/1"]


def test_listing_caches_are_off(tmp_path):
    backend = FsspecBackend(f"file://{tmp_path}/s", create=True)
    assert backend._connection.driver.fs.dircache.use_listings_cache is False


def test_each_process_has_its_own_file_system(tmp_path, monkeypatch):
    backend = FsspecBackend(f"file://{tmp_path}/s", create=True)
    here = backend._connection.driver.fs
    assert backend._connection.driver.fs is here
    monkeypatch.setattr(os, "getpid", lambda: 1)
    there = backend._connection.driver.fs
    assert there is not here
    assert backend._connection.driver.fs is there


def test_a_half_written_object_never_shows(tmp_path, monkeypatch):
    backend = FsspecBackend(f"file://{tmp_path}/s", create=True)
    seen = []

    def torn(self, path, value, **kwargs):
        with open(path, "wb") as file:
            file.write(value[:1])
        seen.extend(entry.key for entry in backend.list(""))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "pipe_file", torn)
    with pytest.raises(BackendError, match="disk is full"):
        backend.put(KEY, [b"whole"])
    assert seen == []
    with pytest.raises(ObjectNotFound):
        backend.stat(KEY)
    assert list(backend.list_temporaries()) == []


def test_leftovers(tmp_path):
    backend = FsspecBackend(f"file://{tmp_path}/s", create=True)
    assert list(backend.list_temporaries()) == []
    (tmp_path / "s/.tmp").mkdir()
    (tmp_path / "s/.tmp/left").write_bytes(b"abc")
    [leftover] = backend.list_temporaries()
    assert (leftover.key, leftover.size) == (".tmp/left", 3)
    assert list(backend.list("")) == []
    for key in ("format", ".tmp/../x", ".tmp/"):
        with pytest.raises(ConfigError):
            backend.remove_temporary(key)
    backend.remove_temporary(".tmp/left")
    backend.remove_temporary(".tmp/left")
    assert list(backend.list_temporaries()) == []


def test_a_commit_can_be_repeated(moody, monkeypatch):
    with moody.open_writer() as writer:
        writer.write([b"abc"])
        monkeypatch.setattr(Moody, "error", TimeoutError())
        with pytest.raises(BackendUnavailable):
            writer.commit(KEY)
        monkeypatch.setattr(Moody, "error", None)
        writer.commit(KEY)
    assert moody.read(KEY) == b"abc"


def test_large_objects_are_spooled_to_a_file_that_no_kill_leaves_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    backend = make("objects")
    with backend.open_writer() as writer:
        writer.write([bytes(9 << 20)])
        assert list(tmp_path.iterdir()) == []
        writer.write([b"more"])
        writer.commit(KEY)
    assert backend.stat(KEY).size == (9 << 20) + 4


def test_large_objects_are_spooled_to_a_private_file(tmp_path, monkeypatch):
    """Where a file without a name cannot be opened again."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sent = {}

    def send(key, path):
        sent[key] = os.path.getsize(path)

    make_file = partial(new_file, str(tmp_path / "absent"))
    with SpoolingWriter(send, "objects://store", make_file=make_file) as writer:
        writer.write([bytes(8 << 20)])
        assert list(tmp_path.iterdir()) == []
        writer.write([b"more"])
        [kept] = tmp_path.iterdir()
        assert kept.stat().st_mode & 0o777 == 0o600
        writer.commit(KEY)
    assert list(tmp_path.iterdir()) == []
    assert sent == {KEY: (8 << 20) + 4}


def test_a_full_spool_names_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with make("objects").open_writer() as writer, pytest.raises(BackendError, match="TMPDIR"):
        writer.write([bytes(9 << 20)])


def test_a_spool_on_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sent = []
    full = partial(open, "/dev/full", "wb", buffering=0)
    with (
        SpoolingWriter(lambda *parts: sent.append(parts), "objects://store", make_file=full) as writer,
        pytest.raises(BackendError, match="TMPDIR") as failure,
    ):
        writer.write([bytes(9 << 20)])
    assert f"MiB are free on the file system of {tmp_path}" in str(failure.value)
    assert not sent


def test_objects_that_are_no_keys_are_left_out():
    backend = make("objects")
    backend.put(KEY, [b"x"])
    fs = ObjectFileSystem()
    for name in (".DS_Store", "packs/Upper", "packs/ab/x y"):
        fs.pipe_file(f"{backend._connection.root}/{name}", b"?")
    assert [item.key for item in backend.list("")] == [KEY]


@pytest.mark.parametrize(
    ("info", "seconds"),
    [
        ({"mtime": 12.5}, 12.5),
        ({"mtime": datetime(2024, 1, 1, tzinfo=timezone.utc)}, 1704067200.0),
        ({"LastModified": datetime(2024, 1, 1, tzinfo=timezone.utc)}, 1704067200.0),
        ({"last_modified": datetime(2024, 1, 1, tzinfo=timezone.utc)}, 1704067200.0),
        ({"updated": "2024-01-01T00:00:00Z"}, 1704067200.0),
        ({"updated": "2024-01-01T00:00:00.500Z"}, 1704067200.5),
        ({"updated": "yesterday", "created": 5}, 5.0),
        ({"mtime": None}, math.nan),
        ({}, math.nan),
    ],
)
def test_times(info, seconds):
    found = entry("k", {"size": 1, **info}).modified
    assert found == seconds or (math.isnan(found) and math.isnan(seconds))


def test_an_object_without_a_size():
    with pytest.raises(BackendError, match="size"):
        entry("k", {"size": None})


def test_memory_files_of_fsspec_are_not_ours():
    assert MemoryFileSystem.protocol == "memory"
    backend = FsspecBackend(f"memory://{uuid.uuid4().hex}", create=True, driver=ObjectDriver)
    backend.put(KEY, [b"x"])
    assert backend.read(KEY) == b"x"


@pytest.mark.parametrize("make", [fsspec_objects, fsspec_renames, fsspec_local, fsspec_unordered_bucket])
def test_what_other_programs_left_is_listed_apart(make, tmp_path):
    with make(tmp_path) as subject:
        backend = subject.backend
        connection = getattr(backend, "inner", backend)._connection
        fs = connection.driver.fs
        backend.put("packs/ab/key", [b"x"])
        for path in ("Thumbs.db", "packs/Notes.TXT", "packs/ab/A b/c", ".hidden/X", "packs/.X"):
            fs.makedirs(connection.path(path).rpartition("/")[0], exist_ok=True)
            fs.pipe_file(connection.path(path), b"y")
        assert sorted(backend.list_foreign()) == ["Thumbs.db", "packs/Notes.TXT", "packs/ab/A b/c"]
        assert list(backend.list_keys("")) == ["packs/ab/key"]
