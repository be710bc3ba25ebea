"""HTTP/1.1 connections that cannot be held open for nothing: uvicorn's, with limits of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

__all__ = ["LimitedProtocol"]


class LimitedProtocol(H11Protocol):
    """A connection that ends when a request does not arrive, or when the client does not take the answer.

    uvicorn waits for both for ever, and each such connection would keep one of the places for clients.
    """

    head_seconds = 20.0
    """In which the head of a request has to arrive, from its first byte or the opening of the connection on."""

    stalled_seconds = 60.0
    """In which a client has to take something of what waits for it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop("_head_timer")
        self._stop("_stall_timer")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that they begin has to be complete soon."""
        super().data_received(data)
        if self._is_answering():
            self._stop("_head_timer")
        elif self._head_timer is None:
            self._expect_head()

    def on_response_complete(self) -> None:
        """Count from the next byte on; until it comes, uvicorn's own limit holds."""
        self._stop("_head_timer")
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Give the client a while to take what waits."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has taken enough."""
        self._stop("_stall_timer")
        super().resume_writing()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)
