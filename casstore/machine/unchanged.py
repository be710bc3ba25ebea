"""Decides whether a file is unchanged because its stat identity is. This is the only place that does (invariant 14).

Four conditions must all hold; otherwise the file is read.

1. Its file system keeps inode numbers for good, and the kernel moves ctime with every change that it sees. A
   list of types, by statfs(2); others are not trusted.
2. Before the bytes were read, `flush` wrote back what a memory map had changed. The kernel then stops the next
   write through any map, open or new, and moves the times: a dirty page alone can change without a trace.
3. The times were old enough when the bytes were read: a change in the same clock tick leaves them as they are.
   The age asked for is more than that, so that `flush` finds nothing to do for files that are being made.
4. Neither the machine nor the mount is another one: after a crash the disk may hold new bytes under old times,
   and no kernel saw what was done to an unmounted file system. An image that is built reproducibly has the ids,
   inodes and times of the one before. The path and the file system's own id are part of the key too, since
   device numbers are reused.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import TYPE_CHECKING

from casstore.digest import digest
from casstore.machine.local_names import system_path
from casstore.machine.stat_identity import StatIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FLUSHED_AGE", "MIN_AGE", "UnchangedFiles", "file_system_mark", "flush"]

MIN_AGE = 60_000_000_000
"""Age in nanoseconds from which a file is worth remembering; Linux writes a memory map back within 35 s."""

FLUSHED_AGE = 2_000_000_000
"""The same for a file that was flushed for the purpose: only the clock's tick matters (1 s on old ext4)."""

_LINUX_TYPES = {
    0xEF53: "ext4",  # ext2 and ext3, too
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x2FC12FC1: "zfs",
}
_DARWIN_TYPES = frozenset({b"apfs"})
_DARWIN_TYPE_NAME = slice(72, 88)
"""Where statfs(2) of macOS puts f_fstypename."""

_WRITE_AND_WAIT = 1 | 2 | 4
"""SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER: the data of a file, without a commit of the journal."""

_AT_FDCWD = -100
_MOUNT_ID_UNIQUE = 0x4000
"""STATX_MNT_ID_UNIQUE: that of a mount, never given again. Linux 6.8 and later."""

_library = ctypes.CDLL(None, use_errno=True)


class UnchangedFiles:
    """Answers for one call (an add, a look at some files) whether stat identities can be trusted.

    Make a new one for each call: the time is read once, and what file system a folder is on is asked once.
    """

    def __init__(
        self,
        *,
        min_age: int = MIN_AGE,
        now: int | None = None,
        mark: Callable[[bytes], bytes | None] | None = None,
        boot: Callable[[], bytes | None] | None = None,
    ) -> None:
        """`min_age` is in nanoseconds, `now` in nanoseconds since 1970.

        `mark` stands for `file_system_mark`, `boot` for `boot_id`.
        """
        self._newest = (time.time_ns() if now is None else now) - min_age
        self._mark = mark or file_system_mark
        self._boot = (boot or boot_id)()
        self._folders: dict[tuple[bytes, int], tuple[bytes, bytes | None]] = {}

    def trusts(self, path: str | bytes, identity: StatIdentity) -> bool:
        """Say whether the bytes at `path` can be known by `identity`, the file's as it is now.

        To remember a file's content: `flush` it, take the identity, call this, read, and check that the identity is
        still the same. To use that: call this, and compare identities.
        """
        return self.key(path, identity) is not None

    def key(self, path: str | bytes, identity: StatIdentity) -> bytes | None:
        """Return a key of 32 bytes that stays the same only while the file is unchanged, None if there is none."""
        if max(identity.mtime_ns, identity.ctime_ns) > self._newest or self._boot is None:
            return None
        path = system_path(path) if isinstance(path, str) else path
        if sys.platform == "darwin" and not _is_flushed(path, identity):
            return None  # Pages that a map changes are seen by macOS only when they are written back.
        folder, name = os.path.split(path)
        if os.path.islink(path):
            folder, name = os.path.split(os.path.realpath(path))
        place = self._folders.get((folder, identity.device))
        if place is None:
            real = os.path.realpath(folder or b".")
            place = self._folders[folder, identity.device] = (real, self._mark(path))
        real, mark = place
        if mark is None:
            return None
        return digest(b"%b|%b|%b|%b/%b" % (identity.packed(), mark, self._boot, real, name))


def flush(descriptor: int) -> bool:
    """Write back what memory maps changed in a file; say whether every later change will move its times.

    The descriptor may be for reading only. Nothing is committed for good: this is no fsync on Linux.
    """
    call = getattr(_library, "sync_file_range", None)
    if call is not None:
        return bool(call(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE_AND_WAIT) == 0)
    try:
        os.fsync(descriptor)
    except OSError:
        return False  # Invariant 14: pages that could not be written back may still change undetected.
    return True


def file_system_mark(path: bytes) -> bytes | None:
    """Return an id of the file system that holds `path`, another one after each mount; None if its stat identities prove nothing."""
    room = ctypes.create_string_buffer(4096)
    # macOS on Intel has two versions of the call, and the plain name is the old one.
    call = getattr(_library, "statfs$INODE64", None) or getattr(_library, "statfs", None)
    if call is None or call(ctypes.c_char_p(path), room) != 0:
        return None
    mount: int | None
    if sys.platform == "darwin":
        kind = room.raw[_DARWIN_TYPE_NAME].split(b"\0")[0]
        mount = 0 if kind in _DARWIN_TYPES else None
    else:
        number = ctypes.c_ulong.from_buffer(room).value
        kind, name = b"%x" % number, _LINUX_TYPES.get(number)
        mount = None if name is None else _mounted_device(path, name) or _mount_id(path)
    try:
        return None if mount is None else b"%b,%d,%d" % (kind, os.statvfs(path).f_fsid, mount)
    except OSError:
        return None  # Invariant 14: a file that is gone proves nothing.


def _mounted_device(path: bytes, name: str) -> int | None:
    """Return the number of the kernel's entry for a mounted device; each mount has its own, in all containers one."""
    try:
        number = os.stat(path).st_dev
        device = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
        return os.stat(f"/sys/fs/{name}/{device}").st_ino
    except OSError:
        return None  # Of a type that lists no devices, or there is no sysfs: the mount tells.


def _mount_id(path: bytes) -> int | None:
    """Return the number of the mount that holds `path`, None where a later one may get the same."""
    call = getattr(_library, "statx", None)
    room = ctypes.create_string_buffer(256)
    if call is None or call(_AT_FDCWD, ctypes.c_char_p(path), 0, _MOUNT_ID_UNIQUE, room) != 0:
        return None
    answered = ctypes.c_uint32.from_buffer(room).value
    return ctypes.c_uint64.from_buffer(room, 144).value if answered & _MOUNT_ID_UNIQUE else None


def _is_flushed(path: bytes, identity: StatIdentity) -> bool:
    """Flush the file at `path`, and say whether it is still what it was."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False  # Invariant 14, as above.
    try:
        return flush(descriptor) and StatIdentity.of(os.fstat(descriptor)) == identity
    finally:
        os.close(descriptor)


def boot_id() -> bytes | None:
    """Return a value that changes with each start of the machine, None if there is none."""
    if sys.platform == "darwin":
        room = ctypes.create_string_buffer(64)
        size = ctypes.c_size_t(len(room))
        failed = _library.sysctlbyname(
            b"kern.bootsessionuuid", room, ctypes.byref(size), None, ctypes.c_size_t(0)
        )
        return None if failed else room.value
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().strip()
    except OSError:
        return None  # Invariant 14: nothing is remembered then; everything is read.
