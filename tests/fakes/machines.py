"""Machines that share a cache: each has a cache directory of its own, and all the same shared store."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fakes.pipeline_models import onnx_config, onnx_file

from casstore.cache.config import CacheConfig

if TYPE_CHECKING:
    from pathlib import Path

    from casstore.cache.olive_cache import OliveCache

PASS = "OnnxQuantization"
INPUT = "1a2b3c4d"
"""What Olive calls an input model: eight digits."""


@dataclass
class Machines:
    """Opens caches below `root`; `close` lets go of all of them."""

    root: Path
    shared: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    opened: list[OliveCache] = field(default_factory=list)

    def open(self, name: str = "here", **settings: Any) -> OliveCache:
        """Open the cache of the machine `name`: the same folder for the same name."""
        places = [str(self.root / name)]
        if self.shared is not None:
            places.append(self.shared)
        cache = CacheConfig(cache_dir=places, **{**self.settings, **settings}).create_cache()
        self.opened.append(cache)
        return cache

    def lose(self, cache: OliveCache) -> None:
        """Lose a machine with everything on it."""
        cache.close()
        shutil.rmtree(cache.dirs.store.parent)

    def close(self) -> None:
        for cache in self.opened:
            cache.close()


def run_pass(
    cache: OliveCache,
    *,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    input_id: str = INPUT,
    pass_name: str = PASS,
    **settings: Any,
) -> str:
    """Do what Olive's engine does for one pass, with a model that depends on `seed`; return the model's id.

    A hit is loaded; a miss writes external data into the pass's own folder, and is cached.
    """
    config = {"bits": 8} if config is None else config
    model_id = cache.get_output_model_id(pass_name, config, input_id, None)
    if is_hit(cache, model_id):
        return model_id
    folder = cache.get_model_cache_path(model_id)
    onnx_file(folder / "graph.onnx", seed=seed, data="graph.data")
    cache.cache_model(model_id, onnx_config(folder, onnx_file_name="graph.onnx", **settings))
    cache.cache_run(pass_name, config, input_id, model_id, None)
    return model_id


def is_hit(cache: OliveCache, model_id: str) -> bool:
    """Say whether a pass would be skipped, as Olive's engine decides it."""
    return bool(cache.load_run_from_model_id(model_id)) and cache.load_model(model_id) is not None
