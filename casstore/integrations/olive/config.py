"""Olive's `cache_config` with the settings of casstore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.cache.settings import DEFAULT_CHECKOUT_BYTES, DEFAULT_WORKFLOW_ID
from casstore.integrations.olive.engine_cache import EngineCache, settings

if TYPE_CHECKING:
    from collections.abc import Callable


def make_config_class(base: Any) -> Any:
    """Return a subclass of Olive's CacheConfig, which its validation insists on, that opens casstore's cache."""
    pydantic_fields: dict[str, Any] = {
        "max_checkout_bytes": DEFAULT_CHECKOUT_BYTES,
        "keep_working_files": False,
        "max_store_bytes": None,
        "delta": "balanced",
        "storage_options": {},
        "environment": {},
    }
    annotations = {
        "max_checkout_bytes": int,
        "keep_working_files": bool,
        "max_store_bytes": int | None,
        "delta": str,
        "storage_options": dict,
        "environment": dict,
    }
    namespace: dict[str, Any] = {
        "__module__": base.__module__,  # Olive compares classes by module and name
        "__doc__": "The settings of a cache on casstore: Olive's own, and additional ones.",
        "__annotations__": annotations,
        **pydantic_fields,
        **_validators(),
        "create_cache": _create_cache,
        "get_local_cache_dir": lambda self: settings(self).get_local_cache_dir(),
    }
    return type(base)("CacheConfig", (base,), namespace)


def _create_cache(self: Any, workflow_id: str = DEFAULT_WORKFLOW_ID) -> EngineCache:
    return EngineCache(settings(self, workflow_id=workflow_id))


def _validators() -> dict[str, Any]:
    """Replace Olive's checks by casstore's, which know every URL and run when the cache is opened."""
    from pydantic import field_validator, model_validator  # noqa: PLC0415  # comes with Olive, an optional extra

    def check(self: Any) -> Any:
        checked = settings(self)
        self.cache_dir = checked.cache_dir
        self.account_name, self.container_name = checked.account_name, checked.container_name
        self.enable_shared_cache = checked.enable_shared_cache
        return self

    def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        function.__name__ = name
        return function

    return {
        "validate_cache_dir": field_validator("cache_dir", mode="before")(
            named(lambda cls, value: _texts(value), "validate_cache_dir")  # noqa: ARG005  # pydantic's shape
        ),
        "validate_account_name": field_validator("account_name")(
            named(lambda cls, value: value, "validate_account_name")  # noqa: ARG005  # as above
        ),
        "validate_container_name": field_validator("container_name")(
            named(lambda cls, value: value, "validate_container_name")  # noqa: ARG005  # as above
        ),
        "validate_enable_shared_cache": model_validator(mode="after")(check),
    }


def _texts(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return [str(value)] if value else value
