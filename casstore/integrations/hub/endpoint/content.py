"""Files of models: `/REPO/resolve/REVISION/PATH`, whole or a range of bytes."""

from __future__ import annotations

import logging
import os
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from casstore.errors import MissingObject, PathNotFound
from casstore.format import layout as layout_format
from casstore.integrations.hub.endpoint.ranges import UnsatisfiableRange, parse_range
from casstore.integrations.hub.errors import entry_not_found
from casstore.integrations.hub.mirror.pending import PendingSnapshot
from casstore.integrations.hub.mirror.upstream import LAYOUT_TYPE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from starlette.requests import Request

    from casstore.format.layout import Layout
    from casstore.integrations.hub.context import ServerContext
    from casstore.integrations.hub.repositories import Commit
    from casstore.integrations.hub.targets import FileTarget

__all__ = ["PLAIN_HTTP_LIMIT", "serve_file"]

PLAIN_HTTP_LIMIT = 50 * 10**9
"""Bytes of a file beyond which huggingface_hub refuses plain HTTP (MAX_HTTP_DOWNLOAD_SIZE); curl and casstore do not."""

_WITH_LAYOUT = 256 << 10
"""Bytes of a file from which on another casstore gets its layout when it asks for that; smaller ones it fetches whole."""

_log = logging.getLogger("casstore")

_PICTURES = {
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
"""Types that cannot run anything: model cards show them."""

_CONTENT_HEADERS = {
    # Whatever a model's files are, a browser must not run them with the rights of the page.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Accept-Ranges": "bytes",
    "Cache-Control": "no-cache",
}


async def serve_file(context: ServerContext, request: Request, target: FileTarget) -> Response:
    """Answer GET or HEAD of one file. A HEAD waits until the file's hash is known; a GET never does.

    Raises HubError for no such model, revision or file, and the store's errors.
    """
    found = await context.revision(request, target.repo, target.revision)
    if isinstance(found, PendingSnapshot):
        if request.method == "HEAD" or found.file(target.path) is None:
            return _pending_head(found, target.path)
        found = await found.arrival()
    commit = found
    layout = await context.run(_layout, context, commit, target.path)
    size, path = layout.size, target.path
    if size > PLAIN_HTTP_LIMIT:
        _warn_of_size(commit.repo, path)
    lfs = commit.is_lfs(path, size)
    etag = context.hashes.known(layout.file_id, size, lfs=lfs)
    conditional = "if-none-match" in request.headers or "if-range" in request.headers
    if etag is None and (request.method == "HEAD" or conditional):
        etag = await context.hashes.of(layout, lfs=lfs, name=f"{commit.repo}/{path}")
    headers = {
        **_CONTENT_HEADERS,
        "Content-Type": _PICTURES.get(os.path.splitext(path)[1].lower(), "application/octet-stream"),
        "X-Repo-Commit": commit.sha,
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1], safe='')}",
        **({"ETag": f'"{etag}"'} if etag else {}),
    }
    if etag is not None and _names(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if request.method == "GET" and size >= _WITH_LAYOUT and LAYOUT_TYPE in request.headers.get("accept", ""):
        return Response(layout_format.encode(layout), media_type=LAYOUT_TYPE, headers={"Vary": "Accept"})
    if request.method == "HEAD":
        # Without its true length a client would write an empty file, and take it for the whole.
        return Response(headers={**headers, "Content-Length": str(size)})
    try:
        part = parse_range(_wanted_range(request.headers, etag), size)
    except UnsatisfiableRange:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    begin, end = part or (0, size)
    headers["Content-Length"] = str(end - begin)
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    body = context.pieces.read(layout, begin, end, name=f"{commit.repo}/{path}")
    try:
        # Before the headers leave, so that what cannot be read at all is an answer, and not a body that ends early.
        first = await context.in_time(anext(body, b""))
    except MissingObject:
        await context.run(context.repositories.check_kept, commit)
        raise  # Invariant 11: nobody has freed it, so this is damage.
    return StreamingResponse(_with_first(first, body), status_code=206 if part else 200, headers=headers)


async def _with_first(
    first: memoryview | bytes, body: AsyncGenerator[memoryview]
) -> AsyncIterator[memoryview | bytes]:
    async with aclosing(body):
        yield first
        del first  # It would keep the whole piece in memory as long as the rest is sent.
        async for part in body:
            yield part


def _layout(context: ServerContext, commit: Commit, path: str) -> Layout:
    try:
        return context.repositories.model(commit).layout(path)
    except PathNotFound:
        raise entry_not_found(commit.repo, path, commit.sha) from None


def _pending_head(pending: PendingSnapshot, path: str) -> Response:
    """Say of a file that is on its way what is known; raises HubError if there is none."""
    file = pending.file(path)
    if file is None:
        raise entry_not_found(pending.repo, path, pending.sha)
    return Response(
        headers={
            **_CONTENT_HEADERS,
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": pending.sha,
            "ETag": f'"{file.found}"',
            "Content-Length": str(file.size),
        }
    )


def _wanted_range(headers: Mapping[str, str], etag: str | None) -> str | None:
    """Return the Range header, unless it is for another version of the file (RFC 9110 §13.1.5)."""
    condition = headers.get("if-range")
    if condition is not None and condition.strip() != f'"{etag}"':
        return None
    return headers.get("range")


def _names(header: str | None, etag: str) -> bool:
    """Say whether an If-None-Match header names this file."""
    if header is None:
        return False
    return any(item.strip().removeprefix("W/") in (f'"{etag}"', "*") for item in header.split(","))


@lru_cache(maxsize=1024)
def _warn_of_size(repo: str, path: str) -> None:
    """Say, once for each file, that most clients will not take it."""
    _log.warning(
        "%s of %s has more than 50 GB: huggingface_hub refuses it over plain HTTP. Use `casstore get` or curl.",
        path,
        repo,
    )
