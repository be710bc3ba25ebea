"""The cache that Olive's engine gets: OliveCache, with Olive's own types where the engine expects them.

Most hits of a run are only inputs of other hits. So their files stay in the store until the engine asks for them, which it
does by `prepare_resources_for_local`, `save_model` and the end of its run.
"""

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
from casstore.errors import CasstoreError, RefNotFound

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from typing_extensions import Self

KEYED_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "optimum", "peft")
"""Packages whose versions decide what Olive's passes make: part of every run's key (invariant 12)."""


class EngineCache(OliveCache):
    """OliveCache for Olive's engine; files of a model that is a hit are written when needed."""

    olive_cache_class: ClassVar[Any] = None
    """Olive's class that sets the cache directory of one thread or task; it is honoured."""

    def __init__(self, cache_config: Any = None) -> None:
        is_olives = hasattr(cache_config, "model_dump")
        config = settings(cache_config) if is_olives else CacheSettings.of(cache_config)
        super().__init__(replace(config, environment={**_versions(), **config.environment}))
        self.defers_files = True
        self._lazy: dict[str, str] = {}
        self._saved: set[str] = set()
        self._unread = False

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
        if isinstance(inner, dict):
            inner.pop("shared_cache", None)
            record = self.lookup.content_of(model_id)
            if record is not None:
                self._lazy[record.hex()] = model_id
        return config

    def save_model(self, model_id: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Write a cached model to a folder or .onnx file, as OliveCache does."""
        saved = super().save_model(model_id, *args, **kwargs)
        self._saved.add(model_id)
        return saved

    def prepare_resources_for_local(self, config: Any) -> Any:
        """Return a config of the same type whose resources, and whose cached models, lie on this machine."""
        utils, resource_path = _module("olive.common.config_utils"), _module("olive.resource_path")
        base = utils.ConfigBase
        config_class = type(config) if isinstance(config, base) else None
        value = self.with_files(utils.convert_configs_to_dicts(config))
        for pointer, resource in resource_path.find_all_resources(value).items():
            _module("olive.common.utils").set_nested_dict_value(value, pointer, self.get_local_path(resource))
        return utils.validate_config(value, config_class) if config_class is not None else value

    def fetch_outputs(self, footprint: Any) -> bool:
        """Write the files of a run's output models; say whether every file that the run needed could be read.

        If not, `load_model` writes files at once from now on, so that damage is a miss where the engine can still
        make the model again.
        """
        with self.failures.tolerated("read the models that the run made"):
            for model_id in footprint.output_model_ids:
                node = footprint.nodes[model_id]
                node.model_config_data = self.with_files(node.model_config_data)
        self.defers_files, was_read = not self._unread, not self._unread
        self._unread = False
        return was_read

    def end_run(self, outputs: Collection[str] = ()) -> None:
        """Delete the files of models that a run's passes needed, and keep those of its outputs that were not saved."""
        super().end_run([model_id for model_id in outputs if model_id not in self._saved])

    def with_files(self, value: Any) -> Any:
        """Return a config whose cached models have their files here, unchanged (invariant 14), fetched if need be."""
        folders: dict[str, Path] = {}
        try:
            return self._located(value, folders)
        except (CasstoreError, OSError):
            # Invariant 11: it is raised; `fetch_outputs` sees to it that the model is made again.
            self._unread = True
            raise

    def _located(self, value: Any, folders: dict[str, Path]) -> Any:
        if isinstance(value, dict):
            return {key: self._located(item, folders) for key, item in value.items()}
        if isinstance(value, list):
            return [self._located(item, folders) for item in value]
        below = f"{self.dirs.checkouts}{os.sep}"
        if not (isinstance(value, str) and value.startswith(below)):
            return value
        content = value[len(below) :].split(os.sep)[0]
        model_id = self._lazy.get(content)
        if model_id is None:
            return value
        if content not in folders:
            folder = self.lookup.fetched_folder(model_id)
            if folder is None:
                raise RefNotFound(f"The model {model_id} is neither here nor in the shared cache.")
            folders[content] = folder
        # A checkout is elsewhere if the cache's disk is full.
        return str(folders[content]) + value.removeprefix(str(self.placements.checkout_path(content)))


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
