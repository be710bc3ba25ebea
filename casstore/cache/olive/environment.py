"""The cache directory for code of a pass that was not given a cache."""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING

from casstore.cache.settings import DEFAULT_CACHE_DIR, DEFAULT_WORKFLOW_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "OLIVE_CACHE_DIR"

_isolated: ContextVar[str | None] = ContextVar("casstore_cache_dir", default=None)


@contextlib.contextmanager
def isolated_cache_env(cache_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Use `cache_dir` in this thread or task only; the process's environment is neither read nor set."""
    token = _isolated.set(os.fspath(cache_dir))
    try:
        yield
    finally:
        _isolated.reset(token)


def set_cache_dir(cache_dir: str | os.PathLike[str]) -> None:
    """Make `cache_dir` the one that is found: in this context if it is isolated, else in the whole process."""
    if _isolated.get() is not None:
        _isolated.set(os.fspath(cache_dir))
    else:
        os.environ[VARIABLE] = os.fspath(cache_dir)


def get_cache_dir() -> str:
    """Return the directory to use."""
    isolated = _isolated.get()
    return isolated or os.environ.get(VARIABLE) or os.path.join(DEFAULT_CACHE_DIR, DEFAULT_WORKFLOW_ID)
