"""The publishers' lock of a local store: flock(2) where one kernel sees every writer.

Nobody needs it (invariant 10): who cannot lock publishes by the same protocol, and leaves a marker that
keeps a collector from believing that it is alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from casstore.backend.oserrors import from_os_error
from casstore.errors import ConflictError

if TYPE_CHECKING:
    from casstore.backend.directory import StoreDirectory
    from casstore.backend.syscalls import SystemCalls

LOCK = "gc/.lock"  # hidden, hence no key; never removed, or two holders would lock two files
LOCKLESS = "gc/lockless"  # the marker

_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}

# File systems that one kernel owns, so that its flock sees every writer. Any other, network and FUSE file
# systems above all, may be written by a machine whose locks are not seen here.
_LOCKING_FILE_SYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "tmpfs", "ramfs", "overlay"}
)


def sees_every_lock(calls: SystemCalls, path: str) -> bool:
    """Say whether a lock on what lies at `path` is seen by all who can write there, and theirs here."""
    return calls.file_system_type(path) in _LOCKING_FILE_SYSTEMS


def acquire(directory: StoreDirectory, *, exclusive: bool, blocking: bool) -> int | None:
    """Return a descriptor that holds the lock, None where locks do not work.

    Raises ConflictError when the lock is taken and `blocking` is False.
    """
    calls = directory.calls
    if not sees_every_lock(calls, directory.root):
        return None
    path = f"{directory.root}/{LOCK}"
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if blocking else fcntl.LOCK_NB)
    try:
        directory.settle(os.path.dirname(path))
        while True:
            fd = calls.open(path, _LOCK_FLAGS, directory.writing_mode)
            try:
                directory.set_mode(fd, directory.writing_mode)
                calls.flock(fd, operation)
                same = _is_still(directory, fd, path)
            except BaseException:
                # Invariant 10: a lock that nobody holds on purpose must not stop a collector.
                calls.close(fd)
                raise
            if same:
                return fd
            calls.close(fd)
    except BlockingIOError:
        raise ConflictError(
            f"Someone else is publishing to {directory.root} or collecting it. Try again when that ends."
        ) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise from_os_error(error, f"lock {directory.root}") from error


def release(directory: StoreDirectory, fd: int) -> None:
    """Give the lock back, also when a child that was forked meanwhile still has the descriptor."""
    # Invariant 10: nobody's safety rests on the lock, so an error here must not hide how the work went.
    with suppress(OSError):
        directory.calls.flock(fd, fcntl.LOCK_UN)
    with suppress(OSError):
        directory.calls.close(fd)


def _is_still(directory: StoreDirectory, fd: int, path: str) -> bool:
    # A lock on a file that was removed or replaced meanwhile protects nothing.
    try:
        return directory.calls.fstat(fd)[3:] == directory.calls.stat(path)[3:]
    except FileNotFoundError:
        return False
