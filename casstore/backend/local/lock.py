"""The publishers' lock of a local store: flock(2) where one kernel sees every writer.

Safety does not need it (invariant 10): a writer that cannot lock publishes by the same protocol, and leaves a marker that
tells collectors that they may not be alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from casstore.backend.local.held import is_still
from casstore.backend.local.syscalls import close_quietly
from casstore.backend.local.writer import LocalWriter
from casstore.backend.oserrors import from_os_error
from casstore.errors import ConflictError

if TYPE_CHECKING:
    from casstore.backend.local.directory import StoreDirectory

LOCK = "gc/.lock"  # hidden, hence no key; never removed: otherwise two holders could lock two files

_LOCK_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


def acquire(directory: StoreDirectory, *, exclusive: bool, blocking: bool) -> int | None:
    """Return a descriptor that holds the lock, None where locks do not work.

    Raises ConflictError when the lock is taken and `blocking` is False.
    """
    calls = directory.calls
    if not directory.sees_every_lock:
        return None
    path = f"{directory.root}/{LOCK}"
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if blocking else fcntl.LOCK_NB)
    try:
        while True:
            fd = _open(directory, path)
            held = False
            try:
                if not _flock(directory, fd, operation):
                    return None
                # A lock on a file that was removed or replaced meanwhile protects nothing.
                held = is_still(calls, fd, path)
                if held:
                    return fd
            finally:
                if not held:
                    # Invariant 10: the lock of a failed attempt must not stop a collector.
                    close_quietly(calls, fd)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            # Invariant 8: a disk that went away in the middle is not an absence.
            directory.require_reachable(LOCK)
        raise from_os_error(error, f"lock {directory.root}") from error


def release(directory: StoreDirectory, fd: int) -> None:
    """Release the lock, even if a child that was forked meanwhile still has the descriptor."""
    # Invariant 10: safety does not rest on the lock, so an error here must not hide the result of the work.
    with suppress(OSError):
        directory.calls.flock(fd, fcntl.LOCK_UN)
    close_quietly(directory.calls, fd)


def _open(directory: StoreDirectory, path: str) -> int:
    """Open the lock; make it first where there is none, under another name until it has its mode and owner."""
    try:
        return directory.calls.open(path, _LOCK_FLAGS)
    except FileNotFoundError:
        directory.ensure(os.path.dirname(path))
    # Not held: another process that takes the lock as soon as it has its name would meet its maker's.
    with LocalWriter(directory, hold=False) as made:
        made.set_mode(directory.writing_mode)
        # Another process was faster: everybody locks the one file with this name.
        with suppress(FileExistsError):
            directory.naming.place(made.path, path, exclusive=False)
    return directory.calls.open(path, _LOCK_FLAGS)


def _flock(directory: StoreDirectory, fd: int, operation: int) -> bool:
    """Lock; return False where that does not work, and raise ConflictError where somebody else holds it."""
    try:
        directory.calls.flock(fd, operation)
    except BlockingIOError:
        raise ConflictError(
            f"Someone else is publishing to {directory.root} or collecting it. Try again when they have finished."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # Invariant 10: safety does not rest on the lock; a writer without it leaves the marker.
        return False
    return True
