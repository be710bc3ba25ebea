"""Converts between names in trees, which are UTF-8, and the system's names, which Python decodes by the locale."""

from __future__ import annotations

import os

__all__ = ["local_path", "system_path", "tree_name"]


def system_path(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a path that came from the system; text that the locale cannot spell counts as UTF-8."""
    text = os.fspath(path)
    try:
        return os.fsencode(text)
    except (
        UnicodeEncodeError
    ):  # Design §11: it comes from a program or a config, not from the system, so the locale does not apply.
        return text.encode(errors="surrogateescape")


def tree_name(name: str) -> str:
    """Return how a tree spells a name that came from the system; one that is not UTF-8 there stays as it is."""
    try:
        return system_path(name).decode()
    except UnicodeDecodeError:
        return name  # The caller that puts it into a tree refuses it by name (invariant 1).


def local_path(folder: str | os.PathLike[str], path: str) -> str:
    """Return where a path of a tree lies below `folder`, as Python's own calls take it."""
    return os.path.join(folder, *os.fsdecode(path.encode()).split("/"))
