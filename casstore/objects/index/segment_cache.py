"""Copies of a remote store's index segments in the user's cache directory.

Segments never change (invariant 1), so each is fetched once by a machine, however many processes ask. A copy
is hashed before it is used; any fault of a copy or of the directory only costs time, and
all of it may be deleted at any moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from typing import TYPE_CHECKING

from casstore.backend import BackendWrapper
from casstore.backend.base import WRITE_PIECE, BlobWriter
from casstore.digest import Hasher
from casstore.errors import FormatError, ObjectExists
from casstore.objects.keys import INDEX_PREFIX, index_key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Buffer, Self

    from casstore.backend.base import Backend, Entry

_log = logging.getLogger("casstore")

MAX_KEPT = 2 << 30
"""Bytes of copies that are kept; segments beyond that are fetched by each process that needs them."""

_FETCH = 8 << 20
_IDLE_SECONDS = 3600.0
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SegmentCache(BackendWrapper):
    """Gives the segments of a remote store a local path: that of a copy, fetched if there is none.

    What is written through it is copied on the way: it is for the index alone. Without a `directory`, and for
    a local store, it changes nothing. Safe in threads and beside other processes.
    """

    def __init__(self, inner: Backend, directory: str | None) -> None:
        super().__init__(inner)
        self._directory = directory if inner.local_path(INDEX_PREFIX[:-1]) is None else None
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def is_here(self, key: str) -> bool:
        """Say whether there is a copy of a segment, whole or not."""
        return self._directory is not None and os.path.exists(_path(self._directory, key))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield what the store has."""
        for entry in self.inner.list(prefix):
            if prefix == INDEX_PREFIX:
                self._sizes[entry.key] = entry.size
            yield entry

    def local_path(self, key: str) -> str | None:
        """Return the path of a segment's copy, made now if there was none; None where no copies are kept.

        Raises ObjectNotFound for a segment that is gone, FormatError for one that is damaged in the store.
        """
        directory = self._directory  # another thread may set it to None
        if directory is None or not key.startswith(INDEX_PREFIX):
            return self.inner.local_path(key)
        path = _path(directory, key)
        return path if _is_whole(path, key) or self._fetch(key) else None

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove segments together; `prune` removes their copies."""
        self.inner.delete_many(keys)

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write a segment, and keep a copy."""
        copy = self.new_copy()
        if copy is not None:
            with copy:
                for part in parts:
                    copy.write(part)
                copy.publish(key)
        self.inner.put(key, parts)

    def open_writer(self) -> BlobWriter:
        """Return a writer for a segment, of which a copy is kept."""
        writer, copy = self.inner.open_writer(), self.new_copy()
        return writer if copy is None else _CopyingWriter(writer, copy)

    def new_copy(self) -> Copy | None:
        """Return a file to write a segment to; None if no copy is wanted."""
        directory = self._directory
        if directory is None:
            return None
        try:
            return Copy(directory, failed=self._give_up)
        except OSError as error:
            self._give_up(error)
            return None

    def prune(self, listed: Iterable[str]) -> None:
        """Delete copies of segments that are gone from the store, and those beyond the limit."""
        directory = self._directory
        if directory is None:
            return
        keep = {key.removeprefix(INDEX_PREFIX) for key in listed}
        total = 0
        try:
            with os.scandir(directory) as entries:
                found = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.name) for entry in entries)
            for modified, size, name in reversed(found):
                fresh = time.time() - modified < _IDLE_SECONDS
                total += size
                if total > MAX_KEPT or not (name in keep or fresh):
                    # Invariant 5: this is a copy of a hint. Processes that have it open can still read it.
                    os.unlink(os.path.join(directory, name))
                    total -= size
        except FileNotFoundError:
            return  # Nothing is kept yet, or another process deleted it first.
        except OSError as error:
            self._give_up(error)

    def _fetch(self, key: str) -> bool:
        """Copy a segment from the store; say whether there is a copy now."""
        copy = self.new_copy()
        if copy is None:
            return False
        size = self._sizes[key] if key in self._sizes else self.stat(key).size
        hasher = Hasher()
        with copy:
            if size <= _FETCH:
                parts = iter([self.inner.read(key)])
            else:
                starts = range(0, size, _FETCH)
                parts = (self.inner.read(key, start=at, length=min(_FETCH, size - at)) for at in starts)
            for data in parts:
                hasher.update(data)
                copy.write(data)
                if copy.is_dropped:
                    return False  # The segment is read from the store as if copies were never wanted.
            if index_key_of(hasher.digest()) != key:
                raise FormatError(
                    f"{key} does not have the hash that names it. Remove that file; it is rebuilt from the packs."
                )
            return copy.publish(key)

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            directory, self._directory = self._directory, None
        if directory is not None:
            # Invariant 13: only copies of hints are lost.
            _log.warning("Copies of index segments are not kept in %s: %s.", directory, error.strerror)


class Copy:
    """A file that becomes a copy. It never raises OSError once it exists: a copy that fails is dropped."""

    def __init__(self, directory: str, *, failed: Callable[[OSError], None]) -> None:
        """`failed` is called with the first error afterwards."""
        self._failed = failed
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._path = os.path.join(directory, f".{uuid.uuid4().hex}")
        self._descriptor: int | None = os.open(self._path, _NEW_FILE, 0o600)

    def write(self, data: Buffer) -> None:
        """Append bytes."""
        view = memoryview(data).cast("B")
        with self._giving_up():
            while view and self._descriptor is not None:
                view = view[os.write(self._descriptor, view[:WRITE_PIECE]) :]

    @property
    def is_dropped(self) -> bool:
        """Whether writing to it failed."""
        return self._descriptor is None

    def publish(self, key: str) -> bool:
        """Give the file the name by which this segment's copy is found; say whether it has it."""
        published = False
        if self._descriptor is None:
            return published
        with self._giving_up():
            # Invariant 4: the copy is whole, and is hashed before it is used, so no fsync is needed.
            os.rename(self._path, _path(self._directory, key))
            descriptor, self._descriptor = self._descriptor, None
            # The descriptor is free even if close fails, and may already be another thread's file.
            published = True
            os.close(descriptor)
        return published

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Invariant 13: a full disk here only costs another fetch.
            self.drop()
            self._failed(error)

    def drop(self) -> None:
        """Remove the file, unless it was published."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # Invariant 4: it is incomplete.


class _CopyingWriter(BlobWriter):
    """Writes a segment to the store and to a copy."""

    def __init__(self, inner: BlobWriter, copy: Copy) -> None:
        self._inner = inner
        self._copy = copy
        self.offset = inner.offset

    def write(self, parts: Sequence[Buffer]) -> None:
        self._inner.write(parts)
        self.offset = self._inner.offset
        for part in parts:
            self._copy.write(part)

    def harden(self) -> None:
        self._inner.harden()

    def commit(self, key: str) -> None:
        try:
            self._inner.commit(key)
        except ObjectExists:
            # Invariant 5: a segment's name is its hash, so the store has the same bytes.
            self._copy.publish(key)
            raise
        self._copy.publish(key)

    def discard(self) -> None:
        self._inner.discard()
        self._copy.drop()


def _path(directory: str, key: str) -> str:
    return os.path.join(directory, key.removeprefix(INDEX_PREFIX))


def _is_whole(path: str, key: str) -> bool:
    """Say whether a copy is there with the bytes that its name promises; remove one that is not whole."""
    hasher = Hasher()
    try:
        with open(path, "rb", buffering=0, opener=_open_file) as file:
            while data := file.read(_FETCH):
                hasher.update(data)
        if index_key_of(hasher.digest()) == key:
            return True
    except FileNotFoundError:
        return False  # Invariant 5: the store has the original.
    except OSError as error:
        # Invariant 5: this is a damaged copy of a hint; the store's own is read next.
        _log.debug("The copy %s of %s is not used: %s", path, key, error)
    with contextlib.suppress(OSError):
        os.unlink(path)  # Invariant 5: as above.
    return False


def _open_file(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe that someone put there would block for ever.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
