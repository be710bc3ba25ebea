"""Writes one file of a local store: temporary name, fsync, link, fsync of the directory (invariant 2).

Source for "a failed fsync is final": Rebello et al., "Can Applications Recover from fsync Failures?",
USENIX ATC 2020.
"""

from __future__ import annotations

import os
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING

from casstore.backend.base import WRITE_PIECE, BlobWriter, byte_views
from casstore.backend.local import held
from casstore.backend.local.syscalls import close_quietly
from casstore.backend.oserrors import from_os_error
from casstore.errors import AccessDenied, BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from casstore.backend.local.directory import StoreDirectory

TEMPORARY = ".tmp"  # hidden, hence no key, and on the store's own file system

HELD = ".held"
"""The ending of temporary files that their writer keeps locked while it lives."""

_ATTEMPTS = 4
"""Files that are made before a writer does without a lock of its own."""

_WRITEBACK = 1 << 20
"""Bytes after which the kernel is asked to start writing: of a pack of a few megabytes, too, little is left to the fsync."""


class LocalWriter(BlobWriter):
    """A temporary file that becomes an object. Errors while writing or publishing are final.

    It is locked while its writer lives, where that tells others so; with `hold=False` it never is.
    """

    def __init__(self, directory: StoreDirectory, *, hold: bool = True) -> None:
        self._directory = directory
        self._calls = directory.calls
        self.offset = 0
        self._asked = 0  # bytes that the kernel was asked to write early
        self._broken = False
        self._hardened = False
        self.path = self._new_path()
        self._fd: int | None = None
        self._held = False
        self._named = False  # whether the temporary name is (perhaps) there
        with ExitStack() as failed:
            # Invariant 2: nobody else knows of the file that a failure or an interrupt leaves here.
            failed.callback(self.discard)
            try:
                self._open(hold=hold)
            except OSError as error:
                raise self._explain(error, "write") from error
            failed.pop_all()

    def _open(self, *, hold: bool) -> None:
        if hold and self._directory.sees_every_lock:
            for _ in range(_ATTEMPTS):
                # Invariant 2: a file without its final name must not outlive its writer, even one that is killed.
                self.path = self._new_path() + HELD
                self._fd = self._make()
                self._held = held.try_hold(self._calls, self._fd, self.path)
                if self._held:
                    return
                # Invariant 13: somebody who cleans up may have looked at it before it was locked. Without a lock,
                # a collector that removes leftovers of any age would take it from its writer.
                self.discard()
            self.path = self._new_path()
        self._fd = self._make()

    def _new_path(self) -> str:
        return f"{self._directory.root}/{TEMPORARY}/{uuid.uuid4().hex}"

    def _make(self) -> int:
        try:
            return self._make_file()
        except FileNotFoundError:
            # The first writer makes the directory, but never a new root: that would hide an unmounted disk.
            self._directory.require_reachable(TEMPORARY)
            self._directory.ensure(os.path.dirname(self.path))
            return self._make_file()

    def _make_file(self) -> int:
        # Before the file is there: an interrupt may come before this process knows that it is.
        self._named = True
        try:
            return self._directory.make_file(self.path)
        except (OSError, AccessDenied):
            self._named = False  # Invariant 2: a failure leaves no file.
            raise

    def write(self, parts: Sequence[Buffer]) -> None:
        """Append `parts` straight to the file, in few system calls and without the GIL."""
        fd = self._usable()
        views = [
            view[at : at + WRITE_PIECE]
            for view in byte_views(parts)
            for at in range(0, view.nbytes, WRITE_PIECE)
        ]
        try:
            first = 0
            while first < len(views):
                written = self._calls.write(fd, views[first : _end_of_piece(views, first)])
                self.offset += written
                while first < len(views) and written >= views[first].nbytes:
                    written -= views[first].nbytes
                    first += 1
                if written:
                    views[first] = views[first][written:]
            if self._directory.durable and self.offset - self._asked >= _WRITEBACK:
                # The disk starts while the next bytes are made, and the fsync has less left to do.
                self._calls.start_writeback(fd, self._asked, self.offset - self._asked)
                self._asked = self.offset
        except OSError as error:
            self._broken = True
            raise self._explain(error, "write") from error

    def commit(self, key: str) -> None:
        """Publish under `key`; the writer cannot be used again, even after a failure."""
        self.publish(key, exclusive=False)

    def harden(self) -> None:
        """Make the bytes durable; after a failure the writer is discarded."""
        fd = self._usable()
        self._broken = True
        try:
            self._harden(fd)
        except OSError as error:
            self.discard()
            raise self._explain(error, "write") from error
        self._hardened = True
        self._broken = False

    def _harden(self, fd: int) -> None:
        self._directory.set_mode(fd, self._directory.published_mode)
        if self._directory.durable:
            # Invariant 2: bytes before name. Never repeated: after a failure the kernel may have
            # dropped the bytes and answer the next call with success.
            self._calls.fsync(fd)

    def publish(self, key: str, *, exclusive: bool) -> None:
        """Make the bytes durable, then the name, then return. Raises ObjectExists when the key is taken."""
        fd = self._usable()
        final = self._directory.path(key)
        self._broken = True
        try:
            # Before the bytes: one commit of the file system's journal takes both.
            self._directory.prepare(os.path.dirname(final))
            if not self._hardened:
                self._harden(fd)
            identity = self._calls.fstat(fd).identity
            if not self._held:
                self._fd = None
                self._calls.close(fd)
            left_over = self._place(final, identity, exclusive=exclusive)
        except OSError as error:
            self.discard()
            if isinstance(error, FileNotFoundError):
                self._directory.require_reachable(key)
                raise BackendError(
                    f"Cannot publish {key} in {self._directory.root}: its temporary file was removed while it "
                    "was written. Whatever cleans up there must not touch the files of running writers."
                ) from error
            raise self._explain(error, f"publish {key}") from error
        self._make_name_durable(key, final)
        self._named = left_over
        self.discard()

    def _place(self, final: str, identity: tuple[int, ...], *, exclusive: bool) -> bool:
        parent = os.path.dirname(final)
        self._directory.ensure(parent)
        try:
            try:
                return self._directory.naming.place(self.path, final, exclusive=exclusive)
            except FileNotFoundError:
                # Someone removed an empty directory that this process had made; make it again, once.
                self._directory.forget()
                self._directory.ensure(parent)
                return self._directory.naming.place(self.path, final, exclusive=exclusive)
        except FileExistsError:
            if self._calls.stat(final).identity == identity:
                return True  # NFS repeats a link whose answer was lost: this link is ours
            # Invariant 2: the caller will rely on the other writer's file, so its name must be durable.
            self._directory.sync(parent)
            raise

    def _make_name_durable(self, key: str, final: str) -> None:
        try:
            # Invariant 2: nothing is acknowledged before its name is on the disk.
            self._directory.sync(os.path.dirname(final))
        except OSError as error:
            # Invariant 2: a failed fsync discards the file, before anyone relies on it.
            self._directory.unlink_quietly(final)
            self.discard()
            raise self._explain(error, f"publish {key}") from error

    def discard(self) -> None:
        """Close and remove the temporary file; an object that was linked from it keeps its own name."""
        fd, self._fd = self._fd, None
        try:
            if fd is not None:
                # Invariant 2: close could only report on bytes that are discarded here.
                close_quietly(self._calls, fd)
        finally:
            if self._named:
                self._named = False
                self._directory.unlink_quietly(self.path)

    def set_mode(self, mode: int) -> None:
        """Set the mode of the temporary file, where the file system has modes."""
        self._directory.set_mode(self._usable(), mode)

    def _explain(self, error: OSError, doing: str) -> BackendError:
        root = self._directory.root
        if isinstance(error, FileNotFoundError):
            # Invariant 8: a disk that went away in the middle is not an absence.
            self._directory.require_reachable(TEMPORARY)
        return from_os_error(error, f"{doing} in {root}", retryable=False, place=root)

    def _usable(self) -> int:
        if self._fd is None or self._broken:
            raise BackendError(
                f"This writer of {self._directory.root} was committed, discarded or failed; open another one."
            )
        return self._fd


def _end_of_piece(views: Sequence[memoryview], first: int) -> int:
    """Return the end of the views, at least one from `first` on, that one write takes."""
    end, size = first + 1, views[first].nbytes
    while end < len(views) and size + views[end].nbytes <= WRITE_PIECE:
        size += views[end].nbytes
        end += 1
    return end
