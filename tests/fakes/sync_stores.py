"""Stores on faulty backends, and what two stores have to show after a sync."""

from __future__ import annotations

import itertools
import uuid

import fsspec
from contract.backends import ObjectDriver, ObjectFileSystem
from fakes.faulty_backend import FaultyBackend
from fakes.stores import noise, read_model, write_model

from casstore.backend import LocalBackend, MemoryBackend, RetryingBackend, RetryPolicy
from casstore.backend.fsspec.backend import FsspecBackend
from casstore.format import names
from casstore.format.marks import FORMAT_KEY
from casstore.machine.state import MachineState
from casstore.store.identity import identify
from casstore.store.model_store import ModelStore

_folders = itertools.count()


class FlakyFileSystem(ObjectFileSystem):
    """An object store that does every nth upload and then loses the answer."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012  # as in ObjectFileSystem
    pseudo_dirs = [""]  # noqa: RUF012  # as above
    lose_every = 0
    lost = 0
    _uploads = itertools.count(1)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode=mode, **kwargs)
        self._maybe_lose(path)

    def put_file(self, lpath, rpath, **kwargs):
        super().put_file(lpath, rpath, **kwargs)
        self._maybe_lose(rpath)

    def _maybe_lose(self, path):
        if self.lose_every and next(self._uploads) % self.lose_every == 0:
            type(self).lost += 1
            raise ConnectionResetError(f"The answer to {path} got lost.")


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


class Side:
    """One place, and any number of ways to it: `plain`, or through `faulty`, with or without retries.

    With `rain`, a number, the plain way is one on which every so manyth call fails, and is retried.
    """

    rain = None

    def __init__(self, kind, tmp_path):
        self.tmp_path = tmp_path
        name = uuid.uuid4().hex
        make = {
            "memory": lambda: MemoryBackend(name),
            "local": lambda: LocalBackend(tmp_path / name, create=True, durability="none"),
            "objects": lambda: FsspecBackend(f"objects://{name}/store", create=True, driver=ObjectDriver),
            "flaky": lambda: FsspecBackend(f"flaky://{name}/store", create=True, driver=ObjectDriver),
        }
        self.backend = make[kind]()
        self.store_id = identify(self.backend, create=True).store_id
        self.weather = FaultyBackend(self.backend)
        self.plain = (
            self.open(self.backend) if self.rain is None else self.retrying(self.weather, tries=10**6)
        )
        if self.rain is not None:
            self.weather.rain(self.rain)
        self.faulty = FaultyBackend(self.backend)

    def open(self, backend):
        return ModelStore(backend, store_id=self.store_id, machine=MachineState(None))

    def broken(self, *, tries=None):
        """Return the store behind the faults; with `tries`, requests are repeated without pauses."""
        if tries is None:
            return self.open(self.faulty)
        return self.retrying(self.faulty, tries=tries)

    def retrying(self, backend=None, *, tries=12):
        ticks = itertools.count()
        policy = RetryPolicy(
            deadline=tries, clock=lambda: next(ticks), sleep=lambda _: None, jitter=lambda low, high: 0.0
        )
        return self.open(RetryingBackend(backend or self.backend, policy))

    def files(self):
        """Return the files of the store by their keys: all but the one that names the store."""
        keys = [entry.key for entry in self.backend.list("") if entry.key != FORMAT_KEY]
        return {key: bytes(self.backend.read(key)) for key in keys}

    def hold(self, files):
        """Hold files of another store: what costs little beside adding the same models again."""
        for key, data in files.items():
            self.backend.put(key, [data])
        return self

    def add(self, ref, content, **options):
        folder = write_model(content, self.tmp_path / f"model-{next(_folders)}")
        return self.plain.add(folder, ref=ref, **options)


def shown(store):
    """Return everything that the refs of a store say: models as their files, manifests as bytes."""
    found = {}
    for name, record in store.refs().items():
        if names.names_model(name):
            value = (record.target, record.base, read_model(store, name))
        else:
            value = (record.target, record.base, store.manifest_of(record))
        found[name] = (value, record.metadata)
    return found


def source_files(folder, models, *, best):
    """Return the files of a store in memory with these models, a tag, and a small and a large run, by their keys."""
    side = Side("memory", folder)
    for name, content in models.items():
        side.add(name, content)
    side.plain.tag("best", best)
    side.plain.put_manifest("runs/small", b"a run")
    side.plain.put_manifest("runs/large", noise(9, 20_000))
    return side.files()
