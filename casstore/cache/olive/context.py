"""What Olive does not pass to its cache: the directory to use in one thread or task, and the evaluator."""

from __future__ import annotations

import contextlib
import json
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING

from casstore.cache.settings import DEFAULT_CACHE_DIR, DEFAULT_WORKFLOW_ID
from casstore.cache.values import by_content, plain
from casstore.digest import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

VARIABLE = "OLIVE_CACHE_DIR"

_NAME_DIGITS = 32

_cache_dir: ContextVar[str | None] = ContextVar("casstore_cache_dir", default=None)
_evaluator: ContextVar[object] = ContextVar("casstore_evaluator", default=None)


@contextlib.contextmanager
def isolated_cache_env(cache_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Use `cache_dir` in this thread or task only; the process's environment is neither read nor set."""
    token = _cache_dir.set(os.fspath(cache_dir))
    try:
        yield
    finally:
        _cache_dir.reset(token)


def set_cache_dir(cache_dir: str | os.PathLike[str]) -> None:
    """Make `cache_dir` the one that is found: in this context if it is isolated, else in the whole process."""
    if _cache_dir.get() is not None:
        _cache_dir.set(os.fspath(cache_dir))
    else:
        os.environ[VARIABLE] = os.fspath(cache_dir)


def get_cache_dir() -> str:
    """Return the directory to use."""
    default = os.path.join(DEFAULT_CACHE_DIR, DEFAULT_WORKFLOW_ID)
    return _cache_dir.get() or os.environ.get(VARIABLE) or default


@contextlib.contextmanager
def evaluating(evaluator: object) -> Iterator[None]:
    """Let evaluations that are cached or loaded inside belong to this evaluator config."""
    token = _evaluator.set(evaluator)
    try:
        yield
    finally:
        _evaluator.reset(token)


def evaluator_name(evaluator: object, content_id: Callable[[str | Mapping[str, str]], str]) -> str:
    """Return the name of an evaluator config, None for the current one; "" for none.

    Files that it names count by their content, which `content_id` gives, so that the name is the same on every machine.
    """
    evaluator = _evaluator.get() if evaluator is None else evaluator
    if evaluator is None:
        return ""
    value = by_content(plain(evaluator, what="The evaluator's config"), content_id)
    return digest(json.dumps(value, sort_keys=True).encode()).hex()[:_NAME_DIGITS]
