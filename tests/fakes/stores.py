"""Small stores and models for tests of the store: on a disk that crashes, in memory, compared as dicts."""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace

from blake3 import blake3
from fakes.posix_model import PosixModel

from casstore.api.store import Store
from casstore.backend import LocalBackend
from casstore.digest import digest
from casstore.machine.state import MachineState
from casstore.objects.publishing import pack_writer as packs
from casstore.ops.check import check
from casstore.ops.gc import tombstones
from casstore.refs import refs
from casstore.store.identity import identify
from casstore.store.model_store import ModelStore

ROOT = "/srv/store"
_times = itertools.count(1_000_000_000)


@dataclass(frozen=True)
class Content:
    """What a model is: path → (bytes, executable), and the directories that hold nothing."""

    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)
    empty: frozenset[str] = frozenset()

    @property
    def size(self):
        return sum(len(data) for data, _ in self.files.values())


def model_of(**files):
    """Return a model of plain files; a double underscore in a name stands for a slash."""
    return Content({name.replace("__", "/"): (data, False) for name, data in files.items()})


def write_model(content, folder):
    """Write a model to a new folder. Every file gets a time of its own, so that no two look unchanged."""
    os.makedirs(folder)
    for path in content.empty:
        os.makedirs(os.path.join(folder, path), exist_ok=True)
    for path, (data, executable) in content.files.items():
        place = os.path.join(folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(data)
        os.chmod(place, 0o700 if executable else 0o600)
        seconds = next(_times)
        os.utime(place, (seconds, seconds))
    return str(folder)


def read_model(store, ref):
    """Return a model as its content, read through open_file."""
    model = store.model(ref)
    files = {}
    for entry in model.tree.files:
        with store.open_file(ref, entry.path) as file:
            files[entry.path] = (file.read(), entry.path in model.executable)
    return Content(files, frozenset(model.tree.empty))


def read_folder(folder):
    """Return what lies in a folder as content."""
    files, empty = {}, set()
    for place, directories, names in os.walk(folder):
        inside = os.path.relpath(place, folder)
        if not directories and not names and inside != ".":
            empty.add(inside)
        for name in names:
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                executable = bool(os.stat(path).st_mode & 0o100)
                files[os.path.normpath(os.path.join(inside, name))] = (file.read(), executable)
    return Content(files, frozenset(empty))


def assert_clean(store, *, read_data=True):
    report = check(store, read_data=read_data)
    assert report.ok, report.problems
    return report


def assert_nothing_added(store):
    """What was refused left nothing behind: no ref, no temporary file, no damage."""
    assert store.refs() == {}
    assert list(store.backend.list_temporaries()) == []
    with Store(store.backend.url) as again:
        report = check(again, read_data=True)
        assert report.ok, report.problems
        assert report.records == 0


class InlineExecutor:
    """Runs work at once in the calling thread, so that calls come in one order only."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, *arguments, **named):
        future = Future()
        try:
            future.set_result(work(*arguments, **named))
        except BaseException as error:  # noqa: BLE001  # what an executor does
            future.set_exception(error)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):  # noqa: FBT002  # the executor's signature
        pass


def commit_inline(monkeypatch):
    """Let packs be committed by the thread that writes them."""
    monkeypatch.setattr(packs, "ThreadPoolExecutor", InlineExecutor)


def small_packs(monkeypatch, target):
    """Let packs be closed at `target` bytes."""
    monkeypatch.setattr(packs, "PACK_TARGET", target)
    monkeypatch.setattr(packs, "REMOTE_PACK_TARGET", target)


def repeat_randomness(monkeypatch):
    """Return a function after which nonces, write ids and times are those that followed its last call.

    They differ from all that came before its first call.
    """
    count, used = itertools.count(), b"before"

    def urandom(size):
        return digest(b"%b %d" % (used, next(count)))[:size]

    def time_ns():
        return 1_700_000_000_000_000_000 + next(count)

    def restart():
        nonlocal count, used
        count, used = itertools.count(), b"again"

    monkeypatch.setattr(packs, "os", SimpleNamespace(urandom=urandom))
    monkeypatch.setattr(refs, "os", SimpleNamespace(urandom=urandom))
    monkeypatch.setattr(tombstones, "uuid", SimpleNamespace(uuid4=lambda: uuid.UUID(bytes=urandom(16))))
    for module in (refs, tombstones):
        monkeypatch.setattr(module, "time", SimpleNamespace(time_ns=time_ns))
    return restart


def visible(disk):
    """Return a digest of every file that is not a temporary one."""
    shown = [(path, digest(data)) for path, data in disk.tree().items() if "/.tmp/" not in path]
    return digest(repr(sorted(shown)).encode())


class Disk(PosixModel):
    """The POSIX model for several threads: one call after the other."""

    def __init__(self, **options):
        self._turn = threading.RLock()
        super().__init__(**options)

    @classmethod
    def holding(cls, model, **options):
        """Return a disk with what `model` holds, sharing nothing with it but the tree."""
        return cls(_root=model._root, **options)


def _one_at_a_time(name):
    inner = getattr(PosixModel, name)

    def call(self, *arguments, **named):
        with self._turn:
            return inner(self, *arguments, **named)

    return call


for _name in (
    "open", "close", "write", "pread", "pread_into", "fsync", "start_writeback", "fstat", "stat", "fchmod",
    "chmod", "link", "rename", "rename_exclusive", "unlink", "mkdir", "rmdir", "scandir", "scan_kinds", "has_room", "flock",
):  # fmt: skip
    setattr(Disk, _name, _one_at_a_time(_name))


def open_on(disk, *, create=False):
    """Open the store on a disk of the model, as Store does."""
    backend = LocalBackend(ROOT, create=create, calls=disk)
    identity = identify(backend, create=create)
    return ModelStore(backend, store_id=identity.store_id, machine=MachineState(None))


def noise(seed, size):
    """Return bytes that nothing compresses, the same for the same seed; those of a larger size begin with them."""
    return blake3(b"%d" % seed).digest(length=size)
