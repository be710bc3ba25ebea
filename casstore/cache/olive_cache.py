"""OliveCache, the interface for pipelines. It orchestrates the managers, and turns failures into misses.

Nothing here may stop a pipeline (invariant 11): a failure is logged, kept in `problems`, and counts as
not cached. Only an invalid id, a mistake of the caller, raises.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casstore.api.store import Store
from casstore.cache import environment, evaluators
from casstore.cache.config import CacheConfig
from casstore.cache.directories import CacheDirectories, checked_id
from casstore.cache.explain import Explanation, explain_run
from casstore.cache.model_cache import ModelCacheManager, model_ref
from casstore.cache.olive.document import texts
from casstore.cache.olive.resources import Resources
from casstore.cache.olive.saving import save_model
from casstore.cache.passes.attempts import Attempts
from casstore.cache.passes.pass_runs import run_pass
from casstore.cache.placements.placements import Placements
from casstore.cache.run_cache import RunCacheManager, evaluation_ref, new_run, run_json, run_ref
from casstore.cache.shared_cache import SharedCache, replace_config
from casstore.cache.shared_resources import SharedResources
from casstore.cache.sharing import Sharing
from casstore.cache.values import plain
from casstore.cache.views import is_foreign, read_json, write_json, write_view
from casstore.digest import digest, is_hex
from casstore.errors import CasstoreError, ConfigError, IntegrityError, RefNotFound
from casstore.format.run import RunKey, RunManifest, RunStatus
from casstore.ops.quarantine import quarantine_damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self

_log = logging.getLogger("casstore.cache")

_FAILED = "failed"
"""Metadata of the record of a model that a failed pass made, which is `{}`."""

_KEPT_PROBLEMS = 100
_KEPT_QUESTIONS = 10_000
"""Limit of the runs that are remembered until they are recorded: most of them are hits and never are."""


@dataclass(slots=True)
class _Asked:
    """A run that was asked for and may be happening now; `input` is the model id of its input, if known."""

    key: RunKey
    stated: dict[str, Any]
    input: bytes | None
    started: int


class OliveCache:
    """The cache of one workflow. Safe in threads, and beside other processes.

    `cache_config` is a CacheConfig, a map of its settings, or a path; without a workflow id, `cache_dir` is
    the folder of the working files itself.
    """

    def __init__(
        self, cache_config: CacheConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None
    ) -> None:
        if isinstance(cache_config, (str, os.PathLike)):
            cache_config = {"cache_dir": os.fspath(cache_config)}
        self.config = CacheConfig.of(cache_config)
        self.problems: deque[str] = deque(maxlen=_KEPT_PROBLEMS)
        self._lock = threading.Lock()
        self._asked: dict[str, _Asked] = {}
        self._uncached: dict[str, dict[str, Any]] = {}
        self._temporary: Path | None = None
        self.dirs, self.local = self._open()
        self.placements = Placements(self.dirs, max_bytes=self.config.max_checkout_bytes)
        self.attempts = Attempts(self.placements, note=self._note)
        self.models = ModelCacheManager(self.local, self.placements, note=self._note)
        self.runs = RunCacheManager(self.local, environment=self.config.environment)
        self.resources = Resources(self.dirs.resources)
        self.update_shared_cache = self.config.update_shared_cache
        self.enable_shared_cache = self.config.enable_shared_cache
        self.shared_cache: SharedCache | None = None
        self._sharing: Sharing | None = None
        url = self.config.get_shared_cache_url()
        if url is not None:
            self.shared_cache = SharedCache(
                url,
                read_only=not self.update_shared_cache,
                shared=self.config.shared,
                known=self.dirs.locks / f"shared-{digest(url.encode()).hex()[:16]}",
                **self.config.storage_options,
            )
            self._sharing = Sharing(self.shared_cache, self.local, update=self.update_shared_cache)
            self.resources.shared = SharedResources(self.local, self._sharing)
        self._clean()

    @classmethod
    def from_cache_env(cls) -> Self:
        """Open the cache that `set_cache_env` named, the default one if none did."""
        return cls(cache_config={"cache_dir": environment.get_cache_dir()})

    def set_cache_env(self) -> None:
        """Make this the cache that `from_cache_env` opens, here or in a child process."""
        environment.set_cache_dir(self.dirs.cache_dir)

    def close(self) -> None:
        """Release everything; from now on working files and checkouts may be deleted, by their bound."""
        self.attempts.close()
        self.models.close()
        self.placements.close()
        self.local.close()
        if self.shared_cache is not None:
            self.shared_cache.close()
        if self._temporary is not None:
            # Invariant 1 covers stores that are kept; this one was only temporary.
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OliveCache({str(self.dirs.cache_dir)!r})"

    # Passes of other pipelines

    def run_pass(
        self,
        name: str,
        make: Callable[..., object],
        model: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        *,
        version: str = "",
        accelerator: object = None,
    ) -> Path:
        """Return the folder with the output of `make(model, output_folder, **config)`, made now or earlier.

        The key is the content of `model`, the name, config and accelerator, and `version`, which you change
        when `make` does. The output folder is empty and its own at each attempt; the one returned is read-only
        to you, since it may be a checkout that others use. Threads that ask for one key wait for the one that
        makes it, and processes get the result that was recorded first. What `make` raises is recorded, and
        raised; only if the cache's disk is full, `make` is called once more, with a folder elsewhere. A result whose
        input changed meanwhile is returned and not cached. Raises ConfigError for a generator or coroutine function.
        """
        return run_pass(self, name, make, model, dict(config or {}), version=version, accelerator=accelerator)

    # Models

    def cache_model(self, model_id: str, model_json: dict[str, Any]) -> None:
        """Take a model and its files into the store, and into the shared cache if there is one.

        `{}` is the model of a failed pass. The files go on being used from where they are.
        """
        checked_id(model_id)
        if not model_json:
            self.attempts.fail(model_id)
        asked = self._asked.get(model_id)
        stored = False
        try:
            with self._attempt(f"cache the model {model_id}"):
                base = str(asked.stated["input_model_id"]) if asked is not None else None
                self.models.cache_model(
                    model_id,
                    model_json,
                    base=base if base and _is_id(base) else None,
                    metadata={
                        "workflow": self.dirs.cache_dir.name,
                        **({} if model_json else {_FAILED: True}),
                    },
                )
                stored = True
                write_view(self.get_model_json_path(model_id), model_json)
                if self._sharing is not None:
                    self._sharing.push([model_ref(model_id)])
        finally:
            # Invariant 11: files that could not be stored go on being used from where they are.
            if stored:
                self._uncached.pop(model_id, None)
            else:
                self._uncached[model_id] = model_json
            if model_json:
                self.attempts.finish(model_id, _texts(model_json), stored=stored)

    def load_model(self, model_id: str) -> dict[str, Any] | None:
        """Return the config of a cached model with paths that exist, `{}` for a failed pass, None for a miss.

        A model that only the shared cache has comes with `shared_cache` set and its files left there:
        `download_shared_cache_model` fetches them when they are needed.
        """
        checked_id(model_id)
        if (uncached := self._uncached.get(model_id)) is not None:
            return uncached
        with self._attempt(f"load the model {model_id}"), self._healing(model_id):
            config = self.models.load_model(model_id)
            if config is None:
                config = self._take_in(model_id)
            if config is not None:
                self.attempts.found(model_id)
                return config
        config = self._sharing.future_config(self.models, model_id) if self._sharing is not None else None
        if config is None:
            self.attempts.asked(model_id)
        return config

    def download_shared_cache_model(self, input_model_config: Any, input_model_id: str) -> Any:
        """Fetch the files of a model from the shared cache; return its config with paths that exist.

        `input_model_config` is a map, or an object whose `config` is one; it is updated. Raises RefNotFound
        for a model that is nowhere, BackendError if the shared cache fails.
        """
        located = self._download(input_model_id)
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
        config = self._download(model_id)
        if not config:
            raise RefNotFound(
                f"There is no cached model {model_id} to save: it was never made, or its pass failed."
            )
        return save_model(
            config,
            Path(output_dir) if output_dir else Path.cwd(),
            overwrite=overwrite,
            only_files_below=self.dirs.checkouts.parent if only_cache_files else None,
            resources=self.resources,
        )

    # Runs

    @staticmethod
    def get_run_json(
        pass_name: str, pass_config: Mapping[str, Any], input_model_id: str, accelerator_spec: object
    ) -> dict[str, Any]:
        """Return what a run consists of, as Olive writes it."""
        return {
            "input_model_id": input_model_id,
            "pass_name": pass_name,
            "pass_config": pass_config,
            "accelerator_spec": str(accelerator_spec) if accelerator_spec else None,
        }

    def pass_version(self, pass_name: str) -> str:  # noqa: ARG002  # subclasses know versions by name
        """Return the version of a pass, which is part of its runs' keys."""
        return self.config.pass_version

    def get_output_model_id(
        self,
        pass_name: str,
        pass_config: Mapping[str, Any],
        input_model_id: str,
        accelerator_spec: object = None,
        *,
        pass_version: str | None = None,
    ) -> str:
        """Return the id of what a pass makes of a model: 64 hex digits, the key of its run (invariant 12).

        The input counts by content if it was cached, or if its id is a model id. A config that cannot be distinguished
        from others gets an id that never recurs.
        """
        stated = self.get_run_json(pass_name, pass_config, input_model_id, accelerator_spec)
        try:
            asked = self._ask(stated, accelerator_spec, pass_version)
            model_id = asked.key.digest().hex()
        except CasstoreError as error:
            # Invariant 11: a run that cannot be keyed is never found again, and the pipeline goes on.
            self._note(f"key a run of {pass_name}", error)
            return digest(uuid.uuid4().bytes).hex()
        with self._lock:
            self._asked.pop(model_id, None)
            self._asked[model_id] = asked
            if len(self._asked) > _KEPT_QUESTIONS:
                del self._asked[next(iter(self._asked))]
        self.attempts.asked(model_id)
        return model_id

    def cache_run(
        self,
        pass_name: str,
        pass_config: Mapping[str, Any],
        input_model_id: str,
        output_model_id: str,
        accelerator_spec: object = None,
        *,
        status: RunStatus | None = None,
        started: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        error: str = "",
    ) -> None:
        """Record the run that made a model, after the model itself; share it if there is a shared cache.

        `started` is in nanoseconds since 1970, by default when the run's id was asked for.
        """
        checked_id(output_model_id)
        with self._attempt(f"record the run {output_model_id}"):
            stated = self.get_run_json(pass_name, pass_config, input_model_id, accelerator_spec)
            with self._lock:
                known = self._asked.pop(output_model_id, None)
            asked = known or self._ask(stated, accelerator_spec, None)
            record = self.models.record(output_model_id)
            failed = (record is not None and record.metadata.get(_FAILED) is True) or (
                self._uncached.get(output_model_id) == {}
            )
            run = new_run(
                output_model_id,
                asked.key,
                stated,
                output=record.target if record is not None else None,
                input_model=asked.input,
                status=status or (RunStatus.FAILED if failed else RunStatus.DONE),
                started=started if started is not None else asked.started,
                metrics=metrics,
                error=error,
                recorded={"alias": _alias(stated), "workflow": self.dirs.cache_dir.name},
            )
            self.runs.cache_run(run)
            write_view(self.get_run_json_path(output_model_id), run_json(run))
            if self._sharing is not None:
                self._sharing.push([run_ref(output_model_id)])

    def load_run(self, output_model_id: str) -> RunManifest | None:
        """Return a recorded run whose output is here or in the shared cache, every object of it; else None."""
        checked_id(output_model_id)
        run = self._recorded(output_model_id)
        if run is None and self._sharing is not None and self._sharing.pull(run_ref(output_model_id)):
            run = self._recorded(output_model_id)
        if run is None:
            self.attempts.asked(output_model_id)
        else:
            self.attempts.found(output_model_id)
        return run

    def holds_run(self, output_model_id: str) -> bool:
        """Say whether a run is recorded here, and its output here or in the shared cache."""
        return self._recorded(output_model_id) is not None

    def load_run_from_model_id(self, model_id: str) -> dict[str, Any]:
        """Return the run that made a model, as Olive writes it; `{}` for a miss."""
        run = self.load_run(model_id)
        if run is not None:
            return run_json(run)
        path = self.get_run_json_path(model_id)
        return (read_json(path) if is_foreign(path) else None) or {}

    def explain(self, run: str) -> Explanation:
        """Say why a run was a miss: what differs from the nearest earlier run. Raises RefNotFound."""
        asked = self._asked.get(run)
        return explain_run(self.runs, run, key=asked.key if asked is not None else None)

    # Evaluations

    def cache_evaluation(
        self, model_id: str, evaluation_json: Mapping[str, Any], *, evaluator: object = None
    ) -> None:
        """Record a model's evaluation; `evaluator`, by default that of `evaluating`, is part of the key."""
        with self._attempt(f"record the evaluation of {model_id}"):
            name = evaluators.name_of(evaluator, self._content_id)
            self.runs.cache_evaluation(
                model_id,
                dict(evaluation_json),
                evaluator=name,
                model=self._content_of(model_id.partition("-")[0]),
                workflow=self.dirs.cache_dir.name,
            )
            write_view(
                self._evaluation_view(model_id, name), plain(dict(evaluation_json), what="An evaluation")
            )
            if self._sharing is not None:
                self._sharing.push([evaluation_ref(model_id, name)])

    def load_evaluation(self, model_id: str, *, evaluator: object = None) -> dict[str, Any] | None:
        """Return a model's evaluation by one evaluator, None for a miss."""
        with self._attempt(f"load the evaluation of {model_id}"):
            name = evaluators.name_of(evaluator, self._content_id)
            found = self.runs.load_evaluation(model_id, evaluator=name)
            if found is None and self._sharing is not None:
                self._sharing.pull(evaluation_ref(model_id, name))
                found = self.runs.load_evaluation(model_id, evaluator=name)
            if found is not None:
                return found.result
        return None

    def get_evaluation_json_path(self, model_id: str, *, evaluator: object = None) -> Path:
        """Return the path of an evaluation's file, which is there if there is such an evaluation."""
        checked_id(model_id)
        found = self.load_evaluation(model_id, evaluator=evaluator)
        path = self.dirs.evaluations / f"{model_id}.json"
        with self._attempt(f"write the evaluation of {model_id}"):
            path = self._evaluation_view(model_id, evaluators.name_of(evaluator, self._content_id))
            if found is not None:
                write_view(path, found)
            elif not is_foreign(path):
                path.unlink(
                    missing_ok=True
                )  # The file of an evaluation that has since been deleted (invariant 5).
        return path

    # Paths

    def get_cache_dir(self) -> Path:
        """Return the folder of this workflow's working files."""
        return self.dirs.cache_dir

    def get_run_path(self, model_id: str) -> Path:
        """Return the folder of one run's working files; it is made."""
        path = self.dirs.run(model_id)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def get_run_json_path(self, model_id: str) -> Path:
        """Return where a run's file is."""
        return self.get_run_path(model_id) / "run.json"

    def get_model_json_path(self, model_id: str) -> Path:
        """Return where a model's config file is."""
        return self.get_run_path(model_id) / "model.json"

    def get_model_cache_path(self, model_id: str) -> Path:
        """Return the folder that a pass writes its output to; it is made, and stays until the cache is closed.

        Each attempt gets an empty one of its own. An attempt begins when a thread calls this after
        `get_output_model_id`, `load_run` or `load_model` did not end in a hit; calls after that return the same
        folder, and once the model is cached, every thread gets the one that it was cached from. It lies in the
        system's temporary directory if the cache's disk is full.
        """
        checked_id(model_id)
        return self.attempts.folder(model_id)

    def get_resource_cache_path(self) -> Path:
        """Return the folder of resources that were downloaded."""
        return self.dirs.resources

    def cache_olive_config(self, olive_config: Mapping[str, Any]) -> None:
        """Keep the config of a workflow beside its working files."""
        with self._attempt("keep the workflow's config"):
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
        held, self.shared_cache, self._sharing = self.shared_cache, None, None
        self.resources.shared = None
        if held is not None:
            held.close()

    # Internals

    def _open(self) -> tuple[CacheDirectories, Store]:
        try:
            directories = CacheDirectories.of(self.config)
            if self.config.clean_cache:
                for folder in directories.working:
                    shutil.rmtree(
                        folder, ignore_errors=True
                    )  # The user asked for it; another process may do the same.
            directories.make()
            return directories, Store(directories.store, create=True)
        except (CasstoreError, OSError) as error:
            # Invariant 11: without its folder the pipeline goes on in a temporary one, and nothing is kept.
            self._note(f"use {self.config.get_local_cache_dir()}, so nothing is kept", error)
        directories = CacheDirectories.temporary()
        self._temporary = directories.cache_dir
        directories.make()
        return directories, Store(directories.store, create=True, durability="none")

    def _clean(self) -> None:
        """Forget what this workflow cached, if the config says so."""
        prefixes: tuple[str, ...] = ()
        if self.config.clean_cache:
            prefixes = ("models/", "runs/", "evaluations/")
        elif self.config.clean_evaluation_cache:
            prefixes = ("evaluations/",)
            shutil.rmtree(self.dirs.evaluations, ignore_errors=True)
            self.dirs.evaluations.mkdir(parents=True, exist_ok=True)
        for prefix in prefixes:
            with self._attempt(f"forget {prefix}"):
                for row in self.local.find(prefix, where={"workflow": self.dirs.cache_dir.name}):
                    # A damaged ref does not stop the rest; another process may be cleaning as well.
                    with self._attempt(f"forget {row.name}"), contextlib.suppress(RefNotFound):
                        self.local.rm(row.name)

    @contextlib.contextmanager
    def _attempt(self, doing: str) -> Iterator[None]:
        """Go on after a failure, which is logged (invariant 11)."""
        try:
            yield
        except IntegrityError as error:
            _log.error("Could not %s because it is damaged: %s", doing, error)  # one line, for people
            self.problems.append(f"Could not {doing}: {error}")
        except (CasstoreError, OSError) as error:
            self._note(doing, error)

    @contextlib.contextmanager
    def _healing(self, model_id: str) -> Iterator[None]:
        """Quarantine damaged packs, so that making or fetching the model again repairs the store."""
        try:
            yield
        except IntegrityError:
            # Invariant 11: the error is raised; the note only keeps the next add from relying on the damage.
            record = self.models.record(model_id)
            if record is not None:
                for pack, reason in quarantine_damaged(self.local, record).items():
                    _log.error("The pack %s is damaged and was quarantined: %s", pack, reason)  # as above
            raise

    def _note(self, doing: str, error: BaseException) -> None:
        text = f"Could not {doing}: {error}"
        with self._lock:
            known = text in self.problems
            self.problems.append(text)
        if not known:
            _log.warning("%s", text)

    def _ask(self, stated: dict[str, Any], accelerator: object, version: str | None) -> _Asked:
        name, input_name = str(stated["pass_name"]), str(stated["input_model_id"])
        content = self._content_of(input_name)
        key = self.runs.key(
            name,
            stated["pass_config"],
            input_model=content.hex() if content else f"name:{input_name}",
            pass_version=self.pass_version(name) if version is None else version,
            accelerator=accelerator,
        )
        return _Asked(key, stated, content, time.time_ns())

    def _content_of(self, model_id: str) -> bytes | None:
        """Return the model id of what a pipeline calls `model_id`, None if that is not known."""
        if _is_id(model_id):
            with self._attempt(f"look up the model {model_id}"):
                record = self.models.record(model_id)
                if record is None and self._sharing is not None:
                    record = self._sharing.model_record(model_id)
                if record is not None:
                    return record.target
        return bytes.fromhex(model_id) if is_hex(model_id) else None

    def _recorded(self, output_model_id: str) -> RunManifest | None:
        with self._attempt(f"load the run {output_model_id}"):
            run = self.runs.load_run(output_model_id)
            if run is not None and self._has_output(run):
                return run
        return None

    def _has_output(self, run: RunManifest) -> bool:
        """Say whether the whole output of a run is here or in the shared cache (§8: a hit checks presence)."""
        if run.status is RunStatus.RUNNING or run.output is None:
            return False
        record = self.models.record_of(run.name, run.output)
        if record is not None and (self.models.stands(run.name, record) or not self.local.lacks(record)):
            return True
        return self._sharing is not None and self._sharing.holds_output(run)

    def _download(self, model_id: str) -> dict[str, Any] | None:
        """Return the config of a model with paths that exist, from here or the shared cache; None if nowhere."""
        checked_id(model_id)
        if (uncached := self._uncached.get(model_id)) is not None:
            return uncached
        config = None
        try:
            with self._healing(model_id):
                config = self.models.load_model(model_id) or self._take_in(model_id)
        except IntegrityError as error:
            # Invariant 11: damage here is not a miss while the shared cache has the same bytes.
            shared = self.shared_cache.existing() if self.shared_cache is not None else None
            if shared is None:
                raise
            self._note(f"read the model {model_id} from {self.dirs.store}", error)
            config = self.models.restore(model_id, shared)
        if config is None and self.shared_cache is not None:
            if self.shared_cache.exists(model_ref(model_id)):
                self.shared_cache.retrieve(self.local, [model_ref(model_id)])
                config = self.models.load_model(model_id)
            else:
                self.shared_cache.check_place()
        return config

    def _take_in(self, model_id: str) -> dict[str, Any] | None:
        """Cache a model whose config file was put where Olive would put it."""
        view = self.dirs.run(model_id) / "model.json"
        config = read_json(view) if is_foreign(view) else None
        if config is not None:
            self.models.cache_model(model_id, config, metadata={"workflow": self.dirs.cache_dir.name})
        return config

    def _content_id(self, path: str | Mapping[str, str]) -> str:
        return self.local.content_id(path, ignore_file=False)

    def _evaluation_view(self, model_id: str, evaluator: str) -> Path:
        suffix = f".{evaluator}" if evaluator else ""
        return self.dirs.evaluations / f"{checked_id(model_id)}{suffix}.json"


def _is_id(name: str) -> bool:
    try:
        checked_id(name)
    except ConfigError:
        return False  # Nothing is cached under such a name.
    return True


def _texts(model_json: dict[str, Any]) -> list[str]:
    """Return every text in a model's config, none if it cannot be stored."""
    try:
        return [text for _, text in texts(plain(model_json, what="The model config"), ())]
    except ConfigError:
        return []  # Reported already, when storing it failed.


def _alias(stated: dict[str, Any]) -> str:
    """Return the short id that Olive would give a run, which people know it by."""
    value = plain({**stated, "pass_name": str(stated["pass_name"]).lower()}, what="A run")
    return evaluators.short_id(value)
