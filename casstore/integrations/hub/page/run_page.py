"""One run, and one evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.cache.run_cache import RunCacheManager
from casstore.errors import RefNotFound
from casstore.format.run import decode_evaluation
from casstore.integrations.hub.errors import HubError
from casstore.ops.metrics import metrics_of

if TYPE_CHECKING:
    from casstore.api.store import Store
    from casstore.integrations.hub.context import ServerContext
    from casstore.integrations.hub.page.site import Site

__all__ = ["evaluation", "load_run", "run"]


async def run(site: Site, name: str) -> dict[str, Any]:
    """Return what the page of a run shows. Raises RefNotFound."""
    return await site.context.run(_run, site.context, name)


async def evaluation(site: Site, name: str) -> dict[str, Any]:
    """Return what the page of an evaluation shows. Raises RefNotFound."""
    return await site.context.run(_evaluation, site.context, name)


def load_run(store: Store, name: str) -> Any:
    """Return the manifest of a run. Raises RefNotFound."""
    found = RunCacheManager(store).load_run(name.removeprefix("runs/"))
    if found is None:
        raise RefNotFound(f"There is no {name} in this store.")
    return found


def _ref_of(context: ServerContext, model_id: bytes | None) -> str:
    """Return a ref that names a model, "" if none does that everybody may read."""
    if model_id is None:
        return ""
    try:
        found = context.store.resolve(model_id.hex())
        context.repositories.check_public(found.record)
    except (RefNotFound, HubError):
        return ""  # It was deleted since, or was never kept.
    return found.ref


def _run(context: ServerContext, name: str) -> dict[str, Any]:
    found = load_run(context.store, name)
    return {
        "name": name,
        "run": found,
        "input_ref": _ref_of(context, found.input),
        "output_ref": _ref_of(context, found.output),
        "sections": [
            ("Configuration", found.config),
            ("Environment that decides the output", found.key.environment),
            ("Recorded", found.recorded),
            ("Metrics", found.metrics),
            ("Artifacts", {key: value.hex() for key, value in found.artifacts.items()}),
        ],
    }


def _evaluation(context: ServerContext, name: str) -> dict[str, Any]:
    store = context.store
    record = store.record(name)
    if record is None:
        raise RefNotFound(f"There is no {name} in this store.")
    found = decode_evaluation(store.manifest_of(record))
    return {
        "name": name,
        "record": record,
        "evaluation": found,
        "model_ref": _ref_of(context, found.model),
        "metrics": metrics_of(found.result),
    }
