"""Checks whether a disk has room, by writing: quotas show in no other way."""

from __future__ import annotations

import errno
import os
import uuid
from typing import TYPE_CHECKING

from casstore.machine.uses.processes import write_whole

if TYPE_CHECKING:
    from pathlib import Path

_ROOM = 1 << 20
"""Bytes that must be free in a folder before a pass may use it."""

_PROBE = 4096


def make_probe(path: Path) -> None:
    """Make the empty file `path`; raise OSError, and leave none, where the disk or a quota has no room."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _check_space(descriptor)
        write_whole(descriptor, bytes(_PROBE))
        os.ftruncate(descriptor, 0)
    except OSError:
        # Invariant 13: the test file must not take up room.
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def has_room(folder: Path) -> bool:
    """Say whether a folder can be written to."""
    probe = folder / f".casstore-room-{uuid.uuid4().hex}"
    try:
        make_probe(probe)
    except OSError:
        return False  # Invariant 11: the caller works elsewhere.
    probe.unlink(missing_ok=True)
    return True


def _check_space(descriptor: int) -> None:
    space = os.fstatvfs(descriptor)
    # Some network file systems report no blocks at all.
    if space.f_blocks > 0 and space.f_bavail * space.f_frsize < _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
