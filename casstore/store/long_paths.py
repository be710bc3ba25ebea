"""Opening and listing files whose path is longer than the system takes at once.

A folder may nest deeper than PATH_MAX (4096 bytes on Linux): such a path is walked in parts, each opened
relative to the one before. Shorter paths cost one call, as always.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_AT_ONCE = 900
"""Bytes of a path that every system takes at once; macOS allows 1024."""

_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)


class Child(NamedTuple):
    """What a folder holds: its name, and whether it is a link."""

    name: str
    is_link: bool


def open_path(path: str, flags: int) -> int:
    """Call open(2) with a path of any length; the caller closes the descriptor."""
    return _call(path, lambda name, folder: os.open(name, flags, dir_fd=folder))


def stat_path(path: str) -> os.stat_result:
    """Call stat(2), links followed, with a path of any length."""
    return _call(path, lambda name, folder: os.stat(name, dir_fd=folder))


def read_link(path: str) -> str | None:
    """Return where the link at a path of any length leads, None if there is no link."""
    try:
        return _call(path, lambda name, folder: os.readlink(name, dir_fd=folder))
    except OSError:
        return None  # Invariant 8: for a message only; what is wrong with the path is told by its reader.


def list_folder(path: str) -> list[Child]:
    """Return what the folder at a path of any length holds, in the order of the names' bytes."""
    try:
        return _children(path)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise  # Invariant 8: what cannot be listed is an error.
    descriptor = open_path(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _children(descriptor)
    finally:
        os.close(descriptor)


def _children(folder: str | int) -> list[Child]:
    with os.scandir(folder) as listing:
        children = [Child(entry.name, entry.is_symlink()) for entry in listing]
    return sorted(children, key=lambda child: os.fsencode(child.name))


def _call(path: str, work: Callable[[str, int | None], T]) -> T:
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


def _open_folder(path: str) -> int:
    current = os.open("/" if path.startswith("/") else ".", _FOLDER)
    try:
        for part in _parts(path):
            child = os.open(part, _FOLDER, dir_fd=current)
            os.close(current)
            current = child
    except OSError:
        os.close(current)
        raise
    return current


def _parts(path: str) -> list[str]:
    """Divide a path, without its root, into relative ones that the system takes at once."""
    parts: list[str] = []
    taken: list[str] = []
    size = 0
    for name in filter(None, path.split("/")):
        length = len(os.fsencode(name)) + 1
        if taken and size + length > _AT_ONCE:
            parts.append("/".join(taken))
            taken, size = [], 0
        taken.append(name)
        size += length
    return [*parts, "/".join(taken)] if taken else parts
