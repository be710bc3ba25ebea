"""fsspec's HTTP file system for a store: a directory of a plain web server, read-only.

It distinguishes what fsspec's own does not: an outage from an absence, a part of an object from
the whole, an empty directory from a server without index pages. Imported only when a URL needs it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from aiohttp import ClientResponseError, ClientTimeout
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from casstore.backend.fsspec.drivers.tasks import all_of
from casstore.backend.fsspec.errors import RangeNotSatisfiable
from casstore.errors import AccessDenied, BackendError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_AT_ONCE = 16  # requests


def make_web(options: Mapping[str, Any]) -> WebFileSystem:
    """Return a file system for http:// and https:// URLs; `options` go to fsspec's."""
    # aiohttp limits a whole download to five minutes; here only a silent connection times out.
    client = {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}
    client.update(options.get("client_kwargs") or {})
    # No compression in transit: sizes and ranges would be those of the compressed bytes.
    headers = {"Accept-Encoding": "identity", **(options.get("headers") or {})}
    return WebFileSystem(**{**options, "client_kwargs": client, "headers": headers}, skip_instance_cache=True)


class WebFileSystem(HTTPFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A directory on a web server that shows an index page for it and for each directory in it."""

    @asynccontextmanager
    async def _ask(self, method: str, url: str, **headers: str) -> AsyncIterator[Any]:
        session = await self.set_session()
        options = {**self.kwargs, "headers": {**self.kwargs["headers"], **headers}, "allow_redirects": True}
        async with session.request(method, self.encode_url(url), **options) as answer:
            self._raise_not_found_for_status(answer, url)
            if answer.url.path.endswith("/") and not url.endswith("/"):
                # Web servers redirect requests for a directory to its name with a slash.
                raise IsADirectoryError(url)
            yield answer

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Read exactly a range; fsspec's own accepts the whole file as an answer."""
        start = start or 0
        wanted = (
            {} if not start and end is None else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        )
        async with self._ask("GET", url, **wanted) as answer:
            if wanted:
                _require_range(url, answer, start, end)
            return bytes(await answer.read())

    async def _info(self, url: str, **_: Any) -> dict[str, Any]:
        """Ask for size and time; fsspec's own treats every error as an absence (invariant 8)."""
        try:
            async with self._ask("HEAD", url) as answer:
                size, modified = answer.content_length, answer.headers.get("Last-Modified")
        except IsADirectoryError:
            return {"name": url, "type": "directory"}
        if size is None:
            raise BackendError(f"Cannot find {url}: the web server does not give the size of its files.")
        info = {"name": url, "type": "file", "size": size}
        if modified:
            info["mtime"] = parsedate_to_datetime(modified).timestamp()
        return info

    async def _names(self, directory: str) -> list[str]:
        """Return the names in the index page of a directory; those of directories end with a slash."""
        links = _Links()
        try:
            async with self._ask("GET", directory.rstrip("/") + "/") as answer:
                if answer.content_type == "text/html":
                    links.feed(await answer.text(errors="replace"))
                base = str(answer.url)
        except ClientResponseError as error:
            if error.status == 403:
                raise AccessDenied(f"Cannot list {directory}: access is denied, or {_NO_INDEX}") from error
            raise
        names = set()
        for link in links.found:
            path = urlsplit(urljoin(base, link))
            name = unquote(path.path).removeprefix(unquote(urlsplit(base).path))
            if (
                path.netloc == urlsplit(base).netloc
                and not path.query
                and "/" not in name[:-1]
                and name[:1] not in "/."
            ):
                names.add(name)
        return sorted(names - {""})

    async def _find(self, path: str, *, sizes: bool = True, **_: Any) -> dict[str, dict[str, Any]]:
        """List every file below `path`; with `sizes`, ask for the size and time of each.

        Raises FileNotFoundError for a directory that its server's index pages do not have.
        """
        gate = asyncio.Semaphore(_AT_ONCE)
        found: dict[str, dict[str, Any]] = {}

        async def look(url: str) -> None:
            async with gate:
                found[url] = await self._info(url) if sizes else {"name": url, "type": "file"}

        async def walk(directory: str) -> None:
            async with gate:
                names = await self._names(directory)
            await all_of(
                walk(directory + name) if name.endswith("/") else look(directory + name) for name in names
            )

        try:
            await walk(path.rstrip("/") + "/")
        except FileNotFoundError:
            await self._require_absence(path)
            raise
        return found

    async def _require_absence(self, directory: str) -> None:
        """Raise unless an index page further up lacks `directory` (invariant 8).

        A server without index pages says "not found" to every directory.
        """
        child = directory.rstrip("/")
        while urlsplit(child).path.strip("/"):
            parent, _, name = child.rpartition("/")
            try:
                names = await self._names(parent)
            except FileNotFoundError:
                child = parent
                continue
            if f"{name}/" in names or name in names:
                raise ConnectionError(f"{child} is in the index page but cannot be listed")
            return
        raise AccessDenied(f"Cannot list {directory}: {_NO_INDEX}")

    def require_index(self, root: str) -> None:
        """Raise AccessDenied unless the web server lists the directory `root`."""
        try:
            names = sync(self.loop, self._names, root)
        except FileNotFoundError:
            names = []
        if not names:
            raise AccessDenied(f"Cannot list {root}: {_NO_INDEX}")

    def close_store(self) -> None:
        """Close the connections."""
        if self._session is not None:
            sync(self.loop, self._session.close, timeout=5)


_NO_INDEX = (
    "the web server does not list its directories, which casstore needs. Turn that on (nginx: "
    "autoindex on; Apache: Options +Indexes; Caddy: file_server browse)."
)


def _require_range(url: str, answer: Any, start: int, end: int | None) -> None:
    """Raise unless the answer is the range from `start` to `end`."""
    if answer.status == 206:
        unit = answer.headers.get("Content-Range", "")
        if not unit.startswith(f"bytes {start}-"):
            raise BackendError(
                f"Cannot read {url}: the server sent the range {unit!r} instead of {start}-{end}."
            )
        return
    length = answer.content_length
    if length is not None and start >= length:
        raise RangeNotSatisfiable(f"Cannot read {url}: the range begins after the end.")
    if start or length is None or (end is not None and length > end):
        raise BackendError(
            f"Cannot read {url}: the web server sends whole files when asked for a range. Serve the store with "
            "one that supports range requests (nginx, Apache and Caddy do; Python's http.server does not)."
        )


class _Links(HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a link."""
        if tag == "a":
            self.found.extend(value for name, value in attrs if name == "href" and value)
