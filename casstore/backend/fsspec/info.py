"""What fsspec's file systems say about an object."""

from __future__ import annotations

from datetime import datetime
from math import nan
from typing import TYPE_CHECKING, Any

from casstore.backend.base import Entry
from casstore.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


def entry(key: str, info: Mapping[str, Any]) -> Entry:
    """Return the entry that an `info` or `ls` answer describes."""
    size = info.get("size")
    if not isinstance(size, int):
        raise BackendError(f"The storage does not give the size of {key}.")
    return Entry(key, size, _modified(info))


def _modified(info: Mapping[str, Any]) -> float:
    """Return the time of writing under whichever name and type this file system gives it."""
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, str):
            try:
                # Python 3.10 does not read the Z that the cloud services write.
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
            except ValueError:
                continue
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return nan
