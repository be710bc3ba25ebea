"""Runs one pass of a pipeline or reuses its output: for pipelines other than Olive's."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casstore.cache.document import DOCUMENT_NAME
from casstore.cache.passes.single_flight import single_flight
from casstore.errors import ConfigError, ConflictError
from casstore.format.run import RunStatus
from casstore.store.adding.sources import find_sources

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.cache.pipeline_cache import PipelineCache
    from casstore.cache.placements.placement import Placement
    from casstore.machine.stat_identity import StatIdentity

_TYPE = "folder"


def run_pass(
    cache: PipelineCache,
    name: str,
    make: Callable[..., object],
    model: str | os.PathLike[str],
    config: dict[str, Any],
    *,
    version: str | None,
    accelerator: object,
) -> Path:
    """Return the folder that `make(model, output_folder, **config)` fills, from the cache if it is there."""
    if not version:
        raise ConfigError(
            f'run_pass({name!r}) needs a version, such as version="1": the code of the pass is not part of the key, '
            "so without one an edited pass would return its old result. Change the version with the code."
        )
    source = Path(model).absolute()
    if not source.exists():
        raise ConfigError(f"{source} does not exist: a pass needs a model to work on.")
    files = _files(source)
    input_id = _input_id(cache, source, files)
    key = cache.get_output_model_id(name, config, input_id, accelerator, pass_version=version)
    run = _Run(cache, key, name, make, source, files, config, input_id, accelerator)
    with single_flight(os.fspath(cache.dirs.store), key):
        return run.found() or run.make()


@dataclass(frozen=True, slots=True)
class _Run:
    """One pass on one model."""

    cache: PipelineCache
    key: str
    name: str
    pass_: Callable[..., object]
    source: Path
    files: dict[str, StatIdentity]
    config: dict[str, Any]
    input_id: str
    accelerator: object

    def found(self) -> Path | None:
        """Return the folder of the output if it is cached here or in the shared cache, or was made but could not be stored."""
        if self.cache.load_run(self.key) is not None:
            return self._load()
        made = self.cache.attempts.only_copy(self.key)
        return made if made is not None and made.is_dir() else None

    def make(self) -> Path:
        """Run the pass and cache its output; raise what it raises."""
        attempts = self.cache.attempts
        output: Path | None = attempts.begin(self.key)
        while True:
            assert output is not None
            try:
                self._run(output)
                break
            except Exception as error:
                # Invariant 11: if the cache's disk is full, the pass runs once more elsewhere; any other error is its own.
                failed, output = output, attempts.begin_outside(self.key, output, error)
                if output is None:
                    attempts.discard(self.key, failed)
                    self._record_failure(error)
                    raise
            except BaseException:
                # Invariant 4: interrupted output is never used.
                attempts.discard(self.key, output)
                raise
        if not self._input_is_unchanged():
            return output
        with self.cache.placements.committing(self.key):
            other = self._load() if self._is_recorded() else None
            if other is not None:
                # Another process was faster: everybody gets the result that it recorded.
                attempts.discard(self.key, output)
                return other
            attempts.resume(self.key, output)
            self.cache.cache_model(self.key, {"type": _TYPE, "config": {"model_path": str(output)}})
            self.cache.cache_run(self.name, self.config, self.input_id, self.key, self.accelerator)
        return output

    def _run(self, output: Path) -> None:
        """Call the pass; raise ConfigError for one that only promises to work."""
        result = self.pass_(self.source, output, **_own(self.config))
        if inspect.iscoroutine(result):
            result.close()
        if inspect.iscoroutine(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise ConfigError(
                f"The pass {self.name} is a generator or coroutine, so it made nothing. Give a plain function."
            )

    def _is_recorded(self) -> bool:
        """Say whether a run of this key is recorded here, and its output here or in the shared store."""
        return self.cache.lookup.run(self.key, shared=False) is not None

    def _input_is_unchanged(self) -> bool:
        """Say whether the pass's input is still the one in the key; a result of another one is not cached."""
        now = _files(self.source)
        changed = next((path for path, identity in self.files.items() if now.get(path) != identity), None)
        if changed is not None:
            error = ConflictError(f"its input {changed} changed while the pass {self.name} ran")
            self.cache.failures.note(f"cache {self.key}", error)
        return changed is None

    def _load(self) -> Path | None:
        found = None
        with self.cache.failures.tolerated(f"load the model {self.key}"):
            found = self.cache.lookup.fetched_model(self.key)
        return Path(found["config"]["model_path"]) if found else None

    def _record_failure(self, error: Exception) -> None:
        """Record that the pass failed, unless another process succeeded meanwhile."""
        with self.cache.placements.committing(self.key):
            if not self._is_recorded():
                self.cache.cache_run(
                    self.name,
                    self.config,
                    self.input_id,
                    self.key,
                    self.accelerator,
                    status=RunStatus.FAILED,
                    error=f"{error!r:.500}",
                )


def _input_id(cache: PipelineCache, source: Path, files: dict[str, StatIdentity]) -> str:
    """Return the id of a pass's input: the id of the run that made it, or the model id of its files."""
    made = _first_below(source, cache.dirs.runs)
    record = cache.models.record(made) if made is not None else None
    if made is not None and record is not None and _is_all(source, files, cache.models.placed(made, record)):
        return made
    content = _first_below(source, cache.dirs.checkouts)
    if content is not None and _is_all(source, files, cache.placements.checkout(content)):
        return content
    return cache.local.content_id(os.fspath(source), ignore_file=False)


def _is_all(source: Path, files: dict[str, StatIdentity], placement: Placement | None) -> bool:
    """Say whether a pass's input is a cached model: no part of one, and no more than one."""
    if placement is None or placement.model.get("config", {}).get("model_path") != os.fspath(source):
        return False
    # A checkout holds the config as well, beside the model.
    return files.keys() == {file.location for file in placement.files} - {str(source.parent / DOCUMENT_NAME)}


def _files(source: Path) -> dict[str, StatIdentity]:
    return {file.location: file.identity for file in find_sources(os.fspath(source)).files}


def _own(value: Any) -> Any:
    """Return a config whose maps and lists are the pass's own, to change them at will."""
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return [_own(item) for item in value] if isinstance(value, list) else value


def _first_below(path: Path, folder: Path) -> str | None:
    try:
        return path.relative_to(folder).parts[0]
    except (ValueError, IndexError):
        return None  # It is outside the cache, so no earlier pass made it.
