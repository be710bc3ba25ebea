"""OliveCache: what a pipeline talks to. It orchestrates the managers, and turns failures into misses.

Nothing in here may stop a pipeline (invariant 11): what fails is logged, kept in `problems`, and counts as
not cached. Only an id that is none, a mistake of the caller, raises.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import stat
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casstore.cache import environment, evaluators
from casstore.cache.config import CacheConfig
from casstore.cache.directories import CacheDirectories, checked_id
from casstore.cache.explain import Explanation, explain_run
from casstore.cache.model_cache import ModelCacheManager, model_ref
from casstore.cache.placements import Placements
from casstore.cache.resources import Resources
from casstore.cache.run_cache import RunCacheManager, evaluation_ref, new_run, run_json, run_ref
from casstore.cache.saving import save_model
from casstore.cache.shared_cache import SharedCache, SharedCacheGuard, replace_config
from casstore.cache.transfer import ModelFileTransfer
from casstore.cache.values import plain
from casstore.digest import digest, is_hex
from casstore.errors import CasstoreError, ConfigError, IntegrityError, RefNotFound
from casstore.ops.quarantine import quarantine_damaged
from casstore.format.run import RunKey, RunManifest, RunStatus
from casstore.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

_log = logging.getLogger("casstore.cache")

_KEPT_PROBLEMS = 100


@dataclass(slots=True)
class _Pending:
    """A run that was asked for and may be happening now."""

    key: RunKey
    stated: dict[str, Any]
    input: bytes | None
    started: int
    failed: bool = False


class OliveCache:
    """The cache of one workflow. Safe in threads, and beside other processes.

    `cache_config` is a CacheConfig or a map of its settings; without a workflow id, `cache_dir` is the
    folder of the working files itself.
    """

    def __init__(
        self, cache_config: CacheConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None
    ) -> None:
        if isinstance(cache_config, (str, os.PathLike)):
            cache_config = {"cache_dir": os.fspath(cache_config)}
        self.config = CacheConfig.of(cache_config)
        self.problems: deque[str] = deque(maxlen=_KEPT_PROBLEMS)
        self.update_shared_cache = self.config.update_shared_cache
        self.enable_shared_cache = False
        self.shared_cache: SharedCache | None = None
        self._guard: SharedCacheGuard | None = None
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.RLock()
        self.dirs = self._open_directories()
        self.placements = Placements(self.dirs, max_bytes=self.config.max_checkout_bytes)
        self.resources = Resources(self.dirs.resources)
        self.local: Store | None = None
        with self._attempt("open the store"):
            self.local = Store.open(self.dirs.store, create=True)
            self.models = ModelCacheManager(self.local, self.placements)
            self.runs = RunCacheManager(self.local, environment=self.config.environment)
        url = self.config.get_shared_cache_url()
        if url is not None:
            self.enable_shared_cache = True
            readonly = not self.update_shared_cache
            self.shared_cache = SharedCache(url, readonly=readonly, **self.config.storage_options)
            self._guard = SharedCacheGuard(self.shared_cache)
        self._clean()

    @classmethod
    def from_cache_env(cls) -> Self:
        """Open the cache that `set_cache_env` named, the default one if none did."""
        return cls(cache_config={"cache_dir": environment.get_cache_dir()})

    def set_cache_env(self) -> None:
        """Make this the cache that `from_cache_env` opens, here or in a child process."""
        environment.set_cache_dir(self.dirs.cache_dir)

    def close(self) -> None:
        """Let go of everything; working files and checkouts may go from now on, by their bound."""
        self.placements.close()
        if self.local is not None:
            self.local.close()
        if self.shared_cache is not None:
            self.shared_cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OliveCache({str(self.dirs.cache_dir)!r})"

    # Models

    def cache_model(self, model_id: str, model_json: dict[str, Any]) -> None:
        """Take a model and its files into the store, and into the shared cache if there is one.

        `{}` is what a pass that failed made. The files go on being used from where they are.
        """
        checked_id(model_id)
        pending = self._pending.get(model_id)
        if pending is not None:
            pending.failed = not model_json
        if self.local is None:
            return
        with self._attempt(f"cache the model {model_id}"):
            base = str(pending.stated["input_model_id"]) if pending is not None else None
            self.models.cache_model(
                model_id,
                model_json,
                base=base if base and _is_id(base) else None,
                metadata={"workflow": self.dirs.cache_dir.name},
            )
            _write_view(self.get_model_json_path(model_id), model_json)
            self._share([model_ref(model_id)])

    def load_model(self, model_id: str) -> dict[str, Any] | None:
        """Return the config of a cached model with paths that exist, `{}` for a failed pass, None for a miss.

        A model that only the shared cache has comes with `shared_cache` set and its files left there:
        `download_shared_cache_model` fetches them when they are needed.
        """
        view = self.get_model_json_path(model_id)
        if self.local is None:
            return _read_json(view)
        with self._attempt(f"load the model {model_id}"):
            with self._healing(model_id):
                config = self.models.load_model(model_id)
                if config is None:
                    config = self._take_in(model_id, view)
                if config is not None:
                    return config
        if self._guard is None:
            return None
        return self._guard.attempt(
            f"tell of the model {model_id}", lambda shared: self._remote_config(shared, model_id)
        )

    def download_shared_cache_model(self, input_model_config: Any, input_model_id: str) -> Any:
        """Fetch the files of a model from the shared cache; return its config with paths that exist.

        `input_model_config` is a map, or an object whose `config` is one; it is updated. Raises RefNotFound
        for a model that is nowhere, BackendError if the shared cache fails.
        """
        if self.local is None:
            raise ConfigError(f"{self.dirs.store} cannot be used, so nothing can be downloaded into it.")
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
        config = self._download(model_id) if self.local is not None else self.load_model(model_id)
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
    ) -> str:
        """Return the id of what a pass makes of a model: 64 hex digits, the key of its run (invariant 12).

        The input counts by content if it was cached, or if its id is a model id. A config that cannot be told
        apart from others gets an id that never recurs.
        """
        stated = self.get_run_json(pass_name, pass_config, input_model_id, accelerator_spec)
        content = self._content_of(input_model_id)
        try:
            key = self.runs.key(
                pass_name,
                pass_config,
                input_model=content.hex() if content else f"name:{input_model_id}",
                pass_version=self.pass_version(pass_name),
                accelerator=accelerator_spec,
            )
            model_id = key.digest().hex()
        except (CasstoreError, AttributeError) as error:
            # Invariant 11: a run that cannot be keyed is never found again, and the pipeline goes on.
            self._note(f"key a run of {pass_name}", error)
            return digest(uuid.uuid4().bytes).hex()
        self._pending[model_id] = _Pending(key, stated, content, time.time_ns())
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
        """Record the run that made a model, behind the model itself; share it if there is a shared cache."""
        checked_id(output_model_id)
        if self.local is None:
            return
        with self._attempt(f"record the run {output_model_id}"):
            stated = self.get_run_json(pass_name, pass_config, input_model_id, accelerator_spec)
            pending = self._pending.pop(output_model_id, None) or self._asked(stated, accelerator_spec)
            record = self.models.record(output_model_id)
            run = new_run(
                output_model_id,
                pending.key,
                stated,
                output=record.target if record is not None else None,
                input_model=pending.input,
                status=status or (RunStatus.FAILED if pending.failed else RunStatus.DONE),
                started=started if started is not None else pending.started,
                metrics=metrics,
                error=error,
                recorded={"alias": _alias(stated), "workflow": self.dirs.cache_dir.name},
            )
            self.runs.cache_run(run)
            _write_view(self.get_run_json_path(output_model_id), run_json(run))
            self._share([run_ref(output_model_id)])

    def load_run(self, output_model_id: str) -> RunManifest | None:
        """Return a recorded run whose output is here or in the shared cache, every object of it; else None."""
        if self.local is None:
            return None
        with self._attempt(f"load the run {output_model_id}"):
            run = self.runs.load_run(output_model_id)
            if run is not None and self._has_output(run):
                return run
        if self._guard is None:
            return None
        return self._guard.attempt(
            f"tell of the run {output_model_id}", lambda shared: self._remote_run(shared, output_model_id)
        )

    def load_run_from_model_id(self, model_id: str) -> dict[str, Any]:
        """Return the run that made a model, as Olive writes it; `{}` for a miss."""
        path = self.get_run_json_path(model_id)
        run = self.load_run(model_id)
        if run is not None:
            return run_json(run)
        return (_read_json(path) if _is_foreign(path) else None) or {}

    def explain(self, run: str) -> Explanation:
        """Say why a run was a miss: what differs from the nearest earlier run. Raises RefNotFound."""
        if self.local is None:
            raise RefNotFound(f"{self.dirs.store} cannot be used, so there are no runs to compare.")
        pending = self._pending.get(run)
        return explain_run(self.runs, run, key=pending.key if pending is not None else None)

    # Evaluations

    def cache_evaluation(
        self, model_id: str, evaluation_json: Mapping[str, Any], *, evaluator: object = None
    ) -> None:
        """Record what a model was measured at; `evaluator` (by default the one of `evaluating`) is part of the key."""
        name = evaluators.name_of(evaluator)
        with self._attempt(f"record the evaluation of {model_id}"):
            if self.local is not None:
                self.runs.cache_evaluation(
                    model_id,
                    dict(evaluation_json),
                    evaluator=name,
                    model=self._content_of(model_id.partition("-")[0]),
                    workflow=self.dirs.cache_dir.name,
                )
            _write_view(
                self._evaluation_view(model_id, name), plain(dict(evaluation_json), what="An evaluation")
            )
            self._share([evaluation_ref(model_id, name)])

    def load_evaluation(self, model_id: str, *, evaluator: object = None) -> dict[str, Any] | None:
        """Return what a model was measured at by one evaluator, None for a miss."""
        name = evaluators.name_of(evaluator)
        if self.local is None:
            return _read_json(self._evaluation_view(model_id, name))
        with self._attempt(f"load the evaluation of {model_id}"):
            found = self.runs.load_evaluation(model_id, evaluator=name)
            if found is None and self._fetch(evaluation_ref(model_id, name)):
                found = self.runs.load_evaluation(model_id, evaluator=name)
            if found is not None:
                return found.result
        return None

    def get_evaluation_json_path(self, model_id: str, *, evaluator: object = None) -> Path:
        """Return the path of an evaluation's file, which is there if there is such an evaluation."""
        name = evaluators.name_of(evaluator)
        path = self._evaluation_view(model_id, name)
        found = self.load_evaluation(model_id, evaluator=evaluator)
        with self._attempt(f"write {path}"):
            if found is not None:
                _write_view(path, found)
            elif not _is_foreign(path):
                path.unlink(
                    missing_ok=True
                )  # Written for an evaluation that is no longer there (invariant 5).
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
        """Return the folder that a pass writes its output to; it is made, and stays until the cache is closed."""
        path = self.get_run_path(model_id) / "models"
        path.mkdir(parents=True, exist_ok=True)
        with self._attempt(f"keep {path} in use"):
            self.placements.use(self.dirs.run(model_id))
        return path

    def get_resource_cache_path(self) -> Path:
        """Return the folder of resources that were downloaded."""
        return self.dirs.resources

    def cache_olive_config(self, olive_config: Mapping[str, Any]) -> None:
        """Keep the config of a workflow beside its working files."""
        with self._attempt("keep the workflow's config"):
            value = plain(dict(olive_config), what="The workflow's config")
            _write_json(self.dirs.cache_dir / "olive_config.json", value)

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
        """Use the shared cache no more."""
        self.enable_shared_cache = False
        held, self.shared_cache, self._guard = self.shared_cache, None, None
        if held is not None:
            held.close()

    # How it works

    def _open_directories(self) -> CacheDirectories:
        directories = CacheDirectories.of(self.config)
        try:
            if self.config.clean_cache:
                for folder in directories.working:
                    shutil.rmtree(folder, ignore_errors=True)  # Asked for; another process may do so, too.
            directories.make()
        except OSError as error:
            # Invariant 11: without its folder the pipeline goes on, in a temporary one and uncached.
            self._note(f"use {directories.cache_dir}, so nothing is kept", error)
            directories = CacheDirectories.temporary()
            directories.make()
        return directories

    def _clean(self) -> None:
        """Forget what this workflow cached, if that is asked for."""
        if self.config.clean_evaluation_cache:
            shutil.rmtree(self.dirs.evaluations, ignore_errors=True)
            self.dirs.evaluations.mkdir(parents=True, exist_ok=True)
        prefixes: tuple[str, ...] = ()
        if self.config.clean_cache:
            prefixes = ("models/", "runs/", "evaluations/")
        elif self.config.clean_evaluation_cache:
            prefixes = ("evaluations/",)
        if self.local is None:
            return
        for prefix in prefixes:
            with self._attempt(f"forget {prefix}"):
                for row in self.local.find(prefix, where={"workflow": self.dirs.cache_dir.name}):
                    with contextlib.suppress(RefNotFound):  # Another process cleans as well (invariant 10).
                        self.local.delete_ref(row.name)

    @contextlib.contextmanager
    def _attempt(self, doing: str) -> Iterator[None]:
        """Go on after a failure: it is logged, and what was to be done is not done (invariant 11)."""
        try:
            yield
        except IntegrityError as error:
            _log.error("Could not %s, for it is damaged: %s", doing, error)  # one line, for people
            self.problems.append(f"Could not {doing}: {error}")
        except (CasstoreError, OSError, ValueError) as error:
            self._note(doing, error)

    @contextlib.contextmanager
    def _healing(self, model_id: str) -> Iterator[None]:
        """Set damaged packs apart, so that what makes or fetches the model again mends the store."""
        try:
            yield
        except IntegrityError:
            # Invariant 11: the error goes on; the note only keeps the next add from relying on the damage.
            record = self.models.record(model_id)
            if record is not None and self.local is not None:
                for pack, reason in quarantine_damaged(self.local, record).items():
                    _log.error("The pack %s is damaged and set apart: %s", pack, reason)
            raise

    def _note(self, doing: str, error: Exception) -> None:
        text = f"Could not {doing}: {error}"
        if text not in self.problems:
            _log.warning("%s", text)
        self.problems.append(text)

    def _content_of(self, model_id: str) -> bytes | None:
        """Return the model id of what a pipeline calls `model_id`, None if that is not known."""
        if self.local is not None and _is_id(model_id):
            with self._attempt(f"look up the model {model_id}"):
                record = self.models.record(model_id)
                if record is None and self._guard is not None:
                    record = self._guard.attempt(
                        f"tell of the model {model_id}", lambda shared: shared.record(model_ref(model_id))
                    )
                if record is not None:
                    return record.target
        return bytes.fromhex(model_id) if is_hex(model_id) else None

    def _asked(self, stated: dict[str, Any], accelerator: object) -> _Pending:
        """Return what a run would have been asked for as, that was not asked for first."""
        name, content = str(stated["pass_name"]), self._content_of(str(stated["input_model_id"]))
        key = self.runs.key(
            name,
            stated["pass_config"],
            input_model=content.hex() if content else f"name:{stated['input_model_id']}",
            pass_version=self.pass_version(name),
            accelerator=accelerator,
        )
        return _Pending(key, stated, content, time.time_ns())

    def _has_output(self, run: RunManifest) -> bool:
        """Say whether everything that a run made is here or in the shared cache (§8: a hit checks presence)."""
        if run.status is RunStatus.RUNNING or run.output is None or self.local is None:
            return False
        record = self.models.record_of(run.name, run.output)
        if record is not None and (self.models.placed(run.name, record) or not self.local.lacks(record)):
            return True
        if self._guard is None:
            return False
        return bool(
            self._guard.attempt(f"tell of the model {run.name}", lambda shared: _is_there(shared, run))
        )

    def _remote_run(self, shared: SharedCache, name: str) -> RunManifest | None:
        record = shared.record(run_ref(name))
        if record is None or self.local is None:
            return None
        shared.retrieve(self.local, [run_ref(name)])
        run = self.runs.load_run(name)
        return run if run is not None and self._has_output(run) else None

    def _remote_config(self, shared: SharedCache, name: str) -> dict[str, Any] | None:
        record = shared.record(model_ref(name))
        if record is None:
            return None
        transfer = ModelFileTransfer(shared.remote)
        document = transfer.read_config(record)
        if document is not None and not document.model:
            return {}
        return self.models.future_config(transfer, record)

    def _download(self, model_id: str) -> dict[str, Any] | None:
        """Return the config of a model with paths that exist, from here or the shared cache; None if nowhere."""
        assert self.local is not None
        config = None
        try:
            with self._healing(model_id):
                config = self.models.load_model(model_id)
        except IntegrityError as error:
            # Invariant 11: damage here is no miss while the shared cache has the same bytes.
            if self.shared_cache is None:
                raise
            self._note(f"read the model {model_id} from {self.dirs.store}", error)
        if config is None and self.shared_cache is not None and self.shared_cache.exists(model_ref(model_id)):
            self.shared_cache.retrieve(self.local, [model_ref(model_id)])
            config = self.models.load_model(model_id)
        return config

    def _fetch(self, ref: str) -> bool:
        """Copy a small record from the shared cache; say whether it was there."""

        def take(shared: SharedCache) -> bool:
            if self.local is None or not shared.exists(ref):
                return False
            shared.retrieve(self.local, [ref])
            return True

        return bool(self._guard is not None and self._guard.attempt(f"tell of {ref}", take))

    def _share(self, refs: list[str]) -> None:
        """Write through to the shared cache; its failure is not ours."""
        if self._guard is None or not self.update_shared_cache or self.local is None:
            return
        local = self.local
        self._guard.attempt(f"take {', '.join(refs)}", lambda shared: shared.store(local, refs))

    def _take_in(self, model_id: str, view: Path) -> dict[str, Any] | None:
        """Cache a model whose config file someone put where Olive would."""
        config = _read_json(view) if _is_foreign(view) else None
        if config is not None:
            self.models.cache_model(model_id, config, metadata={"workflow": self.dirs.cache_dir.name})
        return config

    def _evaluation_view(self, model_id: str, evaluator: str) -> Path:
        suffix = f".{evaluator}" if evaluator else ""
        return self.dirs.evaluations / f"{checked_id(model_id)}{suffix}.json"


def _is_there(shared: SharedCache, run: RunManifest) -> bool:
    records = [item for item in shared.remote.history(model_ref(run.name)) if item.target == run.output]
    return bool(records) and not shared.remote.lacks(records[-1])


def _is_id(name: str) -> bool:
    try:
        checked_id(name)
    except ConfigError:
        return False  # Not the name of anything that is cached.
    return True


def _alias(stated: dict[str, Any]) -> str:
    """Return the short id that Olive would give a run, by which people know it."""
    value = plain({**stated, "pass_name": str(stated["pass_name"]).lower()}, what="A run")
    return evaluators.short_id(value)


def _write_view(path: Path, value: Any) -> None:
    """Write a file that shows what the store holds: read-only, for changing it changes nothing."""
    _write_json(path, value, mode=0o444)


def _write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=4, default=str)
        os.fchmod(file.fileno(), mode)
    os.replace(temporary, path)  # A view, whole or not at all; the truth is in the store (invariant 3).


def _is_foreign(path: Path) -> bool:
    """Say whether someone else put a file where a view would be: views are read-only."""
    try:
        return bool(path.stat().st_mode & stat.S_IWUSR)
    except OSError:
        return False  # Nothing there that could be read.


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        if path.exists():
            _log.warning("%s cannot be read, so it counts as absent: %s", path, error)
        return None
    return value if isinstance(value, dict) else None
