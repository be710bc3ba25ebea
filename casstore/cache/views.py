"""Small files beside the store: what it holds of a run, for people and other programs, and notes of this cache."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("casstore.cache")


def write_view(path: Path, value: Any) -> None:
    """Write a file that shows what the store holds: read-only, since changing it has no effect."""
    write_json(path, value, mode=0o444)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write a value as JSON, whole or not at all; what JSON cannot hold is written as text."""
    write_file(path, json.dumps(value, indent=4, default=str).encode(), mode=mode)


def write_file(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write a file that can be made again, so it is not fsynced, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed length: derived from the name, it could be too long for a file system.
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if mode is not None:
                # A file system may refuse modes; the file is then writable.
                with contextlib.suppress(OSError):
                    os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)  # As in invariant 2: it gets its name only when it is whole.
    except OSError:
        temporary.unlink(missing_ok=True)  # As in invariant 2: an incomplete file does not count.
        raise


def is_foreign(path: Path) -> bool:
    """Say whether someone else put a file where a view would be: views are read-only."""
    try:
        return bool(path.stat().st_mode & stat.S_IWUSR)
    except OSError:
        return False  # There is no file, or it cannot be read.


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the map in a file; None, and a warning, for one that cannot be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        if path.exists():
            _log.warning("%s cannot be read, so it counts as absent: %s", path, error)
        return None
    return value if isinstance(value, dict) else None
