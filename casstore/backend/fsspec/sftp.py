"""sshfs for a store: range reads, files that appear whole, complete listings.

Imported only when a URL needs it: sshfs is an optional extra.
"""

from __future__ import annotations

import asyncio
import stat
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from asyncssh.sftp import (
    SFTPFailure,
    SFTPFileAlreadyExists,
    SFTPNoSuchFile,
    SFTPNoSuchPath,
    SFTPNotADirectory,
    SFTPOpUnsupported,
    SFTPPermissionDenied,
)
from fsspec.asyn import sync, sync_wrapper
from fsspec.utils import infer_storage_options
from sshfs import SSHFileSystem
from sshfs.utils import wrap_exceptions as _wrap_exceptions

from casstore.backend.fsspec.info import all_of
from casstore.backend.fsspec.sftp_channels import Channels
from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

_T = TypeVar("_T")

_PIECE = 4 << 20  # bytes handed over at a time; two such blocks are under way
_LISTINGS = 128  # directories listed at a time: four round trips each, and refs have hundreds
_ABSENT = (SFTPNoSuchFile, SFTPNoSuchPath, SFTPNotADirectory)

_DEFAULTS: dict[str, Any] = {
    # sshfs verifies no host unless told to: () is OpenSSH's own way, with ~/.ssh/known_hosts.
    "known_hosts": (),
    "connect_timeout": 30,  # seconds
    "login_timeout": 60,
    # So a connection that died silently is noticed after a minute.
    "keepalive_interval": 15,
    "keepalive_count_max": 4,
}


def _with_plain_errors(function: Callable[..., Awaitable[_T]]) -> Callable[..., Awaitable[_T]]:
    """Let sshfs translate asyncssh's errors into Python's file errors."""
    wrapped: Callable[..., Awaitable[_T]] = _wrap_exceptions(function)
    return wrapped


def make_sftp(url: str, options: Mapping[str, Any]) -> SftpFileSystem:
    """Connect to the host of `url`. Raises what asyncssh raises."""
    named = infer_storage_options(url)
    place = {name: named[name] for name in ("host", "port") if name in named}
    return SftpFileSystem(**{**_DEFAULTS, **place, **options}, pool_type=Channels, skip_instance_cache=True)


class SftpFileSystem(SSHFileSystem):  # type: ignore[misc]  # sshfs ships no types
    """An SFTP server as a store's backend sees it."""

    async def _read(self, path: str, start: int, size: int | None) -> bytes:
        async with self._pool.lend(size or 0) as channel:
            try:
                async with channel.open(path, "rb") as file:
                    if size is None:
                        size = max(0, ((await file.stat()).size or 0) - start)
                    return bytes(await file.read(size, start))
            except _ABSENT as error:
                raise FileNotFoundError(path) from error
            except SFTPFailure as error:
                # Version 3 of the protocol has no code for it.
                if await _is_directory(channel, path):
                    raise IsADirectoryError(path) from error
                raise

    @_with_plain_errors
    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Read a range; sshfs would send the whole file."""
        start = start or 0
        return await self._read(path, start, None if end is None else max(0, end - start))

    @_with_plain_errors
    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        try:
            return dict(await super()._info(path, **kwargs))
        except _ABSENT as error:
            raise FileNotFoundError(path) from error

    @_with_plain_errors
    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:  # noqa: FBT001, FBT002  # fsspec's
        try:
            return list(await super()._ls(path, detail=detail, **kwargs))
        except _ABSENT as error:
            raise FileNotFoundError(path) from error

    async def _find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        """List every file below `path`, many directories at a time; raise for any that cannot be read."""
        gate = asyncio.Semaphore(_LISTINGS)
        found: dict[str, dict[str, Any]] = {}

        async def walk(directory: str, *, top: bool) -> None:
            try:
                async with gate:
                    children = await self._ls(directory)
            except FileNotFoundError as error:
                if top:
                    raise
                # Invariant 8: casstore removes no directories, so a part of the listing is missing.
                raise ConnectionError(f"{directory} disappeared while it was listed") from error
            inside = []
            for info in children:
                if info["type"] != "directory":
                    found[info["name"]] = info
                elif not info["name"].rsplit("/", 1)[-1].startswith("."):
                    inside.append(walk(info["name"], top=False))
            await all_of(inside)

        await walk(path, top=True)
        return found

    @_with_plain_errors
    async def _pipe_file(self, path: str, data: bytes, **_: Any) -> None:
        """Write a new file, durably where the server can."""
        async with self._pool.lend(len(data)) as channel, channel.open(path, "xb") as file:
            await file.write(data)
            await _sync(file)

    @_with_plain_errors
    async def _put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        """Copy a file of this machine to a new one, durably where the server can, a few MiB at a time."""
        with open(lpath, "rb") as source:  # noqa: ASYNC230  # a spooled file is in the page cache
            async with self._pool.lease() as channel, channel.open(rpath, "xb") as file:
                at, under_way = 0, deque[asyncio.Future[Any]]()
                try:
                    while piece := source.read(_PIECE):
                        under_way.append(asyncio.ensure_future(file.write(piece, at)))
                        at += len(piece)
                        if len(under_way) > 1:
                            await under_way.popleft()
                    await asyncio.gather(*under_way)
                finally:
                    for writing in under_way:
                        writing.cancel()
                    await asyncio.gather(*under_way, return_exceptions=True)
                await _sync(file)

    async def _write_making(self, source: bytes | str, path: str, *, making: Sequence[str]) -> None:
        """Write bytes, or the file of this name, to a new file `path`; make directories meanwhile.

        Its own directory may be among those.
        """
        directories = [asyncio.ensure_future(self._makedirs(item, exist_ok=True)) for item in making]
        try:
            try:
                await self._write(source, path)
            except FileNotFoundError:
                await asyncio.gather(*directories)
                await self._write(source, path)
            await asyncio.gather(*directories)
        finally:
            for one in directories:
                one.cancel()
            await asyncio.gather(*directories, return_exceptions=True)

    write_making = sync_wrapper(_write_making)

    async def _write(self, source: bytes | str, path: str) -> None:
        if isinstance(source, bytes):
            await self._pipe_file(path, source)
        else:
            await self._put_file(source, path)

    @_with_plain_errors
    async def _makedirs(self, path: str, *, exist_ok: bool = False, **_: Any) -> None:
        """Make a directory and what is missing above it, in one request when only it is missing."""
        async with self._pool.get() as channel:
            await _make_directory(channel, path.rstrip("/") or "/", exist_ok=exist_ok)

    makedirs = sync_wrapper(_makedirs)

    @_with_plain_errors
    async def _link(self, temporary: str, final: str) -> None:
        """Give a whole file a second name, if that is free.

        Raises FileExistsError when the name is taken, NotImplementedError where there are no hard links.
        """
        async with self._pool.get() as channel:
            try:
                await channel.link(temporary, final)
            except SFTPFileAlreadyExists as error:
                raise FileExistsError(final) from error
            except (SFTPOpUnsupported, SFTPFailure, SFTPPermissionDenied) as error:
                # Version 3 of the protocol says "failure" for a name that is taken, and a file system without
                # links says that it does not permit them.
                if await _is_there(channel, final):
                    raise FileExistsError(final) from error
                raise NotImplementedError("the server makes no hard links") from error

    link = sync_wrapper(_link)

    @_with_plain_errors
    async def _mv(self, lpath: str, rpath: str, **_: Any) -> None:
        """Rename in one step, or refuse; sshfs would copy, and half a file would show (invariant 2)."""
        async with self._pool.get() as channel:
            try:
                await channel.posix_rename(lpath, rpath)
            except SFTPOpUnsupported as error:
                raise ConfigError(
                    "This SFTP server can neither make hard links nor rename in one step "
                    "(hardlink@openssh.com, posix-rename@openssh.com), so half-written files could show in a "
                    "store there. It can be read with read_only=True; to write, use a server such as OpenSSH's."
                ) from error

    mv = sync_wrapper(_mv)

    def close_store(self) -> None:
        """Close the connection."""
        sync(self.loop, self._close_all, timeout=5)

    async def _close_all(self) -> None:
        await self._pool.close()
        await self._stack.aclose()


async def _sync(file: Any) -> None:
    # Invariant 2: durable before it gets its name, where the server offers fsync.
    with suppress(SFTPOpUnsupported):
        await file.fsync()


async def _make_directory(channel: Any, path: str, *, exist_ok: bool) -> None:
    try:
        try:
            await channel.mkdir(path)
        except _ABSENT:
            await _make_directory(channel, path.rpartition("/")[0] or "/", exist_ok=True)
            await channel.mkdir(path)
    except (*_ABSENT, SFTPFailure, SFTPFileAlreadyExists, SFTPPermissionDenied):
        # Another writer made it, or it was there before.
        if not exist_ok or not await _is_directory(channel, path):
            raise


async def _is_there(channel: Any, path: str) -> bool:
    """Say whether anything has this name. Invariant 8: False is certain; anything unclear raises."""
    try:
        await channel.lstat(path)
    except _ABSENT:
        return False
    return True


async def _is_directory(channel: Any, path: str) -> bool:
    try:
        return _means_directory(await channel.stat(path))
    except (*_ABSENT, SFTPFailure, SFTPPermissionDenied):
        return False


def _means_directory(attributes: Any) -> bool:
    return attributes.permissions is not None and stat.S_ISDIR(attributes.permissions)
