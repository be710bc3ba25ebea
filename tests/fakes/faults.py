"""Faults for one operation of a store: at which call, of which kind, once or from then on, at two levels.

The store lies on a modelled disk. At the level "calls" a system call fails, at the level "backend" a call of the backend.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from fakes.faulty_backend import FaultyBackend
from fakes.posix_model import LOSE_ALL
from fakes.stores import ROOT, Disk

from casstore.backend import LocalBackend
from casstore.backend.oserrors import from_os_error
from casstore.machine.state import MachineState
from casstore.store.identity import identify
from casstore.store.model_store import ModelStore

_TAKE_ROOM = frozenset(("write", "mkdir", "link", "rename", "rename_exclusive", "fsync"))
_BACKEND_TAKES_ROOM = frozenset(("put", "create", "open_writer", "write", "commit", "creates_exclusively"))


@dataclass(frozen=True)
class Fault:
    """What happens: an error, or a write that moves half of what it was given (`number` is None)."""

    number: int | None
    lasting: bool

    def __str__(self):
        what = "short write" if self.number is None else errno.errorcode[self.number]
        return f"{what} {'from then on' if self.lasting else 'once'}"


FAULTS = tuple(
    Fault(number, lasting)
    for number in (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE, None)
    for lasting in (False, True)
)


class FaultyDisk(Disk):
    """A disk with one fault, from the call with the index `at` on.

    A failed fsync of a file drops its bytes. One of a directory drops nothing, as with journals, which keep a change or stop
    everything: no program could make durable that a name is gone if the kernel forgot to write that.
    """

    fault = None
    at = 0

    def arm(self, fault, at):
        self.fault, self.at = fault, at
        self.named = []

    def _is_hit(self, name, index):
        """Say whether the fault is at this call."""
        fault = self.fault
        if fault is None or index < self.at or (index > self.at and not fault.lasting):
            return False
        return not fault.lasting or fault.number != errno.ENOSPC or name in _TAKE_ROOM

    def _enter(self, name, path=None):
        index = len(self.calls)
        number = super()._enter(name, path)
        if self.fault is not None and name == "link":
            self.named.append((index, path.removeprefix(f"{ROOT}/")))
        return self.fault.number if self._is_hit(name, index) else number

    def fsync(self, fd):
        node = self._describe(fd).node
        if self._is_hit("fsync", len(self.calls)) and node.mode & stat.S_IFDIR:
            self._check("fsync")
        super().fsync(fd)

    def write(self, fd, parts):
        if self._is_hit("write", len(self.calls)) and self.fault.number is None:
            data = b"".join(parts)
            parts = [data[: max(1, len(data) // 2)]]
        return super().write(fd, parts)


class Rig:
    """One attempt of an operation: `store` to run it on, and what came of it."""

    def __init__(self, before, level):
        self.disk = FaultyDisk.holding(before.crash(LOSE_ALL))
        self.level = level
        backend = LocalBackend(ROOT, calls=self.disk)
        store_id = identify(backend, create=False).store_id
        if level == "backend":
            backend = FaultyBackend(backend)
        self.backend = backend
        self.store = ModelStore(backend, store_id=store_id, machine=MachineState(None))

    @property
    def calls(self):
        """Calls so far, at the level of the faults."""
        return self.disk.calls if self.level == "calls" else self.backend.calls

    def arm(self, fault, at):
        """Let the fault come `at` calls from now."""
        self.end = len(self.calls) + at
        if self.level == "calls":
            self.disk.arm(fault, self.end)
            return
        error = OSError(fault.number, os.strerror(fault.number))
        told = from_os_error(error, "do this", retryable=False)
        told.__cause__ = error
        if not fault.lasting:
            self.backend.fail_at(self.end, told)
        elif fault.number == errno.ENOSPC:
            self.backend.fail_from(self.end, told, _BACKEND_TAKES_ROOM)
        else:
            self.backend.fail_from(self.end, told)

    @property
    def was_reached(self):
        """Whether the operation was long enough for the fault."""
        return len(self.calls) > self.end

    def records_after_the_fault(self):
        """Return the records that are there and got their names after the fault."""
        if self.level == "calls":
            named = self.disk.named
        else:
            named = [(at, key) for at, (what, key) in enumerate(self.calls) if what in ("put", "create")]
        return [
            key
            for index, key in named
            if index > self.end and key.startswith("refs/") and f"{ROOT}/{key}" in self.disk.tree()
        ]

    def heal(self):
        """Let the disk work again."""
        self.disk.fault = None
        if self.level == "backend":
            self.backend.heal()
