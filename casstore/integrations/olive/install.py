"""Replaces Olive's cache classes by casstore's."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

from casstore.cache.olive.context import evaluating, isolated_cache_env
from casstore.cache.shared_cache import SharedCache
from casstore.errors import ConfigError
from casstore.integrations.olive.config import make_config_class
from casstore.integrations.olive.engine_cache import EngineCache
from casstore.integrations.olive.identity import input_model_id

if TYPE_CHECKING:
    from collections.abc import Callable

_IMPORTERS = ("olive.engine.engine", "olive.workflows.run.config", "olive.model.handler.mixin.mlflow")
"""Modules of Olive that import names from its cache module; those loaded already get the new classes."""

_done = False


def install() -> None:
    """Make Olive cache through casstore in this process from now on; calling it twice is harmless.

    Raises ConfigError if Olive is not installed.
    """
    global _done  # noqa: PLW0603  # what is patched is global to the process as well
    if _done:
        return
    cache = _import("olive.cache")
    model_config = _import("olive.model.config.model_config").ModelConfig
    config_class = make_config_class(cache.CacheConfig)
    # Configs of Olive's own class, made before this or through a type that was bound earlier, work as well.
    cache.CacheConfig.create_cache = config_class.create_cache
    names = {"CacheConfig": config_class, "OliveCache": EngineCache, "SharedCache": SharedCache}
    if not hasattr(cache, "isolated_cache_env"):
        names["isolated_cache_env"] = isolated_cache_env
    else:
        EngineCache.olive_cache_class = cache.OliveCache
    for module in (cache, *(sys.modules[name] for name in _IMPORTERS if name in sys.modules)):
        for name, value in names.items():
            if module is cache or hasattr(module, name):
                setattr(module, name, value)
    original = model_config.get_model_id
    model_config.get_model_id = functools.wraps(original)(lambda self: input_model_id(self, original))
    engine = _import("olive.engine.engine").Engine
    engine._evaluate_model = _with_evaluator(engine._evaluate_model)  # noqa: SLF001  # no public method knows the evaluator
    engine.run_accelerator = _with_outputs(engine.run_accelerator)
    engine.run = _with_end(engine.run)
    _done = True


def _with_outputs(run: Callable[..., Any]) -> Callable[..., Any]:
    """Have the files of the models that a run is for; run once more what was a hit and could not be read."""

    @functools.wraps(run)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = run(self, *args, **kwargs)
        if isinstance(self.cache, EngineCache) and not self.cache.fetch_outputs(self.footprint):
            result = run(self, *args, **kwargs)
            self.cache.fetch_outputs(self.footprint)
        return result

    return wrapped


def _with_end(run: Callable[..., Any]) -> Callable[..., Any]:
    """Tell the cache when a run ends, and what its outputs are."""

    @functools.wraps(run)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.cache, EngineCache):
            return run(self, *args, **kwargs)
        try:
            output = run(self, *args, **kwargs)
        except Exception:
            # Invariant 11: what a pass or Olive itself raises goes on to the caller. A run without outputs needs no
            # working files. Ctrl-C is not caught: the end of the process ends the run (cache/runs/at_exit.py).
            self.cache.end_run()
            raise
        best = output.get_best_candidate() if output is not None else None
        if best is not None:
            # What was saved lies in the output folder, and no longer in the cache.
            self.footprint.nodes[best.model_id].model_config_data = dict(best.olive_model_config)
        self.cache.end_run(self.footprint.output_model_ids)
        return output

    return wrapped


def _with_evaluator(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Keep each evaluation under its evaluator, which Olive does not pass to its cache."""

    @functools.wraps(evaluate)
    def wrapped(self: Any, model_config: Any, model_id: str, evaluator_config: Any, *rest: Any) -> Any:
        with evaluating(evaluator_config):
            return evaluate(self, model_config, model_id, evaluator_config, *rest)

    return wrapped


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # Invariant 11: the user must install Olive; running uncached without a word would be wrong.
        raise ConfigError(
            f"{name} cannot be imported ({error}). Install Olive first: pip install 'casstore[olive]'."
        ) from error
