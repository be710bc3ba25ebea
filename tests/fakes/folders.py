"""Folders that people hand over, other users, and what happens meanwhile."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fsspec import Callback

NOBODY = 65534


def write_tree(folder, contents):
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def tree_of(folder):
    """Every path below a folder: a file's bytes, a link's target, None for a directory."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


@contextlib.contextmanager
def ordinary_user():
    """Root may read everything, so whoever tests as root becomes someone else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class Meanwhile(Callback):
    """Runs an action once `after` bytes were read or written."""

    def __init__(self, after, action):
        super().__init__()
        self._left = after
        self._action = action
        self.done = False

    def relative_update(self, inc=1):
        self._left -= inc
        if self._left <= 0 and not self.done:
            self.done = True
            self._action()
