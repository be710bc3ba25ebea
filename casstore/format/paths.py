"""Paths inside a tree: safe to create under POSIX and Windows rules alike (design §11).

A tree may come from elsewhere, so every reader checks it before it makes a file.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import TYPE_CHECKING

from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PATH = 4096
MAX_COMPONENT = 255

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FORBIDDEN = frozenset('<>:"|?*\\')
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³"}
)


def check_path(path: str) -> None:
    """Raise ConfigError, naming `path` and the rule, unless it is a safe relative path."""
    reason = _fault(path)
    if reason:
        raise ConfigError(f"The path {path!r} {reason}; rename it and try again.")


def check_paths(paths: Iterable[str]) -> None:
    """Check each path, and that no two meet on a file system that folds case or normalises Unicode.

    A file that another path uses as a directory is a clash as well.
    """
    named = []
    for path in paths:
        check_path(path)
        named.append((_fold(path).replace("/", "\0"), path))
    # With the lowest character between their parts, paths that share a folder are neighbours, right behind
    # that folder's own name: neighbours tell everything, in memory and time that the paths' length bounds.
    named.sort()
    for (folded, path), (next_folded, next_path) in itertools.pairwise(named):
        if folded == next_folded:
            raise ConfigError(f"The paths {path!r} and {next_path!r} are one file on some systems.")
        parts, next_parts = path.split("/"), next_path.split("/")
        if next_folded.startswith(f"{folded}\0"):
            folder = "/".join(next_parts[: len(parts)])
            raise ConfigError(f"The path {path!r} is both a file and the folder {folder!r}.")
        folders = zip(folded.split("\0")[:-1], next_folded.split("\0")[:-1], strict=False)
        for at, (folder, next_folder) in enumerate(folders):
            if folder != next_folder:
                break
            if parts[at] != next_parts[at]:
                one, other = "/".join(parts[: at + 1]), "/".join(next_parts[: at + 1])
                raise ConfigError(f"The folders {one!r} and {other!r} are one folder on some systems.")


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def _fault(path: str) -> str:
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"  # Invariant 1: a name that has no bytes cannot be kept.
    if not path or len(encoded) > MAX_PATH:
        return f"is empty or longer than {MAX_PATH} bytes"
    if _CONTROL.search(path):
        return "has a control character"
    if _FORBIDDEN.intersection(path):
        return f"has one of {' '.join(sorted(_FORBIDDEN))}"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "is not a plain relative path"
        if part[-1] in ". ":
            return "has a part that ends in a dot or a space"
        if len(part.encode()) > MAX_COMPONENT:
            return f"has a part longer than {MAX_COMPONENT} bytes"
        if part.split(".", 1)[0].rstrip(" ").lower() in _RESERVED:
            return "has a part that Windows reserves"
    return ""
