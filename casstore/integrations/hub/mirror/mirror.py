"""Makes a server the mirror of another hub: what the store lacks is fetched as a whole commit, checked, added, then served.

A name that the store has for a model of its own is never looked for elsewhere. Who may read a gated or private model is
asked of the other hub, with the token of whoever asks; what another one's token has fetched is not served to them.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from casstore.digest import digest
from casstore.errors import BackendUnavailable
from casstore.integrations.hub.errors import HubError, as_hub_error, repo_not_found
from casstore.integrations.hub.mirror.fetching import Fetch, files_of
from casstore.integrations.hub.mirror.pending import PendingSnapshot
from casstore.integrations.hub.repositories import LFS_SIZE, MIRROR, MODELS, TAGS, hub_note, is_commit
from casstore.integrations.hub.targets import MAIN, is_reachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.api.store import Store
    from casstore.format.record import Record
    from casstore.integrations.hub.hashes import FileHashes
    from casstore.integrations.hub.mirror.fetching import RemoteFile
    from casstore.integrations.hub.mirror.upstream import UpstreamHub
    from casstore.integrations.hub.repositories import Commit, Repositories

__all__ = ["Job", "Mirror"]

T = TypeVar("T")

_log = logging.getLogger("casstore")

_FRESH = 60.0
"""Seconds for which the other hub is not asked again what a branch is now, or whether somebody may read a model."""

_PATIENCE = 8.0
_KEPT = 1024
_THREADS = 8
_FETCHES = 3
_MOST_JOBS = 100
_LONGEST_WAIT = 300


@dataclass(slots=True)
class Job:
    """A commit on its way. All who want it wait for the same one."""

    fetch: Fetch
    begun: float
    task: asyncio.Task[None] = field(init=False)

    def seconds_left(self, now: float) -> int:
        """Return when it may be done, by how fast it has come so far."""
        took = max(0.1, now - self.begun)
        rate = self.fetch.done / took
        left = (self.fetch.total - self.fetch.done) / rate if rate else took
        return max(1, min(_LONGEST_WAIT, round(left) + 1))


class Mirror:
    """What one server knows of the other hub; for its event loop. `folder` is where files are before they are added."""

    def __init__(
        self,
        store: Store,
        repositories: Repositories,
        hashes: FileHashes,
        upstream: UpstreamHub,
        *,
        folder: str,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`told` is called with "fetched" or "failed" for each commit that was looked for."""
        self._store = store
        self._repositories = repositories
        self._hashes = hashes
        self._upstream = upstream
        self._folder = folder
        _remove_leftovers(folder)
        self.told = told
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="casstore-mirror")
        self._fetches = ThreadPoolExecutor(_FETCHES, thread_name_prefix="casstore-mirror-fetch")
        self._answers: dict[tuple[str, ...], tuple[float, Any]] = {}
        self._jobs: dict[tuple[str, str], Job] = {}
        self._running: set[Fetch] = set()

    def close(self) -> None:
        """End fetches under way, and the threads."""
        for fetch in list(self._running):
            fetch.stop()
        self._fetches.shutdown(cancel_futures=True)
        self._threads.shutdown(cancel_futures=True)
        self._upstream.close()

    async def find(self, repo: str, revision: str, token: str | None) -> Commit | PendingSnapshot:
        """Return a revision for whoever has this token: what the store has, else what the other hub tells, on its way.

        Raises HubError as the other hub refuses, BackendUnavailable if it does not answer and the store has nothing.
        """
        if not is_reachable(repo) or await self._is_own(repo):
            return await self._run(self._repositories.commit, repo, revision)
        if is_commit(revision):
            found = await self._stored(repo, revision)
            if found is not None:
                await self._authorise(repo, found.record, token)
                return found
        try:
            info = await self._ask("info", repo, revision, token)
        except BackendUnavailable:
            found = await self._stored(repo, revision)
            if found is None or hub_note(found.record.metadata).get("private"):
                raise
            return found  # Invariant 8: the other hub is away, and this is what it said last.
        sha = info["sha"]
        if not is_commit(sha):
            raise repo_not_found(repo)
        private = bool(info.get("private") or info.get("gated"))
        if private:
            await self._ask("check", repo, "", token)
        found = await self._stored(repo, sha)
        if found is not None:
            return found
        job = await self._job(repo, revision, sha, token, private=private)
        return PendingSnapshot(repo, sha, info, job.fetch.files, job, self)

    async def arrival(self, pending: PendingSnapshot) -> Commit:
        """Wait for a commit a while, and return it. Raises HubError, which says when to come again, or why it cannot come."""
        task = pending.job.task
        await asyncio.wait({task}, timeout=_PATIENCE)
        if not task.done():
            raise HubError(
                429,
                f"{pending.repo} is on its way from {self._upstream.url}. Try again in a while.",
                headers={"Retry-After": str(pending.job.seconds_left(time.monotonic()))},
            )
        if task.exception() is None:
            found = await self._stored(pending.repo, pending.sha)
            if found is not None:
                return found
        error = task.exception()
        if isinstance(error, HubError):
            raise error
        if isinstance(error, BackendUnavailable):
            raise as_hub_error(error)
        raise HubError(502, f"{pending.repo} could not be fetched from {self._upstream.url}: {error}")

    async def ask(self, repo: str, path: str, token: str | None) -> Any:
        """Return what the other hub says at a path of its API about a repository that is its own; None if it is this store's."""
        if not is_reachable(repo) or await self._is_own(repo):
            return None
        return await self._ask("get", repo, path, token)

    async def _is_own(self, repo: str) -> bool:
        """Say whether the store has a model of its own under this name."""
        record = await self._run(self._repositories.value, MODELS + repo)
        return record is not None and hub_note(record.metadata).get("url") != self._upstream.url

    async def _stored(self, repo: str, revision: str) -> Commit | None:
        def look() -> Commit | None:
            try:
                found = self._repositories.commit(repo, revision)
                self._repositories.model(found)
            except HubError:
                return None  # Not there, or freed since: it is fetched.
            return found

        return await self._run(look)

    async def _authorise(self, repo: str, record: Record, token: str | None) -> None:
        if hub_note(record.metadata).get("private"):
            await self._ask("check", repo, "", token)

    async def _ask(self, what: str, repo: str, argument: str, token: str | None) -> Any:
        """Ask the other hub, or remember what it answered this caller; a refusal is remembered, too, an outage is not."""
        key = (what, repo, argument, digest((token or "").encode()).hex())
        now = time.monotonic()
        known = self._answers.get(key)
        if known is None or now - known[0] > _FRESH:
            try:
                if what == "info":
                    answer: Any = await self._run(self._upstream.info, repo, argument, token)
                elif what == "check":
                    answer = await self._run(self._upstream.check, repo, token)
                else:
                    answer = await self._run(self._upstream.get, argument, token)
            except HubError as error:
                answer = error
            if len(self._answers) >= _KEPT:
                self._answers.clear()
            known = self._answers[key] = (now, answer)
        if isinstance(known[1], HubError):
            raise known[1]
        return known[1]

    async def _job(self, repo: str, revision: str, sha: str, token: str | None, *, private: bool) -> Job:
        job = self._jobs.get((repo, sha))
        if job is not None:
            return job
        files = files_of(await self._run(self._upstream.tree, repo, sha, token))
        is_main = revision == MAIN
        if not is_main:
            with suppress(HubError, BackendUnavailable):
                # Known by the commit alone so far: as the branch, it also is what the name means.
                is_main = (await self._ask("info", repo, MAIN, token))["sha"] == sha
        job = self._jobs.get((repo, sha))
        if job is not None:
            return job  # Somebody else asked meanwhile.
        if len(self._jobs) >= _MOST_JOBS:
            raise BackendUnavailable("As many models as this server takes on are on their way.")
        fetch = Fetch(self._store, self._upstream, repo, sha, files, token=token)
        job = self._jobs[repo, sha] = Job(fetch, time.monotonic())
        note = {"url": self._upstream.url, "commit": sha, "private": private, "lfs": _exceptions(files)}
        ref = MODELS + repo if is_main else f"{TAGS}{repo}/{sha}"
        job.task = asyncio.create_task(self._bring(fetch, ref, note))
        job.task.add_done_callback(lambda task: self._finished(repo, sha, job, task))
        return job

    async def _bring(self, fetch: Fetch, ref: str, note: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        for item, file_id in await loop.run_in_executor(self._fetches, self._fetch, fetch, ref, note):
            await self._run(self._hashes.learn, file_id, item.size, item.found, item.lfs)

    def _fetch(self, fetch: Fetch, ref: str, note: dict[str, Any]) -> list[tuple[RemoteFile, bytes]]:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        folder = tempfile.mkdtemp(dir=self._folder)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._running.add(fetch)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fetch.run(folder)
            fetch.check()
            self._store.add(folder, ref=ref, metadata={MIRROR: note}, stat_cache=False, ignore_file=False)
        finally:
            self._running.discard(fetch)
            # What a killed process leaves is removed by the next one.
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
        self._repositories.forget()
        ids = {item.path: bytes.fromhex(item.file_id) for item in self._store.files(ref)}
        return [(item, ids[item.path]) for item in fetch.files]

    def _finished(self, repo: str, sha: str, job: Job, task: asyncio.Task[None]) -> None:
        del self._jobs[repo, sha]
        error = None if task.cancelled() else task.exception()
        self.told("failed" if error or task.cancelled() else "fetched")
        if error is not None:
            _log.warning("%s could not be fetched from %s: %s", repo, self._upstream.url, error)
            return
        _log.info("Fetched %s %s: %d of %d bytes moved.", repo, sha, job.fetch.moved, job.fetch.total)

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)


def _remove_leftovers(place: str) -> None:
    """Remove what fetches left that a signal has ended: theirs are the folders that nobody holds a lock on."""
    # Invariant 13: what cannot be removed only takes space.
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            lock = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
            except BlockingIOError:
                continue  # Another server is fetching it.
            finally:
                os.close(lock)


def _exceptions(files: list[RemoteFile]) -> dict[str, bool]:
    """Return the files that the other hub does not name by the hash that their size suggests."""
    return {item.path: item.lfs for item in files if item.lfs != (item.size >= LFS_SIZE)}
