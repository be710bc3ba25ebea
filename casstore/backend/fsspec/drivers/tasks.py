"""Tasks of an event loop that belong together: none of them outlives the block, or the call, that began them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable


@asynccontextmanager
async def ending(tasks: Iterable[asyncio.Future[Any]]) -> AsyncIterator[None]:
    """End the tasks that are not done at the end of the block."""
    try:
        yield
    finally:
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def all_of(work: Iterable[Awaitable[Any]]) -> None:
    """Await everything at the same time; the first error ends the rest of it (invariant 8)."""
    tasks = [asyncio.ensure_future(one) for one in work]
    async with ending(tasks):
        await asyncio.gather(*tasks)
