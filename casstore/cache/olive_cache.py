"""OliveCache: a pipeline's cache with the methods that Olive calls; also the way to cache passes of other pipelines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casstore.cache.directories import checked_id
from casstore.cache.olive import context
from casstore.cache.olive.collect import collect
from casstore.cache.olive.resources import LocalResource, Resources
from casstore.cache.olive.saving import save_model
from casstore.cache.passes.pass_runs import run_pass
from casstore.cache.pipeline_cache import PipelineCache
from casstore.cache.run_cache import evaluation_ref
from casstore.cache.runs.run_json import get_run_json, run_json
from casstore.cache.settings import CacheSettings
from casstore.cache.shared_cache import SharedCache, replace_config
from casstore.cache.values import plain
from casstore.cache.views import is_foreign, read_json, write_json, write_view
from casstore.errors import RefNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self


class OliveCache(PipelineCache):
    """The cache of one workflow. Safe in threads, and beside other processes.

    `cache_config` is a CacheConfig, a map of its settings, or a path; without a workflow id, `cache_dir` is
    the folder of the working files itself. Failures do not stop the pipeline: they are logged, kept in `problems`, and
    count as not cached (invariant 11). Only an invalid id, a mistake of the caller, raises.
    """

    shared_class = SharedCache
    get_run_json = staticmethod(get_run_json)

    def __init__(
        self, cache_config: CacheSettings | Mapping[str, Any] | str | os.PathLike[str] | None = None
    ) -> None:
        if isinstance(cache_config, (str, os.PathLike)):
            cache_config = {"cache_dir": os.fspath(cache_config)}
        super().__init__(CacheSettings.of(cache_config), collect=collect)
        self.update_shared_cache = self.config.update_shared_cache
        self.enable_shared_cache = self.config.enable_shared_cache
        self.resources = Resources(self.dirs.resources, make=self.make_resource, sharing=self._sharing)

    @property
    def shared_cache(self) -> SharedCache | None:
        """The shared cache; None if there is none, or it was disabled."""
        shared = self._sharing.shared
        return shared if isinstance(shared, SharedCache) else None

    @classmethod
    def from_cache_env(cls) -> Self:
        """Open the cache that `set_cache_env` named, the default one if none did."""
        return cls(cache_config={"cache_dir": context.get_cache_dir()})

    def set_cache_env(self) -> None:
        """Make this the cache that `from_cache_env` opens, here or in a child process."""
        context.set_cache_dir(self.dirs.cache_dir)

    # Passes of other pipelines

    def run_pass(
        self,
        name: str,
        make: Callable[..., object],
        model: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        *,
        version: str | None = None,
        accelerator: object = None,
    ) -> Path:
        """Return the folder with the output of `make(model, output_folder, **config)`, made now or earlier.

        The key is the content of `model`, the name, config and accelerator, and `version`, which is required:
        change it whenever `make` changes, since the code of `make` is not part of the key. The output folder is
        empty and its own at each attempt; the one returned is read-only to you, since it may be a checkout that
        others use. Threads that ask for one key wait for the one that makes it, and processes get the result that
        was recorded first. What `make` raises is recorded, and raised; only if the cache's disk is full, `make` is
        called once more, with a folder elsewhere. A result whose input changed meanwhile is returned and not
        cached. Raises ConfigError without a version, and for a generator or coroutine function.
        """
        return run_pass(self, name, make, model, dict(config or {}), version=version, accelerator=accelerator)

    # Models

    def download_shared_cache_model(self, input_model_config: Any, input_model_id: str) -> Any:
        """Fetch the files of a model from the shared cache; return its config with paths that exist.

        `input_model_config` is a map, or an object whose `config` is one; it is updated. Raises RefNotFound
        for a model that is nowhere, BackendError if the shared cache fails.
        """
        located = self.lookup.fetched_model(input_model_id)
        if located is None:
            raise RefNotFound(f"The model {input_model_id} is neither here nor in the shared cache.")
        return replace_config(input_model_config, located)

    def save_model(
        self,
        model_id: str,
        output_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,  # noqa: FBT001, FBT002  # as Olive's callers pass it
        only_cache_files: bool = False,  # noqa: FBT001, FBT002  # as above
    ) -> dict[str, Any]:
        """Write a cached model to a folder or .onnx file; return its config, which is written beside it.

        Raises RefNotFound for a model that is not cached, IntegrityError for one that is damaged.
        """
        config = self.lookup.fetched_model(model_id)
        if not config:
            raise RefNotFound(
                f"There is no cached model {model_id} to save: it was never made, or its pass failed."
            )
        saved = save_model(
            config,
            Path(output_dir) if output_dir else Path.cwd(),
            overwrite=overwrite,
            only_files_below=self.dirs.checkouts.parent if only_cache_files else None,
            resources=self.resources,
        )
        if (content := self.lookup.content_of(model_id)) is not None:
            self.placements.spend(content.hex())
        return saved

    # Runs

    def load_run_from_model_id(self, model_id: str) -> dict[str, Any]:
        """Return the run that made a model, as Olive writes it; `{}` for a miss."""
        run = self.load_run(model_id)
        if run is not None:
            return run_json(run)
        path = self.get_run_json_path(model_id)
        return (read_json(path) if is_foreign(path) else None) or {}

    # Evaluations

    def cache_evaluation(
        self, model_id: str, evaluation_json: Mapping[str, Any], *, evaluator: object = None
    ) -> None:
        """Record a model's evaluation; `evaluator`, by default that of `evaluating`, is part of the key."""
        with self.failures.tolerated(f"record the evaluation of {model_id}"):
            name = context.evaluator_name(evaluator, self._content_id)
            self.runs.cache_evaluation(
                model_id,
                dict(evaluation_json),
                evaluator=name,
                model=self.lookup.content_of(model_id.partition("-")[0]),
                workflow=self.dirs.cache_dir.name,
            )
            write_view(
                self._evaluation_view(model_id, name), plain(dict(evaluation_json), what="An evaluation")
            )
            self._sharing.push([evaluation_ref(model_id, name)])

    def load_evaluation(self, model_id: str, *, evaluator: object = None) -> dict[str, Any] | None:
        """Return a model's evaluation by one evaluator, None for a miss."""
        with self.failures.tolerated(f"load the evaluation of {model_id}"):
            name = context.evaluator_name(evaluator, self._content_id)
            found = self.runs.load_evaluation(model_id, evaluator=name)
            if found is None and self._sharing.pull(evaluation_ref(model_id, name)):
                found = self.runs.load_evaluation(model_id, evaluator=name)
            if found is not None:
                return found.result
        return None

    def get_evaluation_json_path(self, model_id: str, *, evaluator: object = None) -> Path:
        """Return the path of an evaluation's file, which is there if there is such an evaluation."""
        checked_id(model_id)
        found = self.load_evaluation(model_id, evaluator=evaluator)
        path = self.dirs.evaluations / f"{model_id}.json"
        with self.failures.tolerated(f"write the evaluation of {model_id}"):
            path = self._evaluation_view(model_id, context.evaluator_name(evaluator, self._content_id))
            if found is not None:
                write_view(path, found)
            elif not is_foreign(path):
                # The file of an evaluation that has since been deleted (invariant 5).
                path.unlink(missing_ok=True)
        return path

    # Paths

    def get_cache_dir(self) -> Path:
        """Return the folder of this workflow's working files."""
        return self.dirs.cache_dir

    def get_resource_cache_path(self) -> Path:
        """Return the folder of resources that were downloaded."""
        return self.dirs.resources

    def cache_olive_config(self, olive_config: Mapping[str, Any]) -> None:
        """Keep the config of a workflow beside its working files."""
        with self.failures.tolerated("keep the workflow's config"):
            value = plain(dict(olive_config), what="The workflow's config")
            write_json(self.dirs.cache_dir / "olive_config.json", value)

    # Resources

    def prepare_resources_for_local(self, config: Any) -> Any:
        """Return a config of the same type whose resources all lie on this machine; None for None."""
        return self.resources.prepare(config)

    def get_local_path(self, resource_path: Any) -> str | None:
        """Return the local path of a resource as text, downloading it if need be; None for None."""
        return self.resources.local_path(resource_path)

    def get_local_path_or_download(self, resource_path: Any) -> Any:
        """Return a resource that lies on this machine, downloading it if need be."""
        return self.resources.local(resource_path)

    def disable_shared_cache(self) -> None:
        """Stop using the shared cache."""
        self.enable_shared_cache = False
        held, self._sharing.shared = self._sharing.shared, None
        if held is not None:
            held.close()

    # Internals

    def make_resource(self, path: str) -> Any:
        """Return a resource that lies at a local path."""
        return LocalResource(path)

    def _content_id(self, path: str | Mapping[str, str]) -> str:
        return self.local.content_id(path, ignore_file=False)

    def _evaluation_view(self, model_id: str, evaluator: str) -> Path:
        suffix = f".{evaluator}" if evaluator else ""
        return self.dirs.evaluations / f"{checked_id(model_id)}{suffix}.json"
