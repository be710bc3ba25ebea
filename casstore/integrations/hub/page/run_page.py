"""One run, and one evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.cache.run_cache import RunCacheManager
from casstore.errors import RefNotFound
from casstore.format.run import decode_evaluation
from casstore.ops.metrics import metrics_of

if TYPE_CHECKING:
    from casstore.api.store import Store
    from casstore.integrations.hub.page.site import Site

__all__ = ["evaluation", "load_run", "run"]


async def run(site: Site, name: str) -> dict[str, Any]:
    """Return what the page of a run shows. Raises RefNotFound."""
    return await site.context.run(_run, site.context.store, name)


async def evaluation(site: Site, name: str) -> dict[str, Any]:
    """Return what the page of an evaluation shows. Raises RefNotFound."""
    return await site.context.run(_evaluation, site.context.store, name)


def load_run(store: Store, name: str) -> Any:
    """Return the manifest of a run. Raises RefNotFound."""
    found = RunCacheManager(store).load_run(name.removeprefix("runs/"))
    if found is None:
        raise RefNotFound(f"There is no {name} in this store.")
    return found


def ref_of(store: Store, model_id: bytes | None) -> str:
    """Return a ref that names a model, "" if none does."""
    if model_id is None:
        return ""
    try:
        return store.resolve(model_id.hex()).ref
    except RefNotFound:
        return ""  # It was deleted since, or was never kept.


def _run(store: Store, name: str) -> dict[str, Any]:
    found = load_run(store, name)
    return {
        "name": name,
        "run": found,
        "input_ref": ref_of(store, found.input),
        "output_ref": ref_of(store, found.output),
        "sections": [
            ("Configuration", found.config),
            ("Environment that decides the output", found.key.environment),
            ("Recorded", found.recorded),
            ("Metrics", found.metrics),
            ("Artifacts", {key: value.hex() for key, value in found.artifacts.items()}),
        ],
    }


def _evaluation(store: Store, name: str) -> dict[str, Any]:
    record = store.record(name)
    if record is None:
        raise RefNotFound(f"There is no {name} in this store.")
    found = decode_evaluation(store.manifest_of(record))
    return {
        "name": name,
        "record": record,
        "evaluation": found,
        "model_ref": ref_of(store, found.model),
        "metrics": metrics_of(found.result),
    }
