"""PipelineCache: the runs, models and files of one pipeline, and failures that count as misses.

Nothing here may stop a pipeline (invariant 11): a failure is logged, kept in `problems`, and counts as
not cached. Only an invalid id, a mistake of the caller, raises.
"""

from __future__ import annotations

import functools
import shutil
import threading
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from casstore.cache.directories import checked_id, open_cache
from casstore.cache.document import config_texts, flag_lazy
from casstore.cache.failures import Failures
from casstore.cache.model_cache import ModelCacheManager, model_ref
from casstore.cache.placements.attempts import Attempts
from casstore.cache.placements.placements import Placements
from casstore.cache.placements.recent import Recent
from casstore.cache.placements.stored import is_stored
from casstore.cache.quota.quota import Quota
from casstore.cache.run_cache import RunCacheManager, run_ref
from casstore.cache.runs.at_exit import close_at_exit, forget
from casstore.cache.runs.explain import Explanation, explain_run
from casstore.cache.runs.run_json import alias, get_run_json, new_run, run_json
from casstore.cache.shared.lookup import Lookup, is_id
from casstore.cache.shared.sharing import Sharing
from casstore.cache.shared.store import SharedStore
from casstore.cache.values import plain
from casstore.cache.views import is_foreign, read_json, write_view
from casstore.digest import digest
from casstore.errors import CasstoreError
from casstore.format.run import RunKey, RunManifest, RunStatus
from casstore.machine.this_machine import store_folder
from casstore.machine.uses.leases import Leases
from casstore.store.private import require_private

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from typing_extensions import Self

    from casstore.cache.document import CollectedModel
    from casstore.cache.settings import CacheSettings

_FAILED = "failed"
"""Metadata of the record of a model that a failed pass made, which is `{}`."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A run that was asked for and may be happening now; `input` is the model id of its input, if known."""

    key: RunKey
    stated: dict[str, Any]
    input: bytes | None
    started: int


class PipelineCache:
    """What a pipeline made: found, stored and shared. Safe in threads, and beside other processes.

    `collect` finds the files that a model config names.
    """

    shared_class: ClassVar[type[SharedStore]] = SharedStore
    defers_files = False
    """Whether `load_model` leaves the files of a hit in the store until they are asked for, by `lookup.fetched_folder`."""

    def __init__(
        self, settings: CacheSettings, *, collect: Callable[[dict[str, Any]], CollectedModel]
    ) -> None:
        self.config = settings
        self.failures = Failures()
        self.problems = self.failures.texts
        self._lock = threading.Lock()
        self._asked: Recent[_Asked] = Recent()
        self.dirs, self.local = open_cache(settings, self.failures)
        self.leases = Leases(store_folder(self.local.store_id))
        self.placements = Placements(
            self.dirs,
            max_bytes=settings.max_checkout_bytes,
            keep_all=settings.keep_working_files,
            is_stored=functools.partial(is_stored, self.local),
        )
        self.attempts = Attempts(self.placements, note=self.failures.note)
        self.models = ModelCacheManager(self.local, self.placements, collect=collect, note=self.failures.note)
        self.runs = RunCacheManager(self.local, environment=settings.environment)
        self.quota = Quota(self.dirs.store, self.dirs.locks, max_bytes=self._bound(), note=self.failures.note)
        self._sharing = Sharing(
            self._open_shared(),
            self.local,
            update=settings.update_shared_cache,
            fetched=self.quota.added,
        )
        self.lookup = Lookup(self.models, self.runs, self._sharing, self.failures, adopt=self._adopt)
        self.quota.check(ended=True)  # Earlier runs have, also those that could not say so.
        close_at_exit(self)

    def close(self) -> None:
        """End the run, and release everything: working files go, except those of the run's outputs, by their bound."""
        forget(self)
        self.attempts.close()
        self.models.close()
        self.placements.close()
        self.leases.close()
        self.local.close()
        if self._sharing.shared is not None:
            self._sharing.shared.close()
        self.quota.finish()
        if self.dirs.is_temporary:
            # Invariant 1 covers stores that are kept; this one was only temporary.
            shutil.rmtree(self.dirs.cache_dir, ignore_errors=True)

    def end_run(self, outputs: Collection[str] = ()) -> None:
        """Delete working files as `close` does, except those of the models `outputs`, and go on to another run."""
        found = [self.lookup.content_of(model_id) for model_id in outputs]
        self.placements.end_run([content.hex() for content in found if content is not None])
        self.leases.close()
        self.quota.check(ended=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.dirs.cache_dir)!r})"

    # Models

    def cache_model(self, model_id: str, model_json: dict[str, Any]) -> None:
        """Store a model and its files, and share it if there is a shared cache.

        `{}` is the model of a failed pass. The files go on being used from where they are.
        """
        self.leases.take(model_ref(model_id))
        if not model_json:
            self.attempts.fail(model_id)
        asked = self._asked.get(model_id)
        base = str(asked.stated["input_model_id"]) if asked is not None else ""
        metadata = {"workflow": self.dirs.cache_dir.name, **({} if model_json else {_FAILED: True})}
        stored = False
        try:
            with self.failures.tolerated(f"cache the model {model_id}"):
                added = self.models.cache_model(
                    model_id, model_json, base=base if is_id(base) else None, metadata=metadata
                )
                stored = True
                self.quota.added(added.bytes_stored)
                write_view(self.get_model_json_path(model_id), model_json)
                self._sharing.push([model_ref(model_id)])
        finally:
            # Invariant 11: files that could not be stored go on being used from where they are.
            if stored:
                self.lookup.uncached.pop(model_id, None)
            else:
                self.lookup.uncached[model_id] = model_json
            if model_json:
                self.attempts.finish(model_id, config_texts(model_json), stored=stored)

    def load_model(self, model_id: str) -> dict[str, Any] | None:
        """Return the config of a cached model with paths that exist, `{}` for a failed pass, None for a miss.

        A model that only the shared cache has comes with `shared_cache` set and its files left there:
        `lookup.fetched_model` fetches them.
        """
        self.leases.take(model_ref(model_id))
        if (uncached := self.lookup.uncached.get(model_id)) is not None:
            return uncached
        with self.failures.tolerated(f"load the model {model_id}"):
            config = self.lookup.model(model_id, deferred=self.defers_files)
            if config is not None:
                self.attempts.found(model_id)
                return config
        config = self.lookup.shared_config(model_id)
        if config is None:
            self.attempts.asked(model_id)
        return flag_lazy(config) if config else config

    # Runs

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
        stated = get_run_json(pass_name, pass_config, input_model_id, accelerator_spec)
        try:
            asked = self._ask(stated, accelerator_spec, pass_version)
            model_id = asked.key.digest().hex()
        except CasstoreError as error:
            # Invariant 11: a run that cannot be keyed is never found again, and the pipeline goes on.
            self.failures.note(f"key a run of {pass_name}", error)
            return digest(uuid.uuid4().bytes).hex()
        with self._lock:
            self._asked.put(model_id, asked)
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
        with self.failures.tolerated(f"record the run {output_model_id}"):
            stated = get_run_json(pass_name, pass_config, input_model_id, accelerator_spec)
            with self._lock:
                known = self._asked.pop(output_model_id, None)
            asked = known or self._ask(stated, accelerator_spec, None)
            record = self.models.record(output_model_id)
            failed = (record is not None and record.metadata.get(_FAILED) is True) or (
                self.lookup.uncached.get(output_model_id) == {}
            )
            run = new_run(
                output_model_id,
                asked.key,
                stated,
                output=record.target if record is not None else None,
                started=started if started is not None else asked.started,
                recorded={"alias": alias(stated), "workflow": self.dirs.cache_dir.name},
            )
            run = replace(
                run,
                input=asked.input,
                status=status or (RunStatus.FAILED if failed else RunStatus.DONE),
                metrics=plain(dict(metrics or {}), what="The metrics of a run"),
                error=error,
            )
            self.runs.cache_run(run)
            write_view(self.get_run_json_path(output_model_id), run_json(run))
            self._sharing.push([run_ref(output_model_id)])

    def load_run(self, output_model_id: str) -> RunManifest | None:
        """Return a recorded run whose output is here or in the shared cache, every object of it; else None."""
        self.leases.take(model_ref(output_model_id))
        run = self.lookup.run(output_model_id)
        if run is not None and run.name != output_model_id:
            # It was asked for by its short id: from here on it stays.
            self.leases.take(model_ref(run.name))
            run = self.lookup.run(run.name)
        if run is None:
            self.attempts.asked(output_model_id)
        else:
            self.attempts.found(output_model_id)
        return run

    def explain(self, run: str) -> Explanation:
        """Say why a run was a miss: what differs from the nearest earlier run. Raises RefNotFound."""
        asked = self._asked.get(run)
        return explain_run(self.runs, run, key=asked.key if asked is not None else None)

    # Paths

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

    # Internals

    def _bound(self) -> int | None:
        """Return the bound of the store, None where there is none, or it cannot be kept."""
        bound = self.config.max_store_bytes
        if bound is None or self.dirs.is_temporary:
            return None
        is_kept = False
        with self.failures.tolerated(f"keep {self.dirs.store} below {bound} bytes"):
            require_private(self.local.backend, "max_store_bytes")
            is_kept = True
        return bound if is_kept else None

    def _open_shared(self) -> SharedStore | None:
        url = self.config.get_shared_cache_url()
        if url is None:
            return None
        return self.shared_class(
            url,
            read_only=not self.config.update_shared_cache,
            shared=self.config.shared,
            known=self.dirs.locks / f"shared-{digest(url.encode()).hex()[:16]}",
            **self.config.storage_options,
        )

    def _ask(self, stated: dict[str, Any], accelerator: object, version: str | None) -> _Asked:
        name, input_name = str(stated["pass_name"]), str(stated["input_model_id"])
        if version is None:
            version = self.pass_version(name)

        def key_for(content: bytes | None) -> RunKey:
            return self.runs.key(
                name,
                stated["pass_config"],
                input_model=content.hex() if content else f"name:{input_name}",
                pass_version=version,
                accelerator=accelerator,
            )

        content = self.lookup.content_of(input_name, shared=False)
        key = key_for(content)
        if not self.lookup.has_run(key.digest().hex()):
            # The shared store may know by what content an input counts. Where the run is here, that decides nothing.
            content = self.lookup.content_of(input_name)
            key = key_for(content)
        if content is not None:
            self.placements.spend(content.hex())
        return _Asked(key, stated, content, time.time_ns())

    def _adopt(self, model_id: str) -> dict[str, Any] | None:
        """Cache a model whose config file someone else put here; return its config, None if there is none."""
        view = self.dirs.run(model_id) / "model.json"
        config = read_json(view) if is_foreign(view) else None
        if config is not None:
            self.models.cache_model(model_id, config, metadata={"workflow": self.dirs.cache_dir.name})
        return config
