"""Small files beside the store: what it holds of a run, for people and other programs, and notes of this cache."""

from __future__ import annotations

import json
import logging
import stat
from typing import TYPE_CHECKING, Any

from casstore.machine.atomic_write import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("casstore.cache")


def write_view(path: Path, value: Any) -> None:
    """Write a file that shows what the store holds: read-only, since changing it has no effect."""
    write_json(path, value, mode=0o444)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write a value as JSON, whole or not at all; what JSON cannot hold is written as text."""
    write_file(path, json.dumps(value, indent=4, default=str).encode(), mode=mode)


def write_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file that can be made again, so it is not fsynced, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, mode=mode) as file:
        file.write(data)


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
