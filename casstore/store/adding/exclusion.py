"""Which files of a folder are left out of an add: patterns as in .gitignore, read by pathspec.

`*.log` leaves out every file and folder of such a name, `logs/` every folder, `/notes.txt` only what lies at the
top, `a/**/b` any depth between, and `!keep.log` takes back what an earlier line left out. A folder that is left
out is not looked into.

pathspec is imported when there are patterns: most folders have none, and a command starts faster without.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from casstore.errors import AccessDenied, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pathspec import GitIgnoreSpec

__all__ = ["IGNORE_FILE", "Exclusion"]

IGNORE_FILE = ".casstoreignore"
"""The patterns of a folder, one a line, `#` before a comment. It is read at the top only, and is not stored."""

_MAX_IGNORE_FILE = 1 << 20


class Exclusion:
    """Patterns that say what is left out, by paths relative to the folder that is added."""

    def __init__(self, patterns: Iterable[str] = (), *, ignore_file: bool = False) -> None:
        """`ignore_file` says that a folder's own IGNORE_FILE counts, before `patterns`. Raises ConfigError."""
        self._patterns = tuple(patterns)
        self._ignore_file = ignore_file
        self._spec = _compile(self._patterns, place="exclude") if self._patterns else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left out."""
        return self._spec is None and not self._ignore_file

    def without_ignore_file(self) -> Exclusion:
        """Return the same patterns, for folders whose own ignore file does not count."""
        return Exclusion(self._patterns) if self._ignore_file else self

    def within(self, folder: bytes) -> Exclusion:
        """Return what is left out of this folder: raises ConfigError for an IGNORE_FILE that cannot be read."""
        lines = _read_lines(os.path.join(folder, IGNORE_FILE.encode())) if self._ignore_file else None
        if lines is None:
            return self.without_ignore_file()
        known = Exclusion()
        known._ignore_file = True
        place = os.path.join(folder, IGNORE_FILE.encode()).decode(errors="backslashreplace")
        known._spec = _compile([*lines, *self._patterns], place=place)
        return known

    def leaves_out(self, path: bytes, *, is_folder: bool) -> bool:
        """Say whether a path, relative to the folder that is added, is left out."""
        if self._ignore_file and path == IGNORE_FILE.encode():
            return True
        if self._spec is None:
            return False
        text = path.decode(errors="surrogateescape")
        # A backslash is a character like others in names, not a separator.
        return self._spec.match_file(f"{text}/" if is_folder else text, separators=())


def _compile(lines: Iterable[str], *, place: str) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec  # noqa: PLC0415 - see the top of this file

    try:
        return GitIgnoreSpec.from_lines(lines)
    except (ValueError, re.error) as error:
        raise ConfigError(f"A pattern in {place} cannot be used: {error}.") from error


def _read_lines(path: bytes) -> list[str] | None:
    """Return the lines of an ignore file, None if there is none."""
    shown = path.decode(errors="backslashreplace")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            data = file.read(_MAX_IGNORE_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        # Invariant 8: without the patterns nobody knows what to leave out, so nothing is added.
        raise AccessDenied(f"{shown} cannot be read: {error.strerror}. Check its permissions.") from error
    if len(data) > _MAX_IGNORE_FILE:
        raise ConfigError(f"{shown} has more than {_MAX_IGNORE_FILE} bytes. Is it a file of patterns?")
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown} is not UTF-8 text: {error}.") from error
