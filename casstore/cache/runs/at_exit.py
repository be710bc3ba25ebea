"""Ends the runs of caches that nobody closed when their process ends."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol


class _Closable(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakSet[_Closable] = weakref.WeakSet()


def close_at_exit(cache: _Closable) -> None:
    """Close a cache when this process ends, if it is still there then; one that is closed twice does no harm."""
    _open.add(cache)


def forget(cache: _Closable) -> None:
    """Leave a cache alone that has been closed."""
    _open.discard(cache)


@atexit.register
def _close_all() -> None:
    for cache in list(_open):
        cache.close()


# The caches of a forked child are its parent's, which still uses them.
os.register_at_fork(after_in_child=_open.clear)
