"""Channels of one SSH connection: small requests share one, long transfers get their own.

Opening a channel takes four round trips. Answers on a channel come in any order, so many small requests need only one; a
server works through a channel in order, so a pack that is being sent would hold up everything behind it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asyncssh import ChannelOpenError
from sshfs.pools.base import BaseSFTPChannelPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

_SMALL = 1 << 20  # transfers up to this many bytes use the shared channel without holding up others for long


class Channels(BaseSFTPChannelPool):  # type: ignore[misc]  # sshfs ships no types
    """The pool that sshfs takes channels from: `get` for a small request, `lease` for a transfer, `lend` for either."""

    def __init__(self, *arguments: Any, max_channels: int, **options: Any) -> None:
        super().__init__(*arguments, max_channels=max_channels, **options)
        self._shared: Any = None
        self._sharing = asyncio.Lock()
        self._idle: list[Any] = []
        self._leases = 0
        self._most = max_channels - 1

    @property
    def active_channels(self) -> int:
        """How many channels are open, or about to be."""
        return (self._shared is not None) + len(self._idle) + self._leases

    @asynccontextmanager
    async def get(self) -> AsyncIterator[Any]:
        """Lend the channel that small requests share."""
        async with self._sharing:
            if self._shared is None:
                self._shared = await self._open()
        yield self._shared

    def lend(self, size: int) -> AbstractAsyncContextManager[Any]:
        """Lend a channel for moving `size` bytes."""
        return self.lease() if size > _SMALL else self.get()

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Any]:
        """Lend a channel to one transfer; the shared one when the server allows no more."""
        channel = await self._take()
        if channel is None:
            async with self.get() as shared:
                yield shared
            return
        try:
            yield channel
        finally:
            self._leases -= 1
            self._idle.append(channel)

    async def _take(self) -> Any:
        if self._idle:
            self._leases += 1
            return self._idle.pop()
        if self._leases >= self._most:
            return None
        self._leases += 1
        opened = None
        try:
            opened = await self._open()
        except ChannelOpenError:
            # Invariant 11: no failure, the shared channel does. Servers limit the sessions without saying how many.
            self._most = self._leases - 1 + len(self._idle)
        finally:
            if opened is None:
                self._leases -= 1
        return opened

    async def _open(self) -> Any:
        return await self._stack.enter_async_context(self.client.start_sftp_client(**self.sftp_client_kwargs))

    async def _cleanup(self) -> None:
        self._shared = None
        self._idle.clear()
