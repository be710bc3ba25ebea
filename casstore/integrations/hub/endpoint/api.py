"""The Hub's read API: `/api/models…` and `/api/whoami-v2`. README.md lists what it answers."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from starlette.responses import JSONResponse

from casstore.errors import BackendUnavailable
from casstore.integrations.hub.endpoint import values
from casstore.integrations.hub.endpoint.slow_json import slow_json
from casstore.integrations.hub.errors import (
    HubError,
    bad_request,
    entry_not_found,
    nothing_here,
    read_only,
    repo_not_found,
)
from casstore.integrations.hub.mirror.pending import PendingSnapshot
from casstore.integrations.hub.repositories import MODELS
from casstore.integrations.hub.targets import MAIN, is_reachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from casstore.integrations.hub.context import ServerContext
    from casstore.integrations.hub.endpoint.snapshots import Snapshot
    from casstore.integrations.hub.targets import ApiTarget

__all__ = ["answer"]

_PAGE = 1000
"""Entries of one page, as on the Hub."""

_FOLLOWS_NO_LINKS = "llama"
"""In the User-Agent of llama.cpp, which reads the first page only: it gets everything in one."""

_TRUE = ("1", "true")
_LONGEST_BODY = 4 << 20
_BODY_SECONDS = 30

_FILTERS = frozenset(
    {"apps", "dataset", "filter", "gated", "inference", "inference_provider", "language", "library",
     "num_parameters", "pipeline_tag", "task", "trained_dataset"}
)  # fmt: skip
"""Questions that would need every model's card; not to heed them would be a wrong answer."""

_BY_NAME = frozenset({"downloads", "likes", "trendingScore"})
"""All models have the same number of these, so any order is right."""


async def answer(context: ServerContext, request: Request, target: ApiTarget) -> Response:
    """Answer a request of the API; raises HubError, and the store's errors."""
    if request.method not in ("GET", "HEAD") and not (
        request.method == "POST" and target.action == "paths-info"
    ):
        raise read_only()
    if target.kind == "whoami-v2":
        return _whoami(request)
    if target.kind != "models":
        # Datasets, spaces and kernels: there are none.
        if not target.repo:
            return JSONResponse([])
        raise repo_not_found(target.repo)
    if not target.repo:
        return await _models(context, request)
    handler = _ACTIONS.get(target.action)
    if handler is None or (target.rest and target.action not in ("tree", "auth-check")):
        raise nothing_here(request.url.path)
    return await handler(context, request, target)


async def _models(context: ServerContext, request: Request) -> Response:
    query = request.query_params
    unknown = sorted(_FILTERS & set(query))
    if unknown:
        raise bad_request(f"This server does not filter models by {', '.join(unknown)}.")
    sort = query.get("sort")
    if sort is not None and sort not in _BY_NAME | {"lastModified"}:
        raise bad_request(f"This server does not sort models by {sort!r}.")
    search, author = query.get("search", "").lower(), query.get("author")
    found = []
    for row in await context.run(context.repositories.rows):
        repo = row.name.removeprefix(MODELS)
        if (
            is_reachable(repo)
            and search in repo.lower()
            and (author is None or repo.startswith(f"{author}/"))
        ):
            found.append((repo, row))
    if sort == "lastModified":
        found.sort(key=lambda item: item[1].time, reverse=query.get("direction", "-1") == "-1")
    else:
        found.sort(key=lambda item: item[0])
    shown, headers = _page(request, found, limit=_number(query.get("limit"), _PAGE))
    return JSONResponse([values.row_value(repo, row) for repo, row in shown], headers=headers)


async def _info(context: ServerContext, request: Request, target: ApiTarget) -> Response:
    snapshot = await context.snapshot(request, target.repo, target.revision or MAIN)
    query = request.query_params
    wanted = set(query.getlist("expand") + query.getlist("expand[]"))
    value = await snapshot.info(wanted)
    if wanted:
        value = {name: item for name, item in value.items() if name in wanted | {"_id", "id"}}
    if query.get("blobs", "").lower() not in _TRUE:
        return JSONResponse(value)

    async def with_blobs() -> Any:
        files = await snapshot.files(snapshot.paths)
        return value | {"siblings": [values.sibling_value(item) for item in files]}

    return await slow_json(with_blobs())


async def _tree(context: ServerContext, request: Request, target: ApiTarget) -> Response:
    snapshot = await context.snapshot(request, target.repo, target.revision or MAIN)
    query = request.query_params
    recursive = query.get("recursive", "").lower() in _TRUE
    folders = snapshot.folders()
    if target.rest and target.rest not in folders:
        raise entry_not_found(target.repo, target.rest, snapshot.sha)
    prefix = f"{target.rest}/" if target.rest else ""
    listed = [
        path
        for path in (*sorted(folders), *snapshot.paths)
        if path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
    ]
    limit = _number(query.get("limit"), _PAGE)
    if _FOLLOWS_NO_LINKS in request.headers.get("user-agent", "").lower():
        limit = len(listed)
    shown, headers = _page(request, listed, limit=limit)
    expand = query.get("expand", "").lower() in _TRUE
    return await slow_json(_entries(snapshot, shown, folders, expand=expand), headers=headers)


async def _paths_info(context: ServerContext, request: Request, target: ApiTarget) -> Response:
    body = await _body(request)
    paths: Any
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            said = json.loads(body) if body else {}
        except ValueError:
            raise bad_request("The body is not JSON.") from None
        said = said if isinstance(said, dict) else {}
        paths, expand = said.get("paths"), bool(said.get("expand"))
    else:
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() in _TRUE
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise bad_request("`paths` is a list of paths.")
    snapshot = await context.snapshot(request, target.repo, target.revision or MAIN)
    folders, files = snapshot.folders(), set(snapshot.paths)
    names = dict.fromkeys(path.strip("/") for path in paths)
    found = [name for name in names if name in folders or name in files]
    return await slow_json(_entries(snapshot, found, folders, expand=expand))


async def _entries(
    snapshot: Snapshot, paths: Sequence[str], folders: dict[str, dict[str, Any]], *, expand: bool
) -> list[dict[str, Any]]:
    """Return the values of files and folders, in this order."""
    files = iter(await snapshot.files([path for path in paths if path not in folders]))
    listed = [dict(folders[path]) if path in folders else next(files) for path in paths]
    if expand:
        for item in listed:
            item["lastCommit"] = snapshot.last_commit()
    return listed


async def _refs(context: ServerContext, request: Request, target: ApiTarget) -> Response:
    if target.revision:
        raise nothing_here(request.url.path)
    if context.mirror is not None:
        caller = request.scope.get("casstore_caller")
        with suppress(BackendUnavailable):  # Invariant 8: the other hub is away, and the store knows its own.
            found = await context.mirror.ask(target.repo, f"/api/models/{target.repo}/refs", caller)
            if found is not None:
                return JSONResponse(found)
    commit = await context.run(context.repositories.commit, target.repo)
    context.repositories.check_public(commit.record)
    tags = await context.run(context.repositories.tags, target.repo)
    return JSONResponse(
        {
            "branches": [values.branch_value(MAIN, commit, kind="heads")],
            "tags": [values.branch_value(name, item, kind="tags") for name, item in tags],
            "converts": [],
            "pullRequests": [],
        }
    )


async def _commits(context: ServerContext, request: Request, target: ApiTarget) -> Response:
    commit = await context.revision(request, target.repo, target.revision or MAIN)
    if isinstance(commit, PendingSnapshot):
        commit = await commit.arrival()
    history = await context.run(context.repositories.history, commit)
    shown, headers = _page(request, history, limit=_number(request.query_params.get("limit"), _PAGE))
    return JSONResponse(
        [values.commit_value(item) for item in shown],
        headers={**headers, "X-Total-Count": str(len(history))},
    )


async def _auth_check(context: ServerContext, request: Request, target: ApiTarget) -> Response:
    if target.revision == "write":
        raise read_only()
    if target.revision:
        raise nothing_here(request.url.path)
    await context.revision(request, target.repo, MAIN)
    return JSONResponse({})


def _whoami(request: Request) -> Response:
    if not request.scope.get("casstore_token"):
        raise HubError(
            401, "This server knows no users: it asks for a token only if it was started with one."
        )
    return JSONResponse(
        {
            "type": "user",
            "id": "reader",
            "name": "reader",
            "fullname": "reader",
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"displayName": "casstore", "role": "read"}},
        }
    )


_ACTIONS: dict[str, Callable[[ServerContext, Request, ApiTarget], Awaitable[Response]]] = {
    "": _info,
    "revision": _info,
    "tree": _tree,
    "paths-info": _paths_info,
    "refs": _refs,
    "commits": _commits,
    "auth-check": _auth_check,
}


async def _body(request: Request) -> bytes:
    """Return the body of a request; raises HubError for one that is too large or too slow."""
    data = bytearray()

    async def read() -> None:
        async for part in request.stream():
            data.extend(part)
            if len(data) > _LONGEST_BODY:
                raise HubError(413, f"A body may have {_LONGEST_BODY >> 20} MiB here.")

    try:
        await asyncio.wait_for(read(), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise HubError(408, "The body of the request did not arrive.") from None
    return bytes(data)


def _page(request: Request, items: Sequence[Any], *, limit: int) -> tuple[Sequence[Any], dict[str, str]]:
    """Return the part of a list that a request wants, and a Link to the next one."""
    begin = _number(request.query_params.get("cursor"), 0)
    end = begin + max(1, limit)
    if end >= len(items):
        return items[begin:end], {}
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    url = request.url.replace(query=urlencode([*query, ("cursor", str(end))]))
    return items[begin:end], {"Link": f'<{url}>; rel="next"'}


def _number(text: str | None, otherwise: int) -> int:
    """Return a number of a query; raises HubError for what is none."""
    if text is None:
        return otherwise
    if not text.isdecimal() or len(text) > 9:
        raise bad_request(f"{text!r} is not a number.")
    return int(text)
