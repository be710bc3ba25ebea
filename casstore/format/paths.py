"""Paths inside a tree: safe to create under POSIX and Windows rules alike (design §11).

A tree may come from elsewhere, so every reader checks it before it makes a file.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PATH = 4096
MAX_COMPONENT = 255

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
    files: dict[str, str] = {}
    parents: dict[str, str] = {}
    for path in paths:
        check_path(path)
        folded = _fold(path)
        if folded in files:
            raise ConfigError(f"The paths {files[folded]!r} and {path!r} are one file on some systems.")
        files[folded] = path
        above, _, _ = path.rpartition("/")
        while above:
            spelled = parents.setdefault(_fold(above), above)
            if spelled != above:
                raise ConfigError(f"The folders {spelled!r} and {above!r} are one folder on some systems.")
            above, _, _ = above.rpartition("/")
    for folded, parent in parents.items():
        if folded in files:
            raise ConfigError(f"The path {files[folded]!r} is both a file and the folder {parent!r}.")


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def _fault(path: str) -> str:
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"  # Invariant 1: a name that has no bytes cannot be kept.
    if not path or len(encoded) > MAX_PATH:
        return f"is empty or longer than {MAX_PATH} bytes"
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in path):
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
