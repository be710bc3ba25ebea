"""The cache that Olive's engine gets: OliveCache, with Olive's own types where the engine expects them."""

from __future__ import annotations

import contextlib
import importlib
import os
from dataclasses import fields, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

from casstore.cache.olive_cache import OliveCache
from casstore.cache.settings import CacheSettings
from casstore.digest import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

KEYED_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "optimum", "peft")
"""Packages whose versions decide what Olive's passes make: part of every run's key (invariant 12)."""


class EngineCache(OliveCache):
    """OliveCache for Olive's engine; files of a model that only the shared cache has are fetched when needed."""

    olive_cache_class: ClassVar[Any] = None
    """Olive's class that sets the cache directory of one thread or task; it is honoured."""

    def __init__(self, cache_config: Any = None) -> None:
        is_olives = hasattr(cache_config, "model_dump")
        config = settings(cache_config) if is_olives else CacheSettings.of(cache_config)
        super().__init__(replace(config, environment={**_versions(), **config.environment}))
        self._lazy: dict[str, str] = {}

    @classmethod
    def from_cache_env(cls) -> Self:
        """Open the cache that Olive's environment names, one thread's or task's own included."""
        if cls.olive_cache_class is None:
            return super().from_cache_env()
        found: Self = cls.olive_cache_class.from_cache_env.__func__(cls)
        return found

    def set_cache_env(self) -> None:
        """Make this the cache that `from_cache_env` opens."""
        if self.olive_cache_class is None:
            super().set_cache_env()
        else:
            self.olive_cache_class.set_cache_env(self)

    def make_resource(self, path: str) -> Any:
        """Return a resource of Olive's own type."""
        return _module("olive.resource_path").create_resource_path(path)

    def pass_version(self, pass_name: str) -> str:
        """Return Olive's version; for a pass that is not Olive's own, also the hash of its source."""
        version = f"olive-ai {metadata.version('olive-ai')}"
        source = _source_of(pass_name)
        return version if source is None else f"{version}, {source}"

    def load_model(self, model_id: str) -> dict[str, Any] | None:
        """Return the config of a cached model; `shared_cache` is never set, so that no output has it."""
        config = super().load_model(model_id)
        inner = config.get("config") if config else None
        if isinstance(inner, dict) and inner.pop("shared_cache", None):
            record = self.lookup.content_of(model_id)
            if record is not None:
                self._lazy[record.hex()] = model_id
        return config

    def prepare_resources_for_local(self, config: Any) -> Any:
        """Return a config of the same type whose resources, and whose cached models, lie on this machine."""
        utils, resource_path = _module("olive.common.config_utils"), _module("olive.resource_path")
        base = utils.ConfigBase
        config_class = type(config) if isinstance(config, base) else None
        value = utils.convert_configs_to_dicts(config)
        self._fetch_lazy(value)
        for pointer, resource in resource_path.find_all_resources(value).items():
            _module("olive.common.utils").set_nested_dict_value(value, pointer, self.get_local_path(resource))
        return utils.validate_config(value, config_class) if config_class is not None else value

    def _fetch_lazy(self, value: Any) -> None:
        """Fetch the models whose files are named, unless they are here and unchanged (invariant 14)."""
        if isinstance(value, str):
            below = f"{self.dirs.checkouts}{os.sep}"
            if value.startswith(below):
                content = value[len(below) :].split(os.sep)[0]
                model_id = self._lazy.get(content)
                if model_id is not None and self.placements.checkout(content) is None:
                    self.download_shared_cache_model({"config": {}}, model_id)
        elif isinstance(value, (dict, list)):
            for item in value.values() if isinstance(value, dict) else value:
                self._fetch_lazy(item)


def settings(config: Any, **others: Any) -> CacheSettings:
    """Return Olive's config as casstore's own, with `others` instead of its own settings."""
    names = [item.name for item in fields(CacheSettings) if hasattr(config, item.name)]
    return CacheSettings(**{name: getattr(config, name) for name in names} | others)


def _versions() -> Mapping[str, str]:
    found = {}
    for name in KEYED_PACKAGES:
        # A missing package cannot affect the output (invariant 12).
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _source_of(pass_name: str) -> str | None:
    """Return the hash of the source of a pass that is not Olive's own, None for one that is."""
    passes = _module("olive.passes.olive_pass").Pass.registry
    found = passes.get(pass_name.lower())
    if found is None or found.__module__.partition(".")[0] == "olive":
        return None
    path = getattr(importlib.import_module(found.__module__), "__file__", None)
    if path is None:
        return str(found.__module__)
    with open(path, "rb") as file:
        return digest(file.read()).hex()


def _module(name: str) -> Any:
    return importlib.import_module(name)
