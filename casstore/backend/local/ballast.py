"""Ballast: space that a local store keeps, so that a disk without a free byte can be freed (design §8).

Deleting a ref and condemning packs take a small file each before anything can go. The ballast gives them room, piece by
piece; what a collection frees restores it.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from casstore.backend.local.writer import LocalWriter
from casstore.errors import CasstoreError

if TYPE_CHECKING:
    from casstore.backend.local.directory import StoreDirectory

FOLDER = ".ballast"  # hidden, hence no key

PIECE = 128 << 10
PIECES = tuple("01234567")
"""Names of the files, 1 MiB in all. Each is also an inode, where files are what is short."""

LAST = 4
"""Pieces that only a collection takes: it needs a folder, a temporary file, and on tmpfs another inode for its final name."""

_log = logging.getLogger("casstore")


def keep(directory: StoreDirectory) -> None:
    """Write the pieces that are missing, where there is room to spare. Never raises."""
    try:
        missing = _missing(directory)
        # Other writers need some of what is free.
        if missing and directory.calls.has_room(directory.root, 2 * PIECE * len(missing), 2 * len(missing)):
            directory.ensure(f"{directory.root}/{FOLDER}")
            for name in missing:
                _write(directory, name)
    except (CasstoreError, OSError) as error:
        # Invariant 13: a store without ballast works, too.
        _log.debug("%s has no ballast: %s", directory.root, error)


def release(directory: StoreDirectory, *, last: bool) -> bool:
    """Give one piece back to the file system, also of the last ones if `last`; say whether there was one."""
    for name in PIECES if last else PIECES[LAST:]:
        try:
            # Invariant 1 does not cover this: it holds nothing, and has no key.
            directory.calls.unlink(_path(directory, name))
        except OSError:  # eight at most
            continue  # Another process was faster, or this piece cannot be removed: the next one may be there.
        return True
    return False


def size(directory: StoreDirectory) -> int:
    """Return the bytes of all pieces that are there."""
    try:
        return sum(_sizes(directory).values())
    except OSError:
        return 0  # Invariant 13: a store without ballast works, too.


def _missing(directory: StoreDirectory) -> list[str]:
    there = _sizes(directory)
    return [name for name in PIECES if there.get(name, 0) < PIECE]


def _sizes(directory: StoreDirectory) -> dict[str, int]:
    try:
        found = directory.calls.scandir(f"{directory.root}/{FOLDER}")
        return {name: status.size for name, status in found if name in PIECES}
    except FileNotFoundError:
        return {}


def _write(directory: StoreDirectory, name: str) -> None:
    """Write one piece. It is not synced: one that a power failure takes or cuts off is written again."""
    path = _path(directory, name)
    directory.unlink_quietly(path)  # One that is too short is in the way.
    # Held until it has its name, so that one that a kill leaves behind is removed as abandoned.
    with LocalWriter(directory) as made:
        # Random, so that no file system stores it in less.
        made.write([os.urandom(PIECE)])
        made.set_mode(directory.published_mode)
        # Without replacing: of two processes, one has the piece and the other discards its own.
        directory.naming.place(made.path, path, exclusive=False)


def _path(directory: StoreDirectory, name: str) -> str:
    return f"{directory.root}/{FOLDER}/{name}"
