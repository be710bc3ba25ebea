"""A backend that fails, lies or stops where a test tells it to."""

from __future__ import annotations

from dataclasses import replace

from fakes.posix_model import SimulatedCrash

from casstore.backend.base import BlobWriter, Throttled
from casstore.backend.wrapper import BackendWrapper
from casstore.errors import BackendUnavailable

_NETWORK = frozenset(("read", "read_into", "stat", "list", "put", "create", "commit", "delete"))


class FaultyBackend(BackendWrapper):
    """Counts the calls that reach `inner`, writers' calls included, and breaks the ones it is told to.

    `calls` lists (operation, key) of every call so far; its length is the index of the next one.

        stop_at(k)             the process is gone at call k, before it has any effect, and at every later one
        fail_at(k, error)      call k raises this error without effect
        fail_next(op, error)   the next `times` calls of this operation do
        lose_answer_at(k)      call k does its work and then raises BackendUnavailable
        lose_answers(n, ops)   every nth call of one of these operations does
        hide(keys)             list leaves them out, as a stale or short listing does
        shorten_listings(n)    list stops after n entries without an error
        freeze_listings()      list shows what there was at this moment
        corrupt(key, offset)   reads of this key have a bit flipped at this offset
        unplug_at(k)           the network is gone at call k and at every later one
        fail_from(k, error)    call k and every later one, or those of some operations, raise this error
        drop_bodies(n)         the next n reads break off half way, with an error
        shorten_reads(size)    a ranged read gives at most so many bytes, without an error
        empty(key)             this object has no bytes, as after a crash of its server
        rain(n)                every nth call over the network fails in the next of the ways that a retry mends
    """

    def __init__(self, inner):
        super().__init__(inner)
        self.calls: list[tuple[str, str]] = []
        self._stop = None
        self._errors = {}
        self._next: list[list] = []
        self._lost = set()
        self._losing = None
        self._hidden = set()
        self._longest = None
        self._frozen = None
        self._flips: dict[str, list[tuple[int, int]]] = {}
        self._unplugged = None
        self._lasting = None
        self._dropped = 0
        self._read_limit = None
        self._emptied = set()
        self._rain = None
        self.rained = 0

    def stop_at(self, index):
        self._stop = index

    def fail_at(self, index, error):
        self._errors[index] = error

    def fail_next(self, operation, error, *, times=1):
        self._next.append([operation, error, times])

    def lose_answer_at(self, index):
        self._lost.add(index)

    def lose_answers(self, every, operations):
        self._losing = (every, frozenset(operations))

    def hide(self, keys):
        self._hidden.update(keys)

    def shorten_listings(self, count):
        self._longest = count

    def freeze_listings(self):
        self._frozen = list(self.inner.list(""))

    def corrupt(self, key, offset, *, bit=0):
        self._flips.setdefault(key, []).append((offset, 1 << bit))

    def unplug_at(self, index):
        self._unplugged = index

    def fail_from(self, index, error, operations=None):
        self._lasting = (index, error, operations)

    def drop_bodies(self, times):
        self._dropped = times

    def shorten_reads(self, size):
        self._read_limit = size

    def empty(self, key):
        self._emptied.add(key)

    def rain(self, every):
        self._rain = every

    def heal(self):
        """Behave from now on; the count goes on."""
        self._stop, self._longest, self._frozen, self._lasting = None, None, None, None
        self._unplugged, self._dropped, self._read_limit, self._losing = None, 0, None, None
        self._rain = None
        for faults in (self._errors, self._next, self._lost, self._hidden, self._flips, self._emptied):
            faults.clear()

    def call(self, operation, key, work):
        index = len(self.calls)
        if self._stop is not None and index >= self._stop:
            raise SimulatedCrash(f"at call {index}, {operation} {key}")
        self.calls.append((operation, key))
        if self._unplugged is not None and index >= self._unplugged:
            raise BackendUnavailable(f"The network is gone: {operation} {key}.")
        if self._lasting is not None:
            first, error, operations = self._lasting
            if index >= first and (operations is None or operation in operations):
                raise error
        if index in self._errors:
            raise self._errors[index]
        for rule in self._next:
            if rule[0] == operation and rule[2] > 0:
                rule[2] -= 1
                raise rule[1]
        falls = self._rain and operation in _NETWORK and index % self._rain == 0
        if falls:
            self.rained += 1
            # A writer keeps what it wrote until it hears that it arrived, so its answers are not lost here.
            ways = ["busy", "gone"] if operation == "commit" else ["busy", "lost", "gone"]
            way = ways[self.rained % len(ways)]
            if way == "busy":
                raise Throttled(f"503 to {operation} {key}")
            if way == "gone":
                raise BackendUnavailable(f"The connection broke before {operation} {key}.")
            work()
            raise BackendUnavailable(f"The answer to {operation} {key} got lost.")
        result = work()
        losing = self._losing and operation in self._losing[1] and index % self._losing[0] == 0
        if index in self._lost or losing:
            raise BackendUnavailable(f"The answer to {operation} {key} got lost.")
        return result

    def _flip(self, key, data, start):
        data = bytearray(data)
        for offset, mask in self._flips.get(key, ()):
            if start <= offset < start + len(data):
                data[offset - start] ^= mask
        return bytes(data)

    @property
    def creates_exclusively(self):
        return self.call("creates_exclusively", "", lambda: self.inner.creates_exclusively)

    def read(self, key, *, start=0, length=None):
        data = self.call("read", key, lambda: self.inner.read(key, start=start, length=length))
        self._maybe_drop("read", key)
        if key in self._emptied:
            return b""
        return self._flip(key, data, start) if key in self._flips else data

    def read_into(self, key, buffer, *, start=0):
        if self._read_limit is not None:
            buffer = buffer.cast("B")[: self._read_limit]
        if self._dropped:
            self.inner.read_into(key, buffer.cast("B")[: buffer.nbytes // 2], start=start)
            self._maybe_drop("read_into", key)
        if key in self._emptied:
            return self.call("read_into", key, lambda: 0)
        count = self.call("read_into", key, lambda: self.inner.read_into(key, buffer, start=start))
        if key in self._flips:
            buffer.cast("B")[:count] = self._flip(key, buffer.cast("B")[:count], start)
        return count

    def _maybe_drop(self, operation, key):
        if self._dropped:
            self._dropped -= 1
            self.calls.append((operation, key))
            raise BackendUnavailable(f"The connection broke in the middle of {operation} {key}.")

    def stat(self, key):
        return self._shown(self.call("stat", key, lambda: self.inner.stat(key)))

    def _shown(self, entry):
        return replace(entry, size=0) if entry.key in self._emptied else entry

    def list(self, prefix):
        entries = self.call("list", prefix, lambda: [*self.inner.list(prefix)])
        if self._frozen is not None:
            entries = [entry for entry in self._frozen if entry.key.startswith(prefix)]
        shown = [self._shown(entry) for entry in entries if entry.key not in self._hidden]
        yield from shown[: self._longest]

    def list_keys(self, prefix):
        # A listing like any other, so that every fault of `list` is one of this, too.
        return (entry.key for entry in self.list(prefix))

    def put(self, key, parts):
        self.call("put", key, lambda: self.inner.put(key, parts))

    def create(self, key, parts):
        self.call("create", key, lambda: self.inner.create(key, parts))

    def open_writer(self):
        return _FaultyWriter(self, self.call("open_writer", "", self.inner.open_writer))

    def delete(self, key):
        self.call("delete", key, lambda: self.inner.delete(key))

    def list_temporaries(self):
        yield from self.call("list_temporaries", "", lambda: [*self.inner.list_temporaries()])

    def remove_temporary(self, key):
        self.call("remove_temporary", key, lambda: self.inner.remove_temporary(key))

    def make_durable(self, keys):
        keys = [*keys]
        self.call("make_durable", " ".join(keys), lambda: self.inner.make_durable(keys))

    def publish_lock(self, *, exclusive=False, blocking=True):
        return self.call(
            "publish_lock", "", lambda: self.inner.publish_lock(exclusive=exclusive, blocking=blocking)
        )

    def local_path(self, key):
        # A mapped file would go round the faults.
        self.inner.local_path(key)


class _FaultyWriter(BlobWriter):
    def __init__(self, backend, inner):
        self._backend = backend
        self._inner = inner
        self.offset = 0

    def write(self, parts):
        self._backend.call("write", "", lambda: self._inner.write(parts))
        self.offset = self._inner.offset

    def commit(self, key):
        self._backend.call("commit", key, lambda: self._inner.commit(key))

    def discard(self):
        stop = self._backend._stop
        # A process that is gone discards nothing; what it wrote stays behind as a temporary.
        if stop is None or len(self._backend.calls) < stop:
            self._inner.discard()
