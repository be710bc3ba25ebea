"""Failures that a pipeline goes on without: they are logged and kept, and count as not cached (invariant 11)."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from casstore.errors import CasstoreError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("casstore.cache")

_KEPT = 100


class Failures:
    """The latest failures of one cache, as `texts`. Safe in threads."""

    def __init__(self) -> None:
        self.texts: deque[str] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def tolerated(self, doing: str) -> Iterator[None]:
        """Go on after a failure to do what `doing` says, which is noted (invariant 11)."""
        try:
            yield
        except (CasstoreError, OSError) as error:
            self.note(doing, error)

    def note(self, doing: str, error: BaseException) -> None:
        """Log and keep a failure; one that is known is logged once, damage each time."""
        text = f"Could not {doing}: {error}"
        with self._lock:
            known = text in self.texts
            self.texts.append(text)
        if isinstance(error, IntegrityError):
            _log.error("Could not %s because it is damaged: %s", doing, error)
        elif not known:
            _log.warning("%s", text)
