"""Work in progress on which its maker holds a flock: if another process can take the lock, the maker is dead.

Only where one kernel sees every lock. The maker locks what it has just made and then looks whether it is still
there, since somebody who cleans up may have been faster; who cleans up removes only what it holds the lock of.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casstore.backend.local.syscalls import SystemCalls

__all__ = ["is_still", "take_abandoned", "try_hold"]

_LOOK = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def try_hold(calls: SystemCalls, fd: int, path: str) -> bool:
    """Lock what was just made at `path`, until `fd` is closed; False if that is impossible.

    Nobody removes what is held while its process lives.
    """
    try:
        calls.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # Invariant 10: somebody is checking it at this moment, or there are no locks; safety does not rest on them.
        return False
    return is_still(calls, fd, path)


def take_abandoned(calls: SystemCalls, path: str) -> int | None:
    """Return a descriptor with the lock on what a dead process left at `path`; None if it is not known to be dead.

    The caller removes it while it holds it, and closes the descriptor.
    """
    try:
        fd = calls.open(path, _LOOK)
    except OSError:
        return None  # Gone, or another process's: this process must not remove it.
    held = False
    try:
        held = try_hold(calls, fd, path)
    finally:
        if not held:
            # Invariant 10: the lock of a failed attempt must not keep others away.
            calls.close(fd)
    return fd if held else None


def is_still(calls: SystemCalls, fd: int, path: str) -> bool:
    """Say whether `path` still names the file that is open as `fd`."""
    try:
        return calls.fstat(fd).identity == calls.stat(path, follow=False).identity
    except FileNotFoundError:
        return False
