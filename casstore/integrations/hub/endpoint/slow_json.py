"""JSON that takes a while to make: the first answer for a large file waits for its hash, and clients give up after 10 s of silence."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping

    from starlette.responses import Response

__all__ = ["slow_json"]

_PATIENCE = 2.0
"""Seconds without a byte: spaces may stand before a JSON value, and show that the server is alive."""


async def slow_json(work: Coroutine[Any, Any, Any], *, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response for the value that `work` returns, which begins at once if that takes long.

    An error of `work` that comes early is raised; after that the connection is cut, as nothing else tells a client.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=_PATIENCE)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if done:
        return JSONResponse(task.result(), headers=dict(headers or {}))

    async def body() -> AsyncIterator[bytes]:
        try:
            while not task.done():
                yield b" "
                await asyncio.wait({task}, timeout=_PATIENCE)
            yield json.dumps(task.result()).encode()
        finally:
            task.cancel()

    return StreamingResponse(body(), media_type="application/json", headers=dict(headers or {}))
