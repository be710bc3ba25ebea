"""The evaluator of an evaluation, for callers that do not name one."""

from __future__ import annotations

import contextlib
import json
from contextvars import ContextVar
from typing import TYPE_CHECKING

from casstore.cache.values import by_content, plain
from casstore.digest import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_NAME_DIGITS = 32

_current: ContextVar[object] = ContextVar("casstore_evaluator", default=None)


@contextlib.contextmanager
def evaluating(evaluator: object) -> Iterator[None]:
    """Let evaluations that are cached or loaded inside belong to this evaluator config."""
    token = _current.set(evaluator)
    try:
        yield
    finally:
        _current.reset(token)


def name_of(evaluator: object, content_id: Callable[[str | Mapping[str, str]], str]) -> str:
    """Return the name of an evaluator config, None for the current one; "" for none.

    Files that it names count by their content, which `content_id` gives, so that the name is the same on every machine.
    """
    evaluator = _current.get() if evaluator is None else evaluator
    if evaluator is None:
        return ""
    value = by_content(plain(evaluator, what="The evaluator's config"), content_id)
    return digest(json.dumps(value, sort_keys=True).encode()).hex()[:_NAME_DIGITS]
