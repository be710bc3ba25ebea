"""Unfinished files of a checkout, beside its destination and inside it, and those that dead processes left.

Folders `.NAME.<hex>.casstore` become the destination NAME; files `.<hex>.casstore` become its files. Their maker
holds each of them (backend/held.py), so another checkout can tell what nobody works on any more. On file systems
where locks are not seen by everybody nothing is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
from typing import TYPE_CHECKING

from casstore.backend.local.held import take_abandoned, try_hold
from casstore.backend.local.mount_types import is_one_kernels
from casstore.backend.local.syscalls import SystemCalls

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["make_file", "make_folder", "scratch_folder", "sweep_files", "sweep_folders", "tells_the_dead"]

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SHOWN = 100
"""Bytes of the destination's name in the temporary folder's name, which must stay within file systems' limits."""

_ATTEMPTS = 4
"""Folders that may be taken by those who clean up, before their maker has locked them."""

_SCRATCH = "scratch"
_FILE = re.compile(r"\.[0-9a-f]{16}\.casstore")
_FOLDER_END = re.compile(r"[0-9a-f]{12}\.casstore")
_calls = SystemCalls()


def tells_the_dead(path: str) -> bool:
    """Say whether locks below the folder `path` show which processes are alive."""
    return is_one_kernels(_calls.file_system_type(path))


@contextlib.contextmanager
def scratch_folder(parent: str) -> Iterator[str]:
    """Give a new folder in `parent` that only this user can read; it is deleted in the end.

    What dead processes left of such folders in `parent` goes first.
    """
    sweep_folders(parent, _SCRATCH)
    path, descriptor = make_folder(parent, _SCRATCH, mode=0o700)
    try:
        yield path
    finally:
        # Invariant 4: what is still here is incomplete, or not needed any more.
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def make_folder(parent: str, name: str, *, mode: int = 0o777) -> tuple[str, int]:
    """Make a folder that may become `name` in `parent`; return its path and a descriptor that holds it."""
    for last in (*[False] * _ATTEMPTS, True):
        path = os.path.join(parent, f"{_folder_prefix(name)}{os.urandom(6).hex()}.casstore")
        os.mkdir(path, mode)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if last:
                raise
            continue  # Somebody who cleaned up was faster than the lock (invariant 10).
        if try_hold(_calls, descriptor, path) or last or not tells_the_dead(parent):
            break
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.rmdir(path)  # Invariant 10: who cleans up holds it and is removing it.
    return path, descriptor


def make_file(directory: int, mode: int, *, hold: bool) -> tuple[str, int]:
    """Make a temporary file in the open `directory`; return its name and its descriptor, which may `hold` it.

    Held is what a sweep could meet: in a folder where others work, where locks tell who is alive.
    """
    while True:
        name = f".{os.urandom(8).hex()}.casstore"
        descriptor = os.open(name, _NEW_FILE, mode, dir_fd=directory)
        if not hold:
            return name, descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return (
                name,
                descriptor,
            )  # Invariant 10: there are no locks here, so nobody removes leftovers by them.
        if os.fstat(descriptor).st_nlink:
            return name, descriptor
        os.close(descriptor)  # A process that was cleaning up removed it before it was locked.


def sweep_folders(parent: str, name: str) -> None:
    """Remove what dead processes left of `name` in `parent`."""
    prefix = _folder_prefix(name)
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        # The parent may hold thousands of destinations.
        alike = [entry for entry in entries if entry.name.startswith(prefix)]
        found = [entry.path for entry in alike if _FOLDER_END.fullmatch(entry.name, len(prefix))]
        for path in found if found and tells_the_dead(parent) else ():
            held = take_abandoned(_calls, path)
            if held is None:
                continue
            try:
                if stat.S_ISDIR(os.fstat(held).st_mode):
                    # Invariant 4: it is incomplete, and its maker is dead.
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)


def sweep_files(directory: int) -> None:
    """Remove leftovers of dead checkouts in the open `directory`, if locks show who is alive there."""
    # Invariant 13: leftovers that cannot be examined or removed only take space.
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for name in [entry.name for entry in entries if _FILE.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                _sweep_file(directory, name)


def _sweep_file(directory: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            # Invariant 4: it never got its name, and its maker is dead.
            os.unlink(name, dir_fd=directory)
    finally:
        os.close(descriptor)


def _folder_prefix(name: str) -> str:
    # Some file systems only accept names of whole characters.
    shown = os.fsencode(name)[:_SHOWN].decode(errors="ignore").encode()
    return f".{os.fsdecode(shown)}."
