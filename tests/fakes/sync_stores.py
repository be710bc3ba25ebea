"""Stores on faulty backends, and what two stores have to show after a sync."""

from __future__ import annotations

import itertools
import uuid

from contract import backends  # noqa: F401  # registers objects://, an object store as fsspec presents one
from fakes.faulty_backend import FaultyBackend
from fakes.stores import read_model, write_model

from casstore.backend import LocalBackend, MemoryBackend, RetryingBackend, RetryPolicy
from casstore.backend.fsspec_backend import FsspecBackend
from casstore.format import names
from casstore.store.identity import identify
from casstore.store.machine import MachineState
from casstore.store.store import Store

_folders = itertools.count()


class Side:
    """One place, and any number of ways to it: `plain`, or through `faulty`, with or without retries."""

    def __init__(self, kind, tmp_path):
        self.tmp_path = tmp_path
        name = uuid.uuid4().hex
        make = {
            "memory": lambda: MemoryBackend(name),
            "local": lambda: LocalBackend(tmp_path / name, create=True),
            "objects": lambda: FsspecBackend(f"objects://{name}/store", create=True),
        }
        self.backend = make[kind]()
        self.store_id = identify(self.backend, create=True).store_id
        self.plain = self.open(self.backend)
        self.faulty = FaultyBackend(self.backend)

    def open(self, backend):
        return Store(backend, store_id=self.store_id, machine=MachineState(None))

    def broken(self, *, tries=None):
        """Return the store behind the faults; with `tries`, requests are repeated without pauses."""
        if tries is None:
            return self.open(self.faulty)
        ticks = itertools.count()
        policy = RetryPolicy(
            deadline=tries, clock=lambda: next(ticks), sleep=lambda _: None, jitter=lambda low, high: 0.0
        )
        return self.open(RetryingBackend(self.faulty, policy))

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
