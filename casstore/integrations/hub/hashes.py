"""SHA-256 and git's SHA-1 of files: the names that clients of the Hub know files by, where casstore has BLAKE3.

Clients compare files with them (`hf cache verify`), and llama.cpp names its copies by them, so they must be true.
Each is computed once, when it is first asked for. That of a large file is kept in this machine's cache folder, as a
hint: it can be computed again at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from casstore.digest import digest
from casstore.integrations.hub.repositories import LFS_SIZE
from casstore.machine.atomic_write import atomic_write

if TYPE_CHECKING:
    from casstore.api.store import Store
    from casstore.format.layout import Layout

__all__ = ["FileHashes", "git_sha1", "lfs_pointer"]

_PIECE = 8 << 20
_KEPT = 100_000
_CHECK = 16
_SIZES = {"sha256": 64, "sha1": 40}


class FileHashes:
    """The hashes of the files of one store; for one event loop. Without a `folder`, nothing outlives it."""

    def __init__(self, store: Store, folder: str | None) -> None:
        self._store = store
        self.folder = folder
        self._known: OrderedDict[tuple[str, bytes], str] = OrderedDict()
        self._tasks: dict[tuple[str, bytes], asyncio.Task[str]] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="casstore-serve-hash")
        self.hits = 0
        self.misses = 0

    def close(self) -> None:
        """Wait for what is being computed, and end the threads."""
        self._threads.shutdown(cancel_futures=True)

    def known(self, file_id: bytes, size: int, *, lfs: bool) -> str | None:
        """Return the hash of a file if it is known, without reading the file."""
        key = _key(file_id, lfs=lfs)
        found = self._known.get(key)
        if found is None and size >= LFS_SIZE:
            found = self._kept(key)
            if found is not None:
                self._remember(key, found)
        if found is not None:
            self.hits += 1
        return found

    async def of(self, layout: Layout, *, lfs: bool, name: str) -> str:
        """Return the SHA-256 of a file if `lfs` is set, else the SHA-1 of it as a blob of git.

        Whoever else asks meanwhile waits for the same work, which goes on when one of them leaves. Raises as reading does.
        """
        key = _key(layout.file_id, lfs=lfs)
        found = self.known(layout.file_id, layout.size, lfs=lfs)
        if found is not None:
            return found
        task = self._tasks.get(key)
        if task is None:
            self.misses += 1
            task = asyncio.create_task(self._compute(key, layout, name))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        return await asyncio.shield(task)

    def learn(self, file_id: bytes, size: int, found: str, lfs: bool) -> None:  # noqa: FBT001 - called in a thread
        """Take a hash that was computed elsewhere, with all bytes at hand."""
        key = _key(file_id, lfs=lfs)
        self._remember(key, found)
        if size >= LFS_SIZE and self.folder is not None:
            self._keep(key, found)

    async def _compute(self, key: tuple[str, bytes], layout: Layout, name: str) -> str:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._read, key[0], layout, name)
        self._remember(key, found)
        if layout.size >= LFS_SIZE and self.folder is not None:
            await loop.run_in_executor(self._threads, self._keep, key, found)
        return found

    def _read(self, kind: str, layout: Layout, name: str) -> str:
        hasher = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % layout.size)  # noqa: S324 - git's
        for begin in range(0, layout.size, _PIECE):
            end = min(begin + _PIECE, layout.size)
            hasher.update(self._store.read_part(layout, begin, end, name=name))
        return hasher.hexdigest()

    def _finished(self, key: tuple[str, bytes], task: asyncio.Task[str]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # Whoever asked has it; it must not be reported a second time.

    def _remember(self, key: tuple[str, bytes], found: str) -> None:
        self._known[key] = found
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)

    def _kept(self, key: tuple[str, bytes]) -> str | None:
        """Return what this machine has kept; None for nothing, and for anything that was not written whole."""
        if self.folder is None:
            return None
        try:
            with open(self._path(key), encoding="ascii") as file:
                text = file.read(_SIZES[key[0]] + _CHECK + 1)
        except (OSError, UnicodeDecodeError):
            return None  # Invariant 13: a hint that cannot be read is computed again.
        found = text[: _SIZES[key[0]]]
        return found if text == found + _check(key, found) else None

    def _keep(self, key: tuple[str, bytes], found: str) -> None:
        path = self._path(key)
        # Invariant 13: a hint that cannot be kept only costs time.
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with atomic_write(path, mode=0o600) as file:
                file.write((found + _check(key, found)).encode("ascii"))

    def _path(self, key: tuple[str, bytes]) -> str:
        assert self.folder is not None
        name = key[1].hex()
        return os.path.join(self.folder, key[0], name[:2], name)


def git_sha1(data: bytes) -> str:
    """Return the SHA-1 of a blob of git, in hex."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - git's own


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the file that Git LFS keeps in the place of a large one; its git SHA-1 is that file's `oid` on the Hub.

    Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _key(file_id: bytes, *, lfs: bool) -> tuple[str, bytes]:
    return ("sha256" if lfs else "sha1", file_id)


def _check(key: tuple[str, bytes], found: str) -> str:
    return digest(b"%b %b %b" % (key[0].encode(), key[1], found.encode())).hex()[:_CHECK]
