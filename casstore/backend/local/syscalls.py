"""Every operating system call that the local backend makes, in one place.

Tests replace an instance by a model of a POSIX file system that loses what was not synced. Methods raise
OSError like the calls they stand for. Interrupted calls need no loop here: Python repeats them (PEP 475).
"""

# ruff: noqa: D402  # "open(2)" names a manual page, not a signature

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1  # Linux, renameat2(2)
_RENAME_EXCL = 4  # macOS, renamex_np(2)
_SYNC_FILE_RANGE_WRITE = 2  # Linux, sync_file_range(2): start writing, wait for nothing
_IOV_MAX = 1024  # buffers that one writev takes on Linux and macOS; POSIX guarantees fewer


class Status(NamedTuple):
    """The part of `stat` that the backend uses. `modified` is in POSIX seconds."""

    mode: int
    size: int
    modified: float
    device: int
    inode: int
    uid: int = 0
    gid: int = 0

    @property
    def identity(self) -> tuple[int, int]:
        """The identity of this file."""
        return self.device, self.inode

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether this is a symbolic link, seen by lstat."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file."""
        return stat.S_ISREG(self.mode)


class EntryKind(NamedTuple):
    """The target of a name in a directory, links followed."""

    is_directory: bool
    is_file: bool


_FILE = EntryKind(is_directory=False, is_file=True)
_DIRECTORY = EntryKind(is_directory=True, is_file=False)


def _status(result: os.stat_result) -> Status:
    return Status(
        result.st_mode,
        result.st_size,
        result.st_mtime,
        result.st_dev,
        result.st_ino,
        result.st_uid,
        result.st_gid,
    )


class SystemCalls:
    """The real calls. Holds no state, so threads and forked children share one instance."""

    has_real_paths = True  # whether other programs and mmap can use the paths

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """Call open(2); descriptors are close-on-exec, as Python makes them."""
        return os.open(path, flags, mode)

    def close(self, fd: int) -> None:
        """Call close(2)."""
        os.close(fd)

    def write(self, fd: int, parts: Sequence[memoryview]) -> int:
        """writev(2) at the end of what was written; may write less than asked. Releases the GIL."""
        return os.writev(fd, parts[:_IOV_MAX])

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Call pread(2); may read less than asked. Releases the GIL."""
        return os.pread(fd, length, offset)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """preadv(2) into the caller's buffer; may read less than asked. Releases the GIL."""
        return os.preadv(fd, [buffer], offset)

    def fsync(self, fd: int) -> None:
        """Call fsync(2); macOS needs F_FULLFSYNC to get past the drive's own cache."""
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            except OSError as error:
                # Invariant 2: this does not repeat a failed fsync; network file systems on macOS only have the plain call.
                if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                    raise
                os.fsync(fd)
        else:
            os.fsync(fd)

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        """Ask the kernel to start writing a range, where it can. This is only a hint."""
        if _native.sync_file_range is not None:
            _native.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    def fstat(self, fd: int) -> Status:
        """Call fstat(2)."""
        return _status(os.fstat(fd))

    def stat(self, path: str, *, follow: bool = True) -> Status:
        """Call stat(2), or lstat(2) with `follow=False`."""
        return _status(os.stat(path, follow_symlinks=follow))

    def fchmod(self, fd: int, mode: int) -> None:
        """Call fchmod(2)."""
        os.fchmod(fd, mode)

    def chmod(self, path: str, mode: int) -> None:
        """Call chmod(2)."""
        os.chmod(path, mode)

    def geteuid(self) -> int:
        """Call geteuid(2): 0 is root."""
        return os.geteuid()

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        """Call fchown(2)."""
        os.fchown(fd, uid, gid)

    def link(self, source: str, target: str) -> None:
        """Call link(2): fails with EEXIST rather than replace."""
        os.link(source, target)

    def rename(self, source: str, target: str) -> None:
        """Call rename(2): replaces."""
        os.rename(source, target)

    def rename_exclusive(self, source: str, target: str) -> None:
        """Rename without replacing: EEXIST when the target is there, ENOSYS where there is no such call."""
        number = _native.rename_exclusive(os.fsencode(source), os.fsencode(target))
        if number:
            raise OSError(number, os.strerror(number), source, None, target)

    def unlink(self, path: str) -> None:
        """Call unlink(2)."""
        os.unlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        """Call mkdir(2)."""
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        """Call rmdir(2)."""
        os.rmdir(path)

    def scandir(self, path: str) -> list[tuple[str, Status]]:
        """Return the names in a directory with their status, links followed, in no order.

        A file that disappears meanwhile is left out; a link that leads nowhere raises OSError (ESTALE).
        """
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                status = _status_of(entry)
                if status is not None:
                    found.append((entry.name, status))
        return found

    def scan_kinds(self, path: str) -> list[tuple[str, EntryKind]]:
        """Return what `scandir` does with kinds only: from the directory itself, which takes no stat(2)."""
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    kind = _FILE
                elif entry.is_dir(follow_symlinks=False):
                    kind = _DIRECTORY
                else:
                    status = _status_of(entry)
                    if status is None:
                        continue
                    kind = EntryKind(is_directory=status.is_directory, is_file=status.is_file)
                found.append((entry.name, kind))
        return found

    def has_room(self, path: str, size: int, files: int) -> bool:
        """Call statvfs(3): whether so many bytes and files still fit on the file system of `path`."""
        found = os.statvfs(path)
        # Some file systems have no limit of files, and report none.
        return found.f_bavail * found.f_frsize >= size and (not found.f_files or found.f_favail >= files)

    def flock(self, fd: int, operation: int) -> None:
        """Call flock(2). Releases the GIL while it waits."""
        fcntl.flock(fd, operation)

    def file_system_type(self, path: str) -> str | None:
        """Return the type of the file system that holds `path`, as in mount(8); None when unknown.

        Source: proc_pid_mountinfo(5). The longest mount point above the path wins, the later of equals.
        """
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
                lines = table.read().splitlines()
        except OSError:
            # Invariant 10: unknown counts as "cannot lock", which is always safe.
            return None
        return find_mount_type(lines, os.path.realpath(path))


def close_quietly(calls: SystemCalls, fd: int) -> None:
    """Close a descriptor whose close has nothing to report: what was written was fsynced, or is discarded."""
    with suppress(OSError):
        calls.close(fd)


def _status_of(entry: os.DirEntry[str]) -> Status | None:
    """Return the status of an entry's target, None if the entry is gone."""
    try:
        return _status(entry.stat())
    except FileNotFoundError:
        # Invariant 8: a deleted file is gone, but nothing is known about the target of a broken link.
        if entry.is_symlink():
            raise OSError(errno.ESTALE, f"{entry.name} is a link that leads nowhere") from None
        return None


def find_mount_type(lines: Sequence[str], path: str) -> str | None:
    """Return the file system type of the mount that holds the real `path`, from mountinfo `lines`."""
    longest, kind = -1, None
    for line in lines:
        head, separator, tail = line.partition(" - ")
        fields = head.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = _unescape(fields[4])
        inside = point in ("/", path) or path.startswith(point + "/")
        if inside and len(point) >= longest:
            longest, kind = len(point), tail.split(" ")[0]
    return kind


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


class _Native:
    """Calls of the C library that Python's os module lacks; each is None if the library lacks it, too."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self.sync_file_range = getattr(library, "sync_file_range", None)
        if self.sync_file_range is not None:
            self.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        self._renameat2 = getattr(library, "renameat2", None)
        self._renamex_np = getattr(library, "renamex_np", None)

    def rename_exclusive(self, source: bytes, target: bytes) -> int:
        """Return 0 or the error number."""
        if self._renameat2 is not None:
            failed = self._renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE)
        elif self._renamex_np is not None:
            failed = self._renamex_np(source, target, _RENAME_EXCL)
        else:
            return errno.ENOSYS
        return ctypes.get_errno() if failed else 0


_native = _Native()
