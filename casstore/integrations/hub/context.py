"""What the parts of a server share: the store, its repositories, hashes, and threads for looking things up."""

from __future__ import annotations

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from casstore.errors import BackendUnavailable
from casstore.integrations.hub.endpoint.pieces import PieceReader
from casstore.integrations.hub.endpoint.snapshots import StoredSnapshot
from casstore.integrations.hub.hashes import FileHashes
from casstore.integrations.hub.mirror.mirror import Mirror
from casstore.integrations.hub.mirror.pending import PendingSnapshot
from casstore.integrations.hub.repositories import Repositories
from casstore.machine.state import machine_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from casstore.api.store import Store
    from casstore.integrations.hub.endpoint.snapshots import Snapshot
    from casstore.integrations.hub.mirror.upstream import UpstreamHub
    from casstore.integrations.hub.repositories import Commit

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
    mirror: Mirror | None = None
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

    def mirror_of(self, upstream: UpstreamHub) -> None:
        """Look for what the store lacks at another hub; the store must not be read-only."""
        folder = self.hashes.folder or os.path.join(tempfile.gettempdir(), "casstore-hub")
        self.mirror = Mirror(
            self.store, self.repositories, self.hashes, upstream, folder=os.path.join(folder, "fetching")
        )

    async def revision(self, request: Request, repo: str, revision: str) -> Commit | PendingSnapshot:
        """Return what a revision of a repository is for whoever asks. Raises HubError."""
        # A page of somebody else, open in a browser here, must not make this server fetch anything.
        is_elsewhere = request.headers.get("sec-fetch-site") == "cross-site"
        if self.mirror is not None and not is_elsewhere:
            return await self.mirror.find(repo, revision, request.scope.get("casstore_caller"))
        commit = await self.run(self.repositories.commit, repo, revision)
        self.repositories.check_public(commit.record)
        return commit

    async def snapshot(self, request: Request, repo: str, revision: str) -> Snapshot:
        """Return what the API needs to know of a revision of a repository. Raises HubError."""
        found = await self.revision(request, repo, revision)
        if isinstance(found, PendingSnapshot):
            return found
        return StoredSnapshot(self, found, await self.run(self.repositories.model, found))

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
        if self.mirror is not None:
            self.mirror.close()
        self._threads.shutdown(cancel_futures=True)
        self.hashes.close()
        self.pieces.close()
