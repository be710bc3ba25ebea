"""What the parts of a server share: the store, its repositories, hashes, and threads for looking things up."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from casstore.errors import BackendUnavailable
from casstore.integrations.hub.hashes import FileHashes
from casstore.integrations.hub.pieces import PieceReader
from casstore.integrations.hub.repositories import Repositories
from casstore.machine.state import machine_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from casstore.api.store import Store

T = TypeVar("T")

_REF_SECONDS = 5.0
_THREADS = 8

_PATIENCE = 8.0
"""Seconds that a request waits for a store that is a network away, which tries again for minutes: clients give up after 10."""


@dataclass(slots=True)
class ServerContext:
    """One store as a server sees it. Close it when the server has ended; the store stays open."""

    store: Store
    repositories: Repositories
    hashes: FileHashes
    pieces: PieceReader
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="casstore-serve")
    )

    @classmethod
    def of(cls, store: Store, *, ref_seconds: float | None = None) -> ServerContext:
        """Return the context of a store; refs of one that is a network away are asked for every few seconds at most."""
        if ref_seconds is None:
            ref_seconds = _REF_SECONDS if store.backend.is_remote else 0.0
        is_kept = not store.backend.url.startswith("memory:")
        folder = machine_folder(bytes.fromhex(store.store_id), store.backend.url) if is_kept else None
        return cls(
            store,
            Repositories(store, ref_seconds=ref_seconds),
            FileHashes(store, None if folder is None else os.path.join(folder, "hub")),
            PieceReader(store),
        )

    async def run(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Return what `work` does in a thread: everything that reads the store. Raises as `in_time` does."""
        loop = asyncio.get_running_loop()
        return await self.in_time(loop.run_in_executor(self._threads, partial(work, *args, **options)))

    async def in_time(self, work: Awaitable[T]) -> T:
        """Return what `work` returns; raise BackendUnavailable if a store that is a network away does not answer in time."""
        if not self.store.backend.is_remote:
            return await work
        try:
            return await asyncio.wait_for(work, _PATIENCE)
        except asyncio.TimeoutError:
            raise BackendUnavailable(
                f"{self.store.backend.url} did not answer for {_PATIENCE:.0f} s."
            ) from None

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)
        self.hashes.close()
        self.pieces.close()
