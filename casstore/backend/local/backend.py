"""Objects as files in a local directory, written for durability (invariants 1 and 2)."""

from __future__ import annotations

import logging
import os
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

from casstore.backend.base import (
    LOCKLESS,
    STORE_FILE,
    Backend,
    BlobWriter,
    Entry,
    is_key,
    validate_key,
    validate_prefix,
    validate_range,
)
from casstore.backend.local import ballast, held, lock
from casstore.backend.local.directory import StoreDirectory
from casstore.backend.local.listing import walk, walk_foreign
from casstore.backend.local.mount_types import is_network
from casstore.backend.local.syscalls import SystemCalls, close_quietly
from casstore.backend.local.writer import HELD, TEMPORARY, LocalWriter
from casstore.backend.location import file_url
from casstore.backend.oserrors import from_os_error, is_disk_full
from casstore.errors import BackendError, ConfigError, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from casstore.backend.base import Durability

T = TypeVar("T")

MARKER_WAIT = 120.0
"""Seconds for which network mounts keep believing, at most, that a file is not there (acdirmax of nfs(5), doubled)."""

_log = logging.getLogger("casstore")

# Without O_NONBLOCK, opening a pipe that someone put in an object's place would block for ever.
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class LocalBackend(Backend):
    """A directory of immutable files.

    `root` may be a symbolic link. `create` makes it and the directories above it; otherwise a missing one is
    a ConfigError. Files are published with mode 0400 in directories of mode 0700; with `shared="group"`, or
    under a root that is set-group-id and writable by its group, with 0440 in 2770. `durability="none"`
    leaves out the fsyncs and nothing else. `marker_wait` is how long, in seconds, a network mount may hide a new
    file from other machines. `calls` is for tests.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        create: bool = False,
        durability: Durability = "full",
        shared: Literal["group"] | None = None,
        calls: SystemCalls | None = None,
        marker_wait: float = MARKER_WAIT,
    ) -> None:
        self._calls = calls if calls is not None else SystemCalls()
        self._directory = StoreDirectory(
            root, calls=self._calls, create=create, durability=durability, shared=shared
        )
        self._root = self._directory.root
        self.url = file_url(self._root)
        self._marker_wait = marker_wait
        self._exclusive: bool | None = None
        self._marked_lockless = False
        self._seen_at: float | None = (
            None  # on the monotonic clock: when no cache can hide the marker any more
        )

    # ---- reading

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Read by pread; the result is the only copy made."""
        validate_range(start, length)
        fd, size = self._open_object(key)
        try:
            # Clipped before the kernel is asked: pread allocates what it is asked for.
            left = max(0, size - start) if length is None else min(length, max(0, size - start))
            pieces = []
            while left:
                piece = self._calls.pread(fd, left, start)
                if not piece:
                    break
                pieces.append(piece)
                start += len(piece)
                left -= len(piece)
        except OSError as error:
            raise from_os_error(error, f"read {key} in {self.url}") from error
        finally:
            close_quietly(self._calls, fd)  # Invariant 4 rests on the hash of what was read.
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, key: str, buffer: memoryview, *, start: int = 0) -> int:
        """Read by preadv, without a copy."""
        validate_range(start, None)
        fd, _ = self._open_object(key)
        filled = 0
        try:
            view = buffer.cast("B") if buffer.nbytes else buffer
            while filled < view.nbytes:
                count = self._calls.pread_into(fd, view[filled:], start + filled)
                if not count:
                    break
                filled += count
        except OSError as error:
            raise from_os_error(error, f"read {key} in {self.url}") from error
        finally:
            close_quietly(self._calls, fd)  # Invariant 4 rests on the hash of what was read.
        return filled

    def _open_object(self, key: str) -> tuple[int, int]:
        # One descriptor per read costs a few microseconds, keeps no deleted pack's space occupied, and
        # leaves nothing to share with threads or a forked child.
        path = self._directory.path(key)
        try:
            fd = self._calls.open(path, _READ_FLAGS)
        except OSError as error:
            raise self._explain(error, "read", key) from error
        try:
            status = self._calls.fstat(fd)
            if status.is_file:
                return fd, status.size
        except OSError as error:
            close_quietly(self._calls, fd)
            raise from_os_error(error, f"read {key} in {self.url}") from error
        close_quietly(self._calls, fd)
        raise self._not_an_object("read", key)

    def stat(self, key: str) -> Entry:
        """Ask the file system; an absence that an unmounted disk could explain is BackendUnavailable."""
        try:
            status = self._calls.stat(self._directory.path(key))
        except OSError as error:
            raise self._explain(error, "find", key) from error
        if not status.is_file:
            raise self._not_an_object("find", key)
        return Entry(key, status.size, status.modified)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Walk the directories, one of them in memory at a time."""
        validate_prefix(prefix)
        for key, status in walk(self._directory, prefix, self._calls.scandir):
            yield Entry(key, status.size, status.modified)

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Walk the directories without a system call for each file."""
        validate_prefix(prefix)
        for key, _ in walk(self._directory, prefix, self._calls.scan_kinds):
            yield key

    def list_foreign(self) -> Iterator[str]:
        """Walk the directories that casstore may have made."""
        return walk_foreign(self._directory)

    def local_path(self, key: str) -> str | None:
        """Return the file's path; the file may be absent."""
        path = self._directory.path(key)
        return path if self._calls.has_real_paths else None

    # ---- writing

    @property
    def creates_exclusively(self) -> bool:
        """Whether links, or a rename that does not replace, work here."""
        if self._exclusive is None:
            with LocalWriter(self._directory) as probe:
                # One file with the probe, and held like it: it goes with the next publish if this process is killed.
                target = f"{self._root}/{TEMPORARY}/{uuid.uuid4().hex}{HELD}"
                try:
                    self._directory.naming.place(probe.path, target, exclusive=True)
                    self._exclusive = True
                except ConfigError:
                    # Not an error here: the answer is no, and forks stay visible instead (invariant 10).
                    self._exclusive = False
                except OSError as error:
                    raise self._explain(error, "try a link in", TEMPORARY) from error
                finally:
                    self._directory.unlink_quietly(target)
        return self._exclusive

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write, fsync, link, fsync the directory."""
        self._write(key, parts, exclusive=False)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        """Like `put`, and refuse where two writers could both succeed."""
        self._write(key, parts, exclusive=True)

    def _write(self, key: str, parts: Sequence[Buffer], *, exclusive: bool) -> None:
        validate_key(key)
        with LocalWriter(self._directory) as writer:
            writer.write(parts)
            writer.publish(key, exclusive=exclusive)

    def open_writer(self) -> BlobWriter:
        """Return a writer that streams to a temporary file of the store."""
        return LocalWriter(self._directory)

    def delete(self, key: str) -> None:
        """Unlink and fsync the directory."""
        self.delete_many([key])

    def delete_many(self, keys: Sequence[str]) -> None:
        """Unlink all, then fsync each directory once: an fsync costs many times an unlink."""
        changed: dict[str, str] = {}
        try:
            for key in keys:
                if self._unlink(key):
                    changed.setdefault(os.path.dirname(self._directory.path(key)), key)
        finally:
            for directory in sorted(changed):
                try:
                    # Invariant 2, for absence: a trimmed record that came back after a crash could outlive the
                    # newer one that deleted its ref.
                    self._directory.sync(directory)
                except OSError as error:  # noqa: PERF203  # one fsync each: the handler costs nothing beside it
                    raise from_os_error(
                        error,
                        f"make the deletion of {changed[directory]} durable in {self.url}",
                        retryable=False,
                    ) from error

    def _unlink(self, key: str) -> bool:
        """Remove a name; say whether it was there."""
        try:
            # Invariant 5: only gc and repair delete, after confirming from footers which copies survive.
            self._calls.unlink(self._directory.path(key))
        except FileNotFoundError:
            # Invariant 8: the object is gone already, unless the whole store is; an outage is not a deletion.
            self._directory.require_reachable(key)
            return False
        except OSError as error:
            raise from_os_error(error, f"delete {key} in {self.url}") from error
        return True

    def make_durable(self, keys: Iterable[str]) -> None:
        """Fsync the directories of `keys`, each once; their parents were durable before the files got their names."""
        for directory in sorted({os.path.dirname(self._directory.path(key)) for key in keys}):
            try:
                # Invariant 2: another writer's file counts only once its directory is on the disk.
                self._directory.sync(directory)
            except OSError as error:  # noqa: PERF203  # one fsync each: the handler costs nothing beside it
                raise from_os_error(error, f"make {directory} durable", retryable=False) from error

    def list_temporaries(self) -> Iterator[Entry]:
        """Yield the files in the hidden directory where writers work."""
        try:
            children = self._calls.scandir(f"{self._root}/{TEMPORARY}")
        except FileNotFoundError:
            # Invariant 8: no directory means no writer yet, if the store itself is there.
            self._directory.require_reachable(TEMPORARY)
            return
        except OSError as error:
            raise from_os_error(error, f"list temporary files in {self.url}") from error
        for name, status in sorted(children):
            if status.is_file:
                yield Entry(f"{TEMPORARY}/{name}", status.size, status.modified)

    def list_abandoned(self, *, older_than: float) -> Iterator[Entry]:
        """Go by the locks that writers hold, where they show who is alive, else by age."""
        aged = {entry.key for entry in super().list_abandoned(older_than=older_than)}
        for entry in self.list_temporaries():
            if self._directory.sees_every_lock and entry.key.endswith(HELD):
                fd = held.take_abandoned(self._calls, f"{self._root}/{entry.key}")
                if fd is not None:
                    close_quietly(self._calls, fd)
                    yield entry
            elif entry.key in aged:
                yield entry

    def remove_temporary(self, key: str) -> None:
        """Unlink one leftover; an object that was linked from it keeps its own name."""
        directory, _, name = key.partition("/")
        if directory != TEMPORARY or "/" in name or not is_key(name):
            raise ConfigError(f"{key!r} is not a leftover of a writer in {self.url}.")
        try:
            # Invariant 2: nothing here was ever acknowledged under this name.
            self._calls.unlink(f"{self._root}/{TEMPORARY}/{name}")
        except FileNotFoundError:
            # Invariant 8: the file is gone already, if the store itself is there.
            self._directory.require_reachable(TEMPORARY)
        except OSError as error:
            raise from_os_error(error, f"remove {key} in {self.url}") from error

    def remove_abandoned(self) -> None:
        """Remove temporary files whose lock nobody holds; where locks do not work, gc goes by age."""
        if not self._directory.sees_every_lock:
            return
        try:
            children = self._calls.scan_kinds(f"{self._root}/{TEMPORARY}")
        except OSError:
            return  # Invariant 13: this is upkeep; the next write raises what is wrong.
        for name, kind in children:
            if kind.is_file and name.endswith(HELD):
                path = f"{self._root}/{TEMPORARY}/{name}"
                fd = held.take_abandoned(self._calls, path)
                if fd is not None:
                    # Invariant 2: its writer died before it had its name, or after it had both.
                    self._directory.unlink_quietly(path)
                    close_quietly(self._calls, fd)

    def keep_spare_room(self) -> None:
        """Write the ballast, or what is missing of it; a throw-away store needs none."""
        if self._directory.durable:
            ballast.keep(self._directory)

    def spare_bytes(self) -> int:
        """Return the size of the ballast."""
        return ballast.size(self._directory)

    def in_spare_room(self, work: Callable[[], T], *, last: bool = False) -> T:
        """Repeat `work` while the disk is full: without files of dead writers, then with one piece of ballast less."""
        tidied = False
        while True:
            try:
                return work()
            except BackendError as error:
                # Design §8: what goes first costs no write.
                if not is_disk_full(error) or (tidied and not ballast.release(self._directory, last=last)):
                    raise
            if not tidied:
                self.remove_abandoned()
                tidied = True

    @contextmanager
    def publish_lock(self, *, exclusive: bool = False, blocking: bool = True) -> Iterator[bool]:
        """Hold flock(2) where one kernel sees every writer, and nobody is known to publish without it."""
        fd = lock.acquire(self._directory, exclusive=exclusive, blocking=blocking)
        if fd is None:
            if not exclusive:
                self.mark_lockless()
            yield False
            return
        try:
            yield not self.has_lockless_writers()
        finally:
            lock.release(self._directory, fd)

    def mark_lockless(self) -> None:
        """Leave the marker once for this backend; on a network mount, `await_marker` waits for a new one."""
        if not self._marked_lockless:
            super().mark_lockless()
            if is_network(self._calls.file_system_type(self._root)):
                self._seen_at = self._seen_everywhere_at()
            self._marked_lockless = True

    def _seen_everywhere_at(self) -> float | None:
        """Return when, on the monotonic clock, no cache hides the marker any more; None if that is past.

        Before there is a store there is no collector that could miss the marker, so the store's maker never waits.
        """
        marker = self.stat(LOCKLESS)
        try:
            if marker.modified <= self.stat(STORE_FILE).modified:
                return None
        except ObjectNotFound:
            # Invariant 10: `format` is certainly absent, so the store is only being made.
            return None
        # The two clocks may differ, but a marker from so far in the future is not a new one.
        age = time.time() - marker.modified
        return time.monotonic() + self._marker_wait - max(age, 0.0) if abs(age) < self._marker_wait else None

    def await_marker(self) -> None:
        """Sleep until other machines see the marker, if it is new."""
        left = 0.0 if self._seen_at is None else self._seen_at - time.monotonic()
        if left > 0:
            _log.warning(
                "%s gets its first writer on a network mount: the record waits %.0f s, until every machine can see "
                "that there is one.",
                self.url, left,
            )  # fmt: skip
            time.sleep(left)

    def _explain(self, error: OSError, doing: str, key: str) -> BackendError:
        if isinstance(error, FileNotFoundError):
            self._directory.require_reachable(key)
        return from_os_error(error, f"{doing} {key} in {self.url}", place=self._root)

    def _not_an_object(self, doing: str, key: str) -> ObjectNotFound:
        return ObjectNotFound(f"Cannot {doing} {key} in {self.url}: that is a directory, not an object.")
