"""What models take in the store: measured beside the requests, since that reads the whole index."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import CasstoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.api.store import Store
    from casstore.ops.du import Usage, UsageRow
    from casstore.ops.stats import StoreStats
    from casstore.refs.rows import RefRow

__all__ = ["Measured", "Measurements"]

_log = logging.getLogger("casstore")

_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured at `time`, in nanoseconds since 1970; `by_ref` are the rows of `usage` by name."""

    usage: Usage
    stats: StoreStats
    by_ref: dict[str, UsageRow]
    time: int


class Measurements:
    """The latest figures of one store; for one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="casstore-serve-measure")
        self._task: asyncio.Future[None] | None = None
        self._begun = 0.0
        self._of: int | None = None
        self._latest: Measured | None = None

    def close(self) -> None:
        """Wait for a measurement under way, and end the thread."""
        self._threads.shutdown(cancel_futures=True)

    def latest(self, rows: Sequence[RefRow]) -> Measured | None:
        """Return the latest figures, None if there are none yet; measure again if `rows`, all models, are others by now."""
        mark = hash(tuple((row.name, row.target) for row in rows))
        is_old = time.monotonic() - self._begun > _SECONDS
        if (self._task is None or self._task.done()) and (mark != self._of or is_old):
            self._of, self._begun = mark, time.monotonic()
            loop = asyncio.get_running_loop()
            self._task = loop.run_in_executor(self._threads, self._measure)
        return self._latest

    async def wait(self, seconds: float) -> None:
        """Wait for a measurement under way, for a while."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)

    def _measure(self) -> None:
        try:
            usage, stats = self._store.du(), self._store.stats()
        except CasstoreError as error:
            # Invariant 11: the page says that there are no figures, and the log why.
            _log.warning("What the models take could not be measured: %s", error)
            return
        self._latest = Measured(usage, stats, {row.name: row for row in usage.rows}, time.time_ns())
