"""Paths inside a tree: relative, and never leading out of the folder that holds the tree (design §11).

A tree keeps every UTF-8 name that a POSIX machine can hold. Whether another place can hold it too
is found by trying, when a model is written there.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PATH = 1 << 16
"""Bytes of a path, all its parts together. A folder may nest deeper than a system takes in one call."""


def check_path(path: str) -> None:
    """Raise ConfigError, naming `path` and the rule, unless it can be the path of a file in a tree."""
    reason = _fault(path)
    if reason:
        raise ConfigError(f"The path {path!r} {reason}; rename it and try again.")


def check_paths(paths: Iterable[str]) -> None:
    """Check each path, and that no two are equal and none lies below another."""
    # With the lowest character between their parts, paths that share a folder are neighbours, right behind
    # that folder's own name: comparing neighbours is enough, in memory and time bounded by the paths' length.
    named = []
    for path in paths:
        check_path(path)
        named.append((path.replace("/", "\0"), path))
    named.sort()
    for (key, path), (next_key, next_path) in itertools.pairwise(named):
        if key == next_key:
            raise ConfigError(f"The path {path!r} occurs twice.")
        if next_key.startswith(f"{key}\0"):
            raise ConfigError(f"The path {path!r} is both a file and the folder of {next_path!r}.")


def _fault(path: str) -> str:
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"  # Invariant 1: text that cannot be encoded cannot be kept.
    if not 0 < size <= MAX_PATH:
        return f"is empty or longer than {MAX_PATH} bytes"
    if "\0" in path:
        return "has a NUL character"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "is not a plain relative path"
    return ""
