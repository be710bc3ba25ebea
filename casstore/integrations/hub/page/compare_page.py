"""Two models, or two runs, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.errors import ConfigError, RefNotFound
from casstore.integrations.hub.errors import bad_request
from casstore.integrations.hub.page.comparison import compare_metrics, compare_models, compare_runs
from casstore.integrations.hub.page.run_page import load_run
from casstore.integrations.hub.repositories import MODELS
from casstore.ops.describe import describe
from casstore.ops.lineage import lineage, read_graph
from casstore.ops.metrics import metrics_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from casstore.api.store import Store
    from casstore.integrations.hub.context import ServerContext
    from casstore.integrations.hub.page.site import Site

__all__ = ["compare"]

_SHOWN = 1000
_SUGGESTED = 500
_RUNS = "runs/"


async def compare(site: Site, request: Request) -> tuple[str, dict[str, Any]]:
    """Return a template and what it shows: a form, if two names are not given. Raises HubError."""
    a, b = (request.query_params.get(name, "").strip() for name in ("a", "b"))
    rows = await site.context.run(site.context.repositories.rows)
    form = {"a": a, "b": b, "names": sorted(row.name.removeprefix(MODELS) for row in rows)[:_SUGGESTED]}
    if not a or not b:
        return "compare_form.html", form
    if a.startswith(_RUNS) != b.startswith(_RUNS):
        raise bad_request("Compare two models, or two runs.")
    try:
        if a.startswith(_RUNS):
            return "compare_runs.html", form | await site.context.run(_runs, site.context.store, a, b)
        return "compare_models.html", form | await site.context.run(_models, site.context, a, b)
    except ConfigError as error:
        raise bad_request(str(error)) from None
    except RefNotFound as error:
        raise bad_request(str(error)) from None


def _runs(store: Store, a: str, b: str) -> dict[str, Any]:
    runs = load_run(store, a), load_run(store, b)
    return {"runs": runs, "differences": compare_runs(*runs)}


def _models(context: ServerContext, a: str, b: str) -> dict[str, Any]:
    store = context.store
    models = store.model(a), store.model(b)
    for model in models:
        context.repositories.check_public(model.record)
    graph = read_graph(store)
    metrics = []
    for model in models:
        found: dict[str, float] = {}
        for item in lineage(store, model.ref, graph=graph).evaluations:
            if item.model == model.model_id:
                found |= metrics_of(item.result)
        metrics.append(found)
    comparison = compare_models(store, *models)
    changed = [file for file in comparison.files if file.change != "same"]
    return {
        "models": [describe(store, model.ref) for model in models],
        "comparison": comparison,
        "files": changed[:_SHOWN],
        "same_files": len(comparison.files) - len(changed),
        "tensors": comparison.tensors[:_SHOWN],
        "more_tensors": max(0, len(comparison.tensors) - _SHOWN),
        "metrics": compare_metrics(*metrics),
    }
