"""Writers that cannot hold the publishers' lock, beside a collector that can."""

from __future__ import annotations

import os
import threading
import time

import pytest
from fakes.collector import collect_alone, packs_of, unsafe_objects
from fakes.stores import noise

from casstore import Store
from casstore.backend import LocalBackend, MemoryBackend, RetryingBackend, RetryPolicy, open_backend
from casstore.backend.base import LOCKLESS
from casstore.backend.fsspec.backend import FsspecBackend
from casstore.backend.local.syscalls import SystemCalls
from casstore.errors import BackendUnavailable
from casstore.machine.state import MachineState
from casstore.store.identity import identify
from casstore.store.model_store import ModelStore

WAIT = 0.4


class Nfs(SystemCalls):
    def file_system_type(self, path):
        return "nfs4"


def open_lockless(root, *, wait=WAIT, create=False):
    """Open a store as a client of a network mount does."""
    backend = LocalBackend(root, create=create, calls=Nfs(), marker_wait=wait)
    identity = identify(backend, create=create)
    return ModelStore(backend, store_id=identity.store_id, machine=MachineState(None))


def open_through_fsspec(root):
    backend = FsspecBackend(f"file://{root}")
    return ModelStore(backend, store_id=identify(backend, create=False).store_id, machine=MachineState(None))


@pytest.fixture
def near(root, model):
    """Return a store whose only model is deleted: its pack is free for the taking."""
    with Store(root, create=True, durability="none") as store:
        store.add(model, ref="models/old")
        store.rm("models/old")
        yield store


WRITERS = {"nfs": open_lockless, "fsspec": open_through_fsspec}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_marker_is_there_before_the_first_pack(root, near, model, tmp_path, writer):
    other = tmp_path / "other.bin"
    other.write_bytes(noise(2, 100_000))
    far = WRITERS[writer](root)
    assert not os.path.exists(root / LOCKLESS), "opening writes nothing"
    packs = packs_of(near.backend)
    with near.backend.publish_lock(exclusive=True, blocking=False) as alone, far.publication():
        assert alone
        assert near.backend.has_lockless_writers()
        assert packs_of(near.backend) == packs
    assert collect_alone(near.backend) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_a_first_publish_while_a_collector_is_under_way(root, near, model, writer):
    far = WRITERS[writer](root)
    # Everything is decided; the packs that this add finds there are condemned.
    gone = collect_alone(near.backend, meanwhile=lambda: far.add(model, ref="models/new"))
    assert gone
    assert unsafe_objects(near.backend, "models/new") == set()


@pytest.mark.parametrize("marks", [False, True])
def test_a_record_that_comes_between_mark_and_delete(root, near, model, monkeypatch, marks):
    """The writer has checked its packs and is about to put its record when a collector decides about them."""
    far = open_lockless(root, wait=0)
    if not marks:
        # Safety does not rest on the marker: the second check finds the tombstone (design §8).
        monkeypatch.setattr(far.backend, "mark_lockless", lambda: None)
    about_to, go = threading.Event(), threading.Event()
    put = far._refs.put

    def late(record):
        about_to.set()
        assert go.wait(30)
        put(record)

    monkeypatch.setattr(far._refs, "put", late)
    writer = threading.Thread(target=far.add, args=(model,), kwargs={"ref": "models/new"})
    writer.start()
    assert about_to.wait(30)

    def finish():
        go.set()
        writer.join(30)

    gone = collect_alone(near.backend, meanwhile=finish)
    finish()
    assert bool(gone) is not marks
    assert unsafe_objects(near.backend, "models/new") == set()


def test_the_record_waits_until_every_machine_sees_the_marker(root, near, model):
    far = open_lockless(root)
    started = time.monotonic()
    far.add(model, ref="models/a")
    assert time.monotonic() - started >= WAIT
    # Another one finds the marker; caches may hide it from others for as long.
    os.utime(root / LOCKLESS)
    started = time.monotonic()
    open_lockless(root, wait=1.0).add(model, ref="models/b")
    assert time.monotonic() - started >= 0.8
    # An old marker is seen by all, and nobody waits twice.
    os.utime(root / LOCKLESS, (time.time() - 100,) * 2)
    later = open_lockless(root, wait=50)
    later.add(model, ref="models/c")
    far.add(model, ref="models/d")
    assert sorted(near.refs()) == ["models/a", "models/b", "models/c", "models/d"]


def test_a_marker_from_another_clock_is_not_waited_for(root, near, model):
    (root / "gc").mkdir(exist_ok=True)
    (root / LOCKLESS).write_bytes(b"x")
    os.utime(root / LOCKLESS, (time.time() + 10_000,) * 2)
    open_lockless(root, wait=60).add(model, ref="models/a")


def test_who_makes_the_store_never_waits(root, model):
    far = open_lockless(root, wait=60, create=True)
    assert (root / LOCKLESS).exists()
    far.add(model, ref="models/a")
    open_lockless(root, wait=60).add(model, ref="models/b")


def test_a_mount_without_caches_is_not_waited_for(root, near, model):
    class Unknown(SystemCalls):
        def file_system_type(self, path):
            return "exfat"

    backend = LocalBackend(root, calls=Unknown(), marker_wait=60)
    ModelStore(backend, store_id=bytes.fromhex(near.store_id), machine=MachineState(None)).add(
        model, ref="models/a"
    )
    assert (root / LOCKLESS).exists()


def test_making_a_store_may_be_begun_again(root):
    far = LocalBackend(root, create=True, calls=Nfs())
    far.mark_lockless()
    with Store(root, create=True) as store:
        assert store.refs() == {}


@pytest.mark.parametrize(
    "protocol", ["sftp", "ssh", "smb", "ftp", "webdav", "hdfs", "webhdfs", "dbfs", "made-up"]
)
def test_what_may_be_a_folder_somewhere_leaves_the_marker(protocol, monkeypatch):
    assert _folder(protocol, monkeypatch)


@pytest.mark.parametrize(
    "protocol", ["s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory", "http", "https"]
)
def test_buckets_need_no_marker(protocol, monkeypatch):
    assert not _folder(protocol, monkeypatch)


def _folder(protocol, monkeypatch):
    if protocol == "memory":
        return open_backend("memory://somewhere").may_be_locked_by_others
    monkeypatch.setattr(
        "casstore.backend.fsspec.connection.connect", lambda _, driver, *__: driver(_Nothing())
    )
    return RetryingBackend(FsspecBackend(f"{protocol}://somewhere")).may_be_locked_by_others


class _Nothing:
    def _strip_protocol(self, url):
        return url.partition("://")[2]

    def info(self, path):
        return {"name": path}

    def require_index(self, root):
        pass


def test_the_marker_survives_outages():
    class Flaky(MemoryBackend):
        may_be_locked_by_others = True
        failures = 2

        def put(self, key, parts):
            if self.failures:
                self.failures -= 1
                raise BackendUnavailable("busy")
            super().put(key, parts)

    backend = RetryingBackend(Flaky("lockless"), RetryPolicy(sleep=lambda _: None))
    with backend.publish_lock() as held:
        assert not held
        assert backend.has_lockless_writers()
