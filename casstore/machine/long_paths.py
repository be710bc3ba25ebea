"""Opening and listing files whose path is longer than the system takes at once.

A folder may nest deeper than PATH_MAX (4096 bytes on Linux): such a path is walked in parts, each opened
relative to the one before. Shorter paths cost one call, as always.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_AT_ONCE = 900
"""Bytes of a path that every system takes at once; macOS allows 1024."""

_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)


class Child(NamedTuple):
    """What a folder holds: its name, whether it is a link, and whether it, or what it links to, is a folder."""

    name: bytes
    is_link: bool
    is_folder: bool


def open_path(path: bytes, flags: int) -> int:
    """Call open(2) with a path of any length; the caller closes the descriptor."""
    return _call(path, lambda name, folder: os.open(name, flags, dir_fd=folder))


def stat_path(path: bytes) -> os.stat_result:
    """Call stat(2), links followed, with a path of any length."""
    return _call(path, lambda name, folder: os.stat(name, dir_fd=folder))


def read_link(path: bytes) -> bytes | None:
    """Return where the link at a path of any length leads, None if there is no link."""
    try:
        return _call(path, lambda name, folder: os.readlink(name, dir_fd=folder))
    except OSError:
        return None  # Invariant 8: this is for a message only; reading the path raises its error.


def list_folder(path: bytes, *, kinds: bool) -> list[Child]:
    """Return what the folder at a path of any length holds, in the order of the names' bytes.

    Without `kinds` nothing counts as a folder: to find out costs a system call for each link.
    """
    try:
        return _children(path, kinds=kinds)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise  # Invariant 8: what cannot be listed is an error.
    descriptor = open_path(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _children(descriptor, kinds=kinds)
    finally:
        os.close(descriptor)


def _children(folder: bytes | int, *, kinds: bool) -> list[Child]:
    with os.scandir(folder) as listing:
        # Listing a descriptor gives decoded names.
        children = [
            Child(os.fsencode(entry.name), entry.is_symlink(), kinds and _is_folder(entry))
            for entry in listing
        ]
    return sorted(children, key=lambda child: child.name)


def _is_folder(entry: os.DirEntry[Any]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # Invariant 8: reading a link that goes round in circles raises its error.


def _call(path: bytes, work: Callable[[bytes, int | None], T]) -> T:
    try:
        return work(path, None)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    folder, name = os.path.split(path)
    descriptor = _open_folder(folder)
    try:
        return work(name, descriptor)
    finally:
        os.close(descriptor)


def _open_folder(path: bytes) -> int:
    current = os.open(b"/" if path.startswith(b"/") else b".", _FOLDER)
    try:
        for part in _parts(path):
            child = os.open(part, _FOLDER, dir_fd=current)
            os.close(current)
            current = child
    except OSError:
        os.close(current)
        raise
    return current


def _parts(path: bytes) -> list[bytes]:
    """Divide a path, without its root, into relative ones that the system takes at once."""
    parts: list[bytes] = []
    taken: list[bytes] = []
    size = 0
    for name in filter(None, path.split(b"/")):
        length = len(name) + 1
        if taken and size + length > _AT_ONCE:
            parts.append(b"/".join(taken))
            taken, size = [], 0
        taken.append(name)
        size += length
    return [*parts, b"/".join(taken)] if taken else parts
