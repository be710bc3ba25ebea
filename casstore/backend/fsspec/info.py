"""What fsspec's file systems say about objects and about themselves."""

from __future__ import annotations

import asyncio
from datetime import datetime
from math import nan
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem

from casstore.backend.base import Entry
from casstore.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

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


def made_by(fs: Any, package: str) -> bool:
    """Say whether a file system is this package's, or derived from it."""
    return any(kind.__module__.split(".", 1)[0] == package for kind in type(fs).__mro__)


def finds_natively(fs: Any) -> bool:
    """Say whether `find` is one flat listing of the server's, which reports its errors.

    The inherited one walks the directories and skips those that it could not read (invariant 8).
    """
    if isinstance(fs, AsyncFileSystem):
        return type(fs)._find is not AsyncFileSystem._find  # noqa: SLF001  # the documented hook of fsspec
    return type(fs).find is not AbstractFileSystem.find


def pipes_natively(fs: Any) -> bool:
    """Say whether `pipe_file` is the file system's own; the inherited one looks first and then writes."""
    if isinstance(fs, AsyncFileSystem):
        return type(fs)._pipe_file is not AsyncFileSystem._pipe_file  # noqa: SLF001  # as above
    return type(fs).pipe_file is not AbstractFileSystem.pipe_file


def moves_natively(fs: Any) -> bool:
    """Say whether `mv` is the file system's own; the inherited one copies and then deletes."""
    return type(fs).mv is not AbstractFileSystem.mv or hasattr(fs, "_mv")


async def all_of(work: Iterable[Awaitable[Any]]) -> None:
    """Await everything at the same time; the first error ends the rest of it (invariant 8)."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
