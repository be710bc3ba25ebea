"""Objects in this process's memory, for tests and throw-away stores."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from casstore.backend.base import (
    Backend,
    BlobWriter,
    Entry,
    byte_views,
    validate_key,
    validate_prefix,
    validate_range,
)
from casstore.errors import BackendError, ObjectExists, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Buffer

# Name of a store → key → (bytes, time of writing). Only single dict operations touch these: they are atomic,
# so there is no lock that a forked child could inherit while it is held.
_stores: dict[str, dict[str, tuple[bytes, float]]] = {}


class MemoryBackend(Backend):
    """The store of this `name`: all backends of one name in one process share it.

    A forked child works on its own copy.
    """

    def __init__(self, name: str) -> None:
        self.url = f"memory://{name}"
        self._objects = _stores.setdefault(name, {})

    @property
    def creates_exclusively(self) -> bool:
        """True: inserting into a dict if absent is one operation."""
        return True

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return a slice of the object, or the object itself."""
        validate_range(start, length)
        data = self._get(key)[0]
        return data[start : None if length is None else start + length]

    def read_into(self, key: str, buffer: memoryview, *, start: int = 0) -> int:
        """Copy a slice into the caller's buffer."""
        validate_range(start, None)
        data = memoryview(self._get(key)[0])[start : start + buffer.nbytes]
        if data.nbytes:
            buffer.cast("B")[: data.nbytes] = data
        return data.nbytes

    def stat(self, key: str) -> Entry:
        """Look the object up."""
        data, modified = self._get(key)
        return Entry(key, len(data), modified)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield from a snapshot."""
        validate_prefix(prefix)
        for key, (data, modified) in sorted(self._objects.copy().items()):
            if key.startswith(prefix):
                yield Entry(key, len(data), modified)

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Insert if absent."""
        validate_key(key)
        value = (b"".join(byte_views(parts)), time.time())
        # Invariant 1: never replaces.
        if self._objects.setdefault(key, value) is not value:
            raise ObjectExists(f"{key} is in {self.url} already, and nothing is overwritten.")

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        """Insert if absent."""
        self.put(key, parts)

    def open_writer(self) -> BlobWriter:
        """Return a writer that collects the bytes."""
        return _MemoryWriter(self)

    def delete(self, key: str) -> None:
        """Remove the object."""
        # Invariant 5: only gc and repair call this, after confirming which copies survive.
        self._objects.pop(validate_key(key), None)

    def _get(self, key: str) -> tuple[bytes, float]:
        try:
            return self._objects[validate_key(key)]
        except KeyError:
            raise ObjectNotFound(f"There is no {key} in {self.url}.") from None


class _MemoryWriter(BlobWriter):
    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self._data: bytearray | None = bytearray()
        self.offset = 0

    def write(self, parts: Sequence[Buffer]) -> None:
        data = self._usable()
        for view in byte_views(parts):
            data += view
        self.offset = len(data)

    def commit(self, key: str) -> None:
        data = self._usable()
        validate_key(key)
        self._data = None
        self._backend.put(key, [data])

    def discard(self) -> None:
        self._data = None

    def _usable(self) -> bytearray:
        if self._data is None:
            raise BackendError(
                f"This writer of {self._backend.url} was committed or discarded; open another."
            )
        return self._data
