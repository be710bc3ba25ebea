"""Fetches a commit of another hub into a folder, every file checked against what that hub says of it. Blocks; for threads."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.digest import digest
from casstore.errors import BackendUnavailable, CasstoreError, ConfigError, FormatError, IntegrityError
from casstore.format import layout as layout_format
from casstore.format.paths import check_paths
from casstore.integrations.hub.mirror.upstream import LAYOUT_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    import httpx2

    from casstore.api.store import Store
    from casstore.format.layout import Layout
    from casstore.integrations.hub.mirror.upstream import UpstreamHub

__all__ = ["Fetch", "RemoteFile", "files_of"]

_FILES_AT_ONCE = 4
_ATTEMPTS = 5
_PAUSE = 0.5
_LONGEST_LAYOUT = 64 << 20
_RANGE = 16 << 20
_HEX = re.compile(r"[0-9a-f]+")
_SHA1, _SHA256 = 40, 64
_KEPT = ("type", "oid", "size", "path", "lfs")
"""What is told on of a file: not what only that hub can do, such as its hash for xet."""


class Stopped(CasstoreError):
    """The server ends, and with it what it fetches."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as its hub tells of it: `value` is that, `found` its SHA-256 if `lfs` is set, else git's SHA-1 of it."""

    path: str
    size: int
    found: str
    lfs: bool
    value: dict[str, Any] = field(repr=False, compare=False)


def files_of(tree: Sequence[dict[str, Any]]) -> list[RemoteFile]:
    """Read the files of a tree. Raises ConfigError for paths that no model may have, FormatError for other nonsense."""
    files = []
    for item in tree:
        if item.get("type") != "file":
            continue
        path, size, lfs = item.get("path"), item.get("size"), item.get("lfs")
        found = lfs.get("oid") if isinstance(lfs, dict) else item.get("oid")
        if not isinstance(path, str) or type(size) is not int or size < 0 or not isinstance(found, str):
            raise FormatError("The hub's list of files makes no sense.")
        if len(found) != (_SHA256 if lfs else _SHA1) or not _HEX.fullmatch(found):
            raise FormatError(f"The hub's list of files has no hash for {path!r}.")
        value: dict[str, Any] = {key: item[key] for key in _KEPT if key in item}
        files.append(RemoteFile(path, size, found, bool(lfs), value))
    check_paths(item.path for item in files)
    return sorted(files, key=lambda item: item.path)


class Fetch:
    """The files of one commit on their way. `done` counts bytes, of which `moved` came from the hub."""

    def __init__(
        self,
        store: Store,
        upstream: UpstreamHub,
        repo: str,
        sha: str,
        files: Sequence[RemoteFile],
        *,
        token: str | None,
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._repo, self._sha, self._token = repo, sha, token
        self.files = files
        self.total = sum(item.size for item in files)
        self.done = 0
        self.moved = 0
        self._stopped = False

    def stop(self) -> None:
        """Let `run` end soon, with an error."""
        self._stopped = True

    def check(self) -> None:
        """Raise Stopped after `stop`."""
        if self._stopped:
            raise Stopped(f"{self._repo} was not fetched to its end: the server was stopped.")

    def run(self, folder: str) -> None:
        """Write all files below a folder.

        Raises IntegrityError for a file that is not what the hub says, ConfigError where there is no room, and as
        the hub does.
        """
        free = shutil.disk_usage(folder).free
        if free < self.total:
            raise ConfigError(f"{self._repo} has {self.total:,} bytes, and {folder} has room for {free:,}.")
        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="casstore-mirror") as threads:
            tasks = [threads.submit(self._fetch, item, folder) for item in self.files]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                # Invariant 11: the first error goes on; what has not begun need not.
                for task in tasks:
                    task.cancel()
                raise

    def _fetch(self, item: RemoteFile, folder: str) -> None:
        target = os.path.join(folder, *item.path.split("/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        counted = _Counted(self, item)
        with open(target, "xb") as out:
            try:
                self._by_chunks(item, out, counted)
            except IntegrityError:
                # The other store cuts it in a way that does not fit, or this one has lost a chunk since: fetch all of it.
                out.seek(0)
                out.truncate()
                counted.restart()
                self._rest(item, out, counted)
        if not counted.is_true:
            raise IntegrityError(
                f"{self._upstream.url} sent {item.path} of {self._repo} with other bytes than it says: nothing was kept."
            )

    def _by_chunks(self, item: RemoteFile, out: BinaryIO, counted: _Counted) -> None:
        """Write a file, from chunks that the store has and the rest, if the hub is a casstore; else whole."""
        layout = None
        headers = {"Accept": f"{LAYOUT_TYPE}, */*"}
        with (
            # Invariant 11: `_rest` asks again, and raises in the end.
            suppress(BackendUnavailable),
            self._upstream.file(self._repo, self._sha, item.path, self._token, headers=headers) as answer,
        ):
            if answer.headers.get("content-type") == LAYOUT_TYPE:
                layout = _read_layout(answer, item.size)
            else:
                self._copy(answer, out, counted)
        if layout is None:
            self._rest(item, out, counted)
            return
        for begin, end, is_here in _runs(layout, self._store):
            data: bytes | memoryview
            if is_here:
                data = self._store.read_part(layout, begin, end, name=item.path)
            else:
                data = self._chunks(item, layout, begin, end)
            out.write(data)
            counted.update(data)

    def _rest(self, item: RemoteFile, out: BinaryIO, counted: _Counted) -> None:
        """Fetch what is missing of a file, from where an earlier answer ended."""
        for attempt in range(_ATTEMPTS):
            if counted.size >= item.size:
                return
            headers = {"Range": f"bytes={counted.size}-"} if counted.size else {}
            try:
                with self._upstream.file(
                    self._repo, self._sha, item.path, self._token, headers=headers
                ) as answer:
                    if counted.size and answer.status_code != 206:
                        raise IntegrityError(f"{self._upstream.url} gives no parts of files.")
                    self._copy(answer, out, counted)
            except BackendUnavailable:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE * 2**attempt)
        if counted.size < item.size:
            raise BackendUnavailable(f"{self._upstream.url} sends only a part of {item.path}.")

    def _copy(self, answer: httpx2.Response, out: BinaryIO, counted: _Counted) -> None:
        for part in answer.iter_bytes(1 << 20):
            self.moved += len(part)
            counted.update(part)
            out.write(part)

    def _chunks(self, item: RemoteFile, layout: Layout, begin: int, end: int) -> bytes:
        """Fetch a run of chunks, each compared with its id before it counts."""
        headers = {"Range": f"bytes={begin}-{end - 1}"}
        for attempt in range(_ATTEMPTS):
            try:
                with self._upstream.file(
                    self._repo, self._sha, item.path, self._token, headers=headers
                ) as answer:
                    data = answer.read() if answer.status_code == 206 else b""
                break
            except BackendUnavailable:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE * 2**attempt)
        self.moved += len(data)
        edges = layout.offsets()
        first, last = np.searchsorted(edges, (begin, end)).tolist()
        ids = layout.chunk_ids()
        view = memoryview(data)
        for at in range(first, last):
            if digest(view[int(edges[at]) - begin : int(edges[at + 1]) - begin]) != ids[at]:
                raise IntegrityError(f"{self._upstream.url} sent another chunk of {item.path} than it says.")
        return data


class _Counted:
    """How much of a file has come, and its hash so far."""

    def __init__(self, fetch: Fetch, item: RemoteFile) -> None:
        self._fetch = fetch
        self._item = item
        self.size = 0
        self._hasher = self._new()

    def _new(self) -> Any:
        return hashlib.sha256() if self._item.lfs else hashlib.sha1(b"blob %d\0" % self._item.size)  # noqa: S324 - git's

    def update(self, data: bytes | memoryview) -> None:
        """Take bytes; raise IntegrityError for more than the file has."""
        self.size += len(data)
        if self.size > self._item.size:
            raise IntegrityError(f"{self._item.path} has more bytes than its hub says.")
        self._hasher.update(data)
        self._fetch.done += len(data)
        self._fetch.check()

    def restart(self) -> None:
        """Count from the start."""
        self._fetch.done -= min(self.size, self._item.size)
        self.size, self._hasher = 0, self._new()

    @property
    def is_true(self) -> bool:
        """Whether all of the file has come, and is what its hub says."""
        return self.size == self._item.size and self._hasher.hexdigest() == self._item.found


def _read_layout(answer: httpx2.Response, size: int) -> Layout:
    data = bytearray()
    for part in answer.iter_bytes():
        data += part
        if len(data) > _LONGEST_LAYOUT:
            raise FormatError("The layout of a file is too large.")
    layout = layout_format.decode(bytes(data))
    if layout.size != size:
        raise FormatError("The layout of a file is not that of its size.")
    return layout


def _runs(layout: Layout, store: Store) -> Iterator[tuple[int, int, bool]]:
    """Yield the file in ranges of chunks that the store has and of those that it lacks, none very long."""
    found = store.objects.resolve(layout.chunk_ids()).found.tolist()
    edges = layout.offsets().tolist()
    at = 0
    for is_here, group in groupby(found):
        stop = at + len(list(group))
        while at < stop:
            upto = at + 1
            while upto < stop and edges[upto + 1] - edges[at] <= _RANGE:
                upto += 1
            yield edges[at], edges[upto], is_here
            at = upto
