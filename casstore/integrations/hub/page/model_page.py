"""One model: its files, its card, where it comes from, how to fetch it; and its tensors."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from casstore.errors import RefNotFound
from casstore.integrations.hub.endpoint.content import PLAIN_HTTP_LIMIT
from casstore.integrations.hub.endpoint.snapshots import read_card
from casstore.integrations.hub.page.figures import url_path
from casstore.integrations.hub.page.lineage_graph import draw_lineage
from casstore.integrations.hub.page.markdown import LONGEST, render_card
from casstore.integrations.hub.page.tensors import tensor_rows
from casstore.integrations.hub.repositories import MODELS, TAGS, commit_of
from casstore.integrations.hub.targets import is_reachable
from casstore.ops.describe import describe
from casstore.ops.lineage import lineage
from casstore.ops.metrics import metrics_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from casstore.api.store import Store
    from casstore.integrations.hub.context import ServerContext
    from casstore.integrations.hub.page.site import Site
    from casstore.ops.lineage import Lineage, ModelNode
    from casstore.store.reading.model import Model

__all__ = ["model", "tensors"]

_FILES = 2000
_TENSORS = 500
_HISTORY = 20


async def model(site: Site, request: Request, name: str) -> dict[str, Any]:
    """Return what the page of a model shows. Raises HubError, RefNotFound."""
    values = await site.context.run(_model, site.context, name)
    endpoint = str(request.base_url).rstrip("/")
    return {**values, "lines": _lines(values, endpoint, site.store_place(request))}


async def tensors(site: Site, request: Request, name: str) -> dict[str, Any]:
    """Return a model's tensors, those whose names hold what is searched."""
    values = await site.context.run(_tensors, site.context, name)
    search = request.query_params.get("tensors", "").strip()
    found = [row for row in values["rows"] if search.lower() in row.name.lower()]
    text = request.query_params.get("page", "")
    page = max(1, int(text)) if text.isdecimal() and len(text) < 9 else 1
    return {
        **values,
        "rows": found[(page - 1) * _TENSORS : page * _TENSORS],
        "total": len(found),
        "all": len(values["rows"]),
        "page": page,
        "pages": max(1, -(-len(found) // _TENSORS)),
        "search": search,
    }


def _model(context: ServerContext, name: str) -> dict[str, Any]:
    store = context.store
    current = _current(context, name)
    about = _without(lineage(store, name), context.repositories.private_names())
    facts = describe(store, name)
    repo = name.removeprefix(MODELS)
    reachable = name.startswith(MODELS) and is_reachable(repo)
    commit = commit_of(current.record.target, current.record.metadata)
    file_url = f"/{url_path(repo)}/resolve/{commit}" if reachable else None
    card = read_card(context, current)
    tags = [row.name for row in context.repositories.rows(TAGS) if row.target == current.record.target]
    return {
        "name": name,
        "repo": repo,
        "reachable": reachable,
        "commit": commit,
        "facts": facts,
        "files": facts.files[:_FILES],
        "more_files": max(0, len(facts.files) - _FILES),
        "tensor_count": sum(len(file.tensors) for file in facts.files),
        "file_url": file_url,
        "too_large": PLAIN_HTTP_LIMIT,
        "card": render_card(card.text[:LONGEST], file_url=file_url) if card.text.strip() else None,
        "card_is_cut": len(card.text) > LONGEST,
        "card_data": {key: value for key, value in card.data.items() if key != "model-index"},
        "tags": tags,
        "base": _base(store, current, about),
        "about": about,
        "drawing": draw_lineage(about),
        "evaluations": [
            (item, metrics_of(item.result)) for item in about.evaluations if item.model == current.model_id
        ],
        "history": store.history(name)[::-1][:_HISTORY],
    }


def _lines(values: dict[str, Any], endpoint: str, place: str) -> list[tuple[str, str]]:
    """Return how to fetch a model: with what, and the line to copy."""
    repo, name = values["repo"], values["name"]
    here = f"HF_ENDPOINT={shlex.quote(endpoint)} "
    lines = []
    if values["reachable"]:
        lines += [
            ("Hugging Face", f"{here}hf download {repo}"),
            (
                "transformers",
                f"{here}python -c 'import transformers; transformers.AutoModel.from_pretrained(\"{repo}\")'",
            ),
        ]
    store = f"--store {shlex.quote(place)} " if place else ""
    lines.append(("casstore", f"casstore get {store}{shlex.quote(name)} ./model"))
    files = values["facts"].files
    if values["reachable"] and files:
        url = f"{endpoint}/{url_path(repo)}/resolve/main/{url_path(files[0].path)}"
        lines.append(("curl", f"curl --fail --remote-name {shlex.quote(url)}"))
    return lines


def _tensors(context: ServerContext, name: str) -> dict[str, Any]:
    store = context.store
    current = _current(context, name)
    base = _base(store, current, lineage(store, name))
    rows = tensor_rows(store, current, store.model(base) if base else None)
    return {"name": name, "base": base, "rows": rows}


def _base(store: Store, model: Model, about: Lineage) -> str:
    """Return a ref of the model that this one was made from, by an add or a run; "" if no ref names it any more."""
    if model.base is not None:
        try:
            return store.resolve(model.base).ref
        except RefNotFound:
            return ""  # It was deleted since.
    inputs = [link.input for link in about.links if link.output == model.model_id and link.input]
    refs = {node.model_id: node.refs for node in about.ancestors}
    return next((refs[key][0] for key in inputs if refs.get(key)), "")


def _without(about: Lineage, names: frozenset[str]) -> Lineage:
    """Return a lineage in which no model goes by one of these names."""

    def cleared(node: ModelNode) -> ModelNode:
        return replace(node, refs=tuple(ref for ref in node.refs if ref not in names))

    if not names:
        return about
    return replace(
        about,
        ancestors=tuple(map(cleared, about.ancestors)),
        descendants=tuple(map(cleared, about.descendants)),
    )


def _current(context: ServerContext, name: str) -> Model:
    """Return the model that exactly this ref names. Raises RefNotFound, HubError for one that not everybody may read."""
    record = context.store.record(name)
    if record is None:
        raise RefNotFound(f"There is no {name} in this store.")
    context.repositories.check_public(record)
    return context.store.model(name)
