"""A store that is a network away, as far as casstore can tell, and a count of what it is asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from casstore.backend.wrapper import BackendWrapper
from casstore.errors import BackendUnavailable
from casstore.machine.state import MachineState
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX
from casstore.store.model_store import ModelStore


@dataclass(frozen=True)
class Request:
    verb: str
    key: str
    start: int
    size: int


class FarBackend(BackendWrapper):
    """Hands calls on to a backend of this machine, and notes each: a request, were there a network between.

    `flip(key, offset)` has a bit of an object arrive wrong; `unplugged` makes every read fail; `hold` is an event
    that reads of packs wait for, if there is one, and `most_at_once` how many have waited together.
    """

    def __init__(self, inner):
        super().__init__(inner)
        self.url = "far://away"
        self.is_remote = True
        self.requests = []
        self.unplugged = False
        self.hold = None
        self.most_at_once = 0
        self._at_once = 0
        self._flips = {}
        self._lock = threading.Lock()

    def flip(self, key, offset):
        self._flips.setdefault(key, []).append(offset)

    def mend(self):
        self._flips.clear()

    def take(self):
        """Return the requests since the last call."""
        with self._lock:
            requests, self.requests = self.requests, []
        return requests

    def local_path(self, key):
        return None

    def read(self, key, *, start=0, length=None):
        data = bytearray(self.inner.read(key, start=start, length=length))
        self._arrive("read", key, memoryview(data), start)
        return bytes(data)

    def read_into(self, key, buffer, *, start=0):
        count = self.inner.read_into(key, buffer, start=start)
        self._arrive("read", key, buffer[:count], start)
        return count

    def stat(self, key):
        self._note("stat", key)
        return self.inner.stat(key)

    def list(self, prefix):
        self._note("list", prefix)
        return self.inner.list(prefix)

    def list_keys(self, prefix):
        self._note("list", prefix)
        return self.inner.list_keys(prefix)

    def _arrive(self, verb, key, data, start):
        self._note(verb, key, start, len(data))
        if self.hold is not None and key.startswith(PACK_PREFIX):
            with self._lock:
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
            assert self.hold.wait(30)
            with self._lock:
                self._at_once -= 1
        if self.unplugged:
            raise BackendUnavailable("The network is gone.")
        for offset in self._flips.get(key, ()):
            if start <= offset < start + len(data):
                data[offset - start] ^= 1

    def _note(self, verb, key, start=0, size=0):
        with self._lock:
            self.requests.append(Request(verb, key, start, size))


def far_store(near, *, state=None, **options):
    """Return a store that reads what `near` holds from far away, and the backend that counts.

    `state` is where this machine keeps what it knows of it.
    """
    backend = FarBackend(near.backend)
    machine = MachineState(state)
    opened = ModelStore(backend, store_id=bytes.fromhex(near.store_id), machine=machine, **options)
    return opened, backend


def of_packs(requests):
    return [request for request in requests if request.verb == "read" and request.key.startswith(PACK_PREFIX)]


def of_index(requests):
    return [
        request for request in requests if request.verb == "read" and request.key.startswith(INDEX_PREFIX)
    ]


def total(requests):
    return sum(request.size for request in requests)
