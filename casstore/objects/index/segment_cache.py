"""Copies of a remote store's index segments in the user's cache directory.

Segments never change (invariant 1), so each is fetched once by a machine, however many processes ask. A copy
is hashed whenever it is opened; any fault of a copy or of the directory only costs time, and
all of it may be deleted at any moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from casstore.backend.base import WRITE_PIECE
from casstore.digest import Hasher, digest
from casstore.errors import BackendError, FormatError, IntegrityError
from casstore.objects.index.segment import Segment, load, load_file
from casstore.objects.keys import INDEX_PREFIX, index_key, index_key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Buffer, Self

    from casstore.backend.base import Backend

_log = logging.getLogger("casstore")

MAX_KEPT = 2 << 30
"""Bytes of copies that are kept; segments beyond that are fetched by each process that needs them."""

_FETCH = 8 << 20
_FETCHERS = 8
_IDLE_SECONDS = 3600.0
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SegmentCache:
    """Opens segments of one store: those of a local store in place, those of a remote one through a copy.

    With no `directory`, segments of a remote store are held in memory. Safe in threads and beside other
    processes.
    """

    def __init__(self, backend: Backend, directory: str | None) -> None:
        self._backend = backend
        self._directory = directory
        self._lock = threading.Lock()

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def open_all(
        self, sizes: Mapping[str, int]
    ) -> tuple[list[Segment], dict[str, IntegrityError | BackendError]]:
        """Open the segments with these keys and sizes in bytes; return them, and by key why others cannot be opened.

        ObjectNotFound says that one is gone, FormatError that it is damaged in the store.
        """
        keys = list(sizes)
        if len(keys) < 2 or self._directory is None or self._backend.local_path(keys[0]) is not None:
            answers = [self._try(key, sizes[key]) for key in keys]
        else:
            with ThreadPoolExecutor(
                min(_FETCHERS, len(keys)), thread_name_prefix="casstore-index"
            ) as threads:
                answers = list(threads.map(self._try, keys, sizes.values()))
        opened = [answer for answer in answers if isinstance(answer, Segment)]
        failed = {
            key: answer for key, answer in zip(keys, answers, strict=True) if not isinstance(answer, Segment)
        }
        return opened, failed

    def _try(self, key: str, size: int) -> Segment | IntegrityError | BackendError:
        try:
            return self._open(key, size)
        except (IntegrityError, BackendError) as error:
            return error  # Invariant 13: the index decides whether that matters.

    def cost_of(self, sizes: Mapping[str, int], *, request: int) -> int:
        """Return the bytes that opening segments would fetch, each request counted as bytes, too."""
        here: set[str] = set()
        if self._directory is not None:
            # Invariant 5: these are copies of hints. If they cannot be read, they count as absent.
            with contextlib.suppress(OSError):
                here.update(f"{INDEX_PREFIX}{name}" for name in os.listdir(self._directory))
        return sum(size + request for key, size in sizes.items() if key not in here)

    def opened(self, data: bytes) -> Segment:
        """Return the segment with these bytes, which this process has just written to the store."""
        key = index_key(data)
        if self._backend.local_path(key) is None:
            self._keep(key, [data])
        else:
            # Invariant 13: another process may have merged it away already; the bytes are here.
            with contextlib.suppress(IntegrityError, BackendError):
                return load(key, self._backend)
        return Segment(key, memoryview(data), None)

    def new_copy(self) -> Copy | None:
        """Return a file to write a segment to while it goes to the store; None if no copy is wanted."""
        directory = self._directory
        if directory is None or self._backend.local_path(INDEX_PREFIX[:-1]) is not None:
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

    def _open(self, key: str, size: int) -> Segment:
        directory = self._directory  # another thread may set it to None
        if directory is None or self._backend.local_path(key) is not None:
            return load(key, self._backend)
        path = os.path.join(directory, key.removeprefix(INDEX_PREFIX))
        segment = self._open_copy(key, path)
        if segment is not None:
            return segment
        if size <= _FETCH:
            data = self._backend.read(key)
            _check(digest(data), key)
            self._keep(key, [data])
            return Segment(key, memoryview(data), None)
        copy = self.new_copy()
        if copy is None:
            return load(key, self._backend)
        with copy:
            hasher = Hasher()
            for start in range(0, size, _FETCH):
                data = self._backend.read(key, start=start, length=min(_FETCH, size - start))
                hasher.update(data)
                copy.write(data)
            _check(hasher.digest(), key)
            copy.publish(key)
        return self._open_copy(key, path) or load(key, self._backend)

    def _open_copy(self, key: str, path: str) -> Segment | None:
        """Open a copy that is whole; remove one that is not."""
        try:
            if not os.path.exists(path):
                return None
            segment = load_file(key, path)
            if index_key_of(segment.digest()) == key:
                return segment
        except Exception as error:  # noqa: BLE001  # a copy is worth nothing but the time to fetch it
            # Invariant 5: this is a damaged copy of a hint; the store's own is read next.
            _log.debug("The copy %s of %s is not used: %s", path, key, error)
        with contextlib.suppress(OSError):
            os.unlink(path)  # Invariant 5: the store has the original.
        return None

    def _keep(self, key: str, parts: Sequence[Buffer]) -> None:
        copy = self.new_copy()
        if copy is not None:
            with copy:
                for part in parts:
                    copy.write(part)
                copy.publish(key)

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
        view = memoryview(data)
        with self._giving_up():
            while view and self._descriptor is not None:
                view = view[os.write(self._descriptor, view[:WRITE_PIECE]) :]

    def publish(self, key: str) -> None:
        """Give the file the name by which this segment's copy is found."""
        if self._descriptor is None:
            return
        with self._giving_up():
            # Invariant 4: the copy is whole, and is hashed whenever it is opened, so no fsync is needed.
            os.rename(self._path, os.path.join(self._directory, key.removeprefix(INDEX_PREFIX)))
            descriptor, self._descriptor = self._descriptor, None
            # The descriptor is free even if close fails, and may already be another thread's file.
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Invariant 13: a full disk here only costs another fetch.
            self._drop()
            self._failed(error)

    def _drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # Invariant 4: it is incomplete.


def _check(actual: bytes, key: str) -> None:
    if index_key_of(actual) != key:
        raise FormatError(
            f"{key} does not have the hash that names it. Remove that file; it is rebuilt from the packs."
        )
