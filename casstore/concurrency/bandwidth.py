"""A limit on bytes per second, for everything that one operation reads and sends."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


class TokenBucket:
    """Limits transfers to `rate` bytes per second, in bursts of up to a quarter of a second; safe in threads.

    Without a `rate` nothing waits. `clock` and `sleep` are for tests. Raises ConfigError for a rate below 1.
    """

    def __init__(
        self,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate is not None and not rate >= 1:
            raise ConfigError(f"A bandwidth limit of {rate} bytes per second is too low: give 1 or more.")
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, size: int) -> None:
        """Wait until `size` bytes may go."""
        if self._rate is None:
            return
        with self._lock:
            # Unused bandwidth does not accumulate to a burst later.
            now = self._clock()
            self._free_at = max(self._free_at, now - 0.25) + size / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)
