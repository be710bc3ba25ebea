"""What a server counts, in the text format of Prometheus, and the access log. Neither holds a secret.

Paths in the log are as they were sent, without what follows a question mark.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from starlette.types import Scope

    from casstore.integrations.hub.context import ServerContext

__all__ = ["ACCESS_LOG", "ServerMetrics"]

ACCESS_LOG = "casstore.serve"
"""The logger of requests: one line for each, at level INFO."""

_SIZE_SECONDS = 300.0
_access = logging.getLogger(ACCESS_LOG)


class ServerMetrics:
    """The counters of one server; for its event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "casstore_requests",
            "Requests that were answered.",
            ("kind", "method", "status"),
            registry=self.registry,
        )
        self._bytes = Counter(
            "casstore_sent_bytes", "Bytes of bodies that were sent.", ("kind",), registry=self.registry
        )
        self._seconds = Histogram(
            "casstore_request_seconds",
            "Seconds until an answer was complete.",
            ("kind",),
            registry=self.registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600),
        )
        self.active = Gauge("casstore_active_requests", "Requests being answered.", registry=self.registry)
        self._hashes = Gauge(
            "casstore_hash_lookups",
            "Times that the SHA of a file was wanted: known already, or computed.",
            ("result",),
            registry=self.registry,
        )
        self._size = Gauge("casstore_store_bytes", "Bytes of the store's files.", registry=self.registry)
        self._refs = Gauge("casstore_store_models", "Refs that name models.", registry=self.registry)
        self.mirrored = Counter(
            "casstore_mirror_commits",
            "Commits that were looked for at the upstream hub.",
            ("result",),
            registry=self.registry,
        )
        self._measured = 0.0

    def count(self, scope: Scope, *, kind: str, status: int, sent: int, seconds: float) -> None:
        """Count a request and log it."""
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        self._requests.labels(kind, method, str(status)).inc()
        self._bytes.labels(kind).inc(sent)
        self._seconds.labels(kind).observe(seconds)
        client = scope.get("client")
        _access.info(
            '%s "%s %s" %d %d %.0f ms',
            client[0] if client else "-",
            scope["method"],
            scope["raw_path"].decode("ascii", "backslashreplace"),
            status,
            sent,
            1000 * seconds,
        )

    async def text(self, context: ServerContext) -> bytes:
        """Return all counters. The store is measured every few minutes at most: a large one takes a while to list."""
        now = time.monotonic()
        if not self._measured or now - self._measured > _SIZE_SECONDS:
            backend = context.store.backend
            self._size.set(await context.run(lambda: sum(entry.size for entry in backend.list(""))))
            self._measured = now
        self._refs.set(len(await context.run(context.repositories.rows)))
        self._hashes.labels("known").set(context.hashes.hits)
        self._hashes.labels("computed").set(context.hashes.misses)
        return generate_latest(self.registry)
