"""The Hub's read API: `/api/models…` and `/api/whoami-v2`. README.md lists what it answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from starlette.responses import JSONResponse

from casstore.integrations.hub import values
from casstore.integrations.hub.card import CARD, LONGEST, ModelCard, parse_card
from casstore.integrations.hub.errors import (
    HubError,
    bad_request,
    entry_not_found,
    nothing_here,
    read_only,
    repo_not_found,
)
from casstore.integrations.hub.repositories import MODELS
from casstore.integrations.hub.slow_json import slow_json
from casstore.integrations.hub.targets import MAIN, is_reachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from casstore.format.manifest import TreeEntry
    from casstore.integrations.hub.context import ServerContext
    from casstore.integrations.hub.repositories import Commit
    from casstore.integrations.hub.targets import ApiTarget
    from casstore.store.reading.model import Model

__all__ = ["answer", "read_card"]

_PAGE = 1000
"""Entries of one page, as on the Hub."""

_FOLLOWS_NO_LINKS = "llama"
"""In the User-Agent of llama.cpp, which reads the first page only: it gets everything in one."""

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
    commit, model = await context.run(_look_up, context, target)
    card = await context.run(read_card, context, model)
    value = values.model_value(commit, model.tree.files, card)
    query = request.query_params
    wanted = set(query.getlist("expand") + query.getlist("expand[]"))
    if "safetensors" in wanted or "gguf" in wanted:
        value |= await context.run(_parameters, model)
    if "usedStorage" in wanted:
        value["usedStorage"] = model.tree.size
    if wanted:
        value = {name: item for name, item in value.items() if name in wanted | {"_id", "id"}}
    if query.get("blobs", "").lower() not in ("1", "true"):
        return JSONResponse(value)

    async def with_blobs() -> Any:
        files = await _file_values(context, commit, model, model.tree.files)
        return value | {"siblings": [values.sibling_value(item) for item in files]}

    return await slow_json(with_blobs())


async def _tree(context: ServerContext, request: Request, target: ApiTarget) -> Response:
    commit, model = await context.run(_look_up, context, target)
    query = request.query_params
    recursive = query.get("recursive", "").lower() in ("1", "true")
    folders = values.folder_values(model.tree.entries)
    prefix = f"{target.rest}/" if target.rest else ""
    if target.rest and target.rest not in folders:
        raise entry_not_found(target.repo, target.rest, commit.sha)
    listed: list[TreeEntry | dict[str, Any]] = [
        folder
        for path, folder in sorted(folders.items())
        if path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
    ]
    listed += [
        entry
        for entry in model.tree.files
        if entry.path.startswith(prefix) and (recursive or "/" not in entry.path[len(prefix) :])
    ]
    limit = _number(query.get("limit"), _PAGE)
    if _FOLLOWS_NO_LINKS in request.headers.get("user-agent", "").lower():
        limit = len(listed)
    shown, headers = _page(request, listed, limit=limit)
    expand = query.get("expand", "").lower() in ("1", "true")
    return await slow_json(_entry_values(context, commit, model, shown, expand=expand), headers=headers)


async def _paths_info(context: ServerContext, request: Request, target: ApiTarget) -> Response:
    body = await _body(request)
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            said = await request.json() if body else {}
        except ValueError:
            raise bad_request("The body is not JSON.") from None
        said = said if isinstance(said, dict) else {}
        paths, expand = said.get("paths"), bool(said.get("expand"))
    else:
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() in ("1", "true")
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise bad_request("`paths` is a list of paths.")
    commit, model = await context.run(_look_up, context, target)
    folders = values.folder_values(model.tree.entries)
    files = {entry.path: entry for entry in model.tree.files}
    names = [path.strip("/") for path in dict.fromkeys(paths)]
    found = [files.get(name) or folders.get(name) for name in names]
    return await slow_json(
        _entry_values(context, commit, model, [item for item in found if item is not None], expand=expand)
    )


async def _refs(context: ServerContext, _: Request, target: ApiTarget) -> Response:
    if target.revision:
        raise nothing_here(f"{target.repo}/refs/{target.revision}")
    commit = await context.run(context.repositories.commit, target.repo)
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
    commit = await context.run(context.repositories.commit, target.repo, target.revision or MAIN)
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
    await context.run(context.repositories.commit, target.repo)
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


def read_card(context: ServerContext, model: Model) -> ModelCard:
    """Return the card of a model, an empty one if it has none; reads the store, so call it in a thread."""
    if not any(entry.path == CARD for entry in model.tree.files):
        return ModelCard()
    layout = model.layout(CARD)
    end = min(layout.size, LONGEST)
    return parse_card(bytes(context.store.read_part(layout, 0, end, name=CARD)) if end else b"")


def _look_up(context: ServerContext, target: ApiTarget) -> tuple[Commit, Model]:
    commit = context.repositories.commit(target.repo, target.revision or MAIN)
    return commit, context.repositories.model(commit)


async def _entry_values(
    context: ServerContext,
    commit: Commit,
    model: Model,
    shown: Sequence[TreeEntry | dict[str, Any]],
    *,
    expand: bool,
) -> list[dict[str, Any]]:
    files = [item for item in shown if not isinstance(item, dict)]
    found = iter(await _file_values(context, commit, model, files))
    listed = [dict(item) if isinstance(item, dict) else next(found) for item in shown]
    if expand:
        for item in listed:
            item["lastCommit"] = values.last_commit_value(commit)
    return listed


async def _file_values(
    context: ServerContext, commit: Commit, model: Model, files: Sequence[TreeEntry]
) -> list[dict[str, Any]]:
    """Return files with their hashes, which are computed where they are not known."""

    async def hash_of(entry: TreeEntry) -> str:
        lfs = commit.is_lfs(entry.path, entry.size)
        assert entry.file_id is not None
        found = context.hashes.known(entry.file_id, entry.size, lfs=lfs)
        if found is None:
            layout = await context.run(model.layout, entry.path)
            found = await context.hashes.of(layout, lfs=lfs, name=f"{commit.repo}/{entry.path}")
        return found

    hashes = await asyncio.gather(*(hash_of(entry) for entry in files))
    return [
        values.file_value(entry, found, lfs=commit.is_lfs(entry.path, entry.size))
        for entry, found in zip(files, hashes, strict=True)
    ]


def _parameters(model: Model) -> dict[str, Any]:
    """Return how many elements of each type a model has in safetensors, as the Hub counts them."""
    counts: dict[str, int] = {}
    positions = [at for at, entry in enumerate(model.tree.files) if entry.path.endswith(".safetensors")]
    for layout in model.layouts_at(positions):
        for span in layout.spans:
            elements = 1
            for length in span.shape:
                elements *= length
            counts[span.dtype] = counts.get(span.dtype, 0) + elements
    return {"safetensors": {"parameters": counts, "total": sum(counts.values())}} if counts else {}


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
