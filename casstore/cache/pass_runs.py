"""One pass of a pipeline, found again or run: for pipelines that are not Olive's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casstore.errors import ConfigError
from casstore.format.run import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.cache.olive_cache import OliveCache

_TYPE = "folder"


def run_pass(
    cache: OliveCache,
    name: str,
    make: Callable[..., object],
    model: str | os.PathLike[str],
    config: dict[str, Any],
    *,
    version: str,
    accelerator: object,
) -> Path:
    """Return the folder that `make(model, output_folder, **config)` fills, from the cache if it is there."""
    source = Path(model).absolute()
    if not source.exists():
        raise ConfigError(f"{source} does not exist: a pass needs a model to work on.")
    input_id = _input_id(cache, source)
    key = cache.get_output_model_id(name, config, input_id, accelerator, pass_version=version)
    if cache.load_run(key) is not None:
        found = cache.load_model(key)
        if found is not None and found.get("config", {}).pop("shared_cache", False):
            found = cache.download_shared_cache_model(found, key)
        if found:
            return Path(found["config"]["model_path"])
    output = cache.get_model_cache_path(key)
    try:
        make(source, output, **config)
    except Exception as error:
        # Invariant 11 is about the cache; what the pass itself raises is the pipeline's, and goes on.
        cache.cache_run(
            name, config, input_id, key, accelerator, status=RunStatus.FAILED, error=f"{error!r:.500}"
        )
        raise
    cache.cache_model(key, {"type": _TYPE, "config": {"model_path": str(output)}})
    cache.cache_run(name, config, input_id, key, accelerator)
    return output


def _input_id(cache: OliveCache, source: Path) -> str:
    """Return the id of a pass's input: that of the run that made it, or what the files hold."""
    made = _first_below(source, cache.dirs.runs)
    record = cache.models.record(made) if made is not None else None
    if made is not None and record is not None and cache.models.placed(made, record) is not None:
        return made
    content = _first_below(source, cache.dirs.checkouts)
    if content is not None and cache.placements.checkout(content) is not None:
        return content
    return cache.local.content_id(os.fspath(source), ignore_file=False)


def _first_below(path: Path, folder: Path) -> str | None:
    try:
        return path.relative_to(folder).parts[0]
    except (ValueError, IndexError):
        return None  # Somewhere else, so not what an earlier pass made.
