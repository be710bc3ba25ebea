"""Finds models and runs: on this machine first, then in the shared store."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from casstore.cache.directories import checked_id
from casstore.cache.model_cache import model_ref
from casstore.cache.run_cache import run_ref
from casstore.digest import is_hex
from casstore.errors import CasstoreError, ConfigError, IntegrityError
from casstore.format.run import RunStatus
from casstore.ops.quarantine import quarantine_damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casstore.cache.failures import Failures
    from casstore.cache.model_cache import ModelCacheManager
    from casstore.cache.run_cache import RunCacheManager
    from casstore.cache.shared.sharing import Sharing
    from casstore.cache.shared.store import SharedStore
    from casstore.format.run import RunManifest

_log = logging.getLogger("casstore.cache")
_T = TypeVar("_T")


class Lookup:
    """Looks up what one cache holds. Safe in threads.

    `adopt(model_id)` returns the config of a model that someone else put into the cache's folder, None if there is none.
    `uncached` are the configs of models that could not be stored, and are used from where they are.
    """

    def __init__(
        self,
        models: ModelCacheManager,
        runs: RunCacheManager,
        sharing: Sharing,
        failures: Failures,
        *,
        adopt: Callable[[str], dict[str, Any] | None],
    ) -> None:
        self.uncached: dict[str, dict[str, Any]] = {}
        self._models = models
        self._runs = runs
        self._sharing = sharing
        self._failures = failures
        self._adopt = adopt

    def content_of(self, model_id: str, *, shared: bool = True) -> bytes | None:
        """Return the model id of what a pipeline calls `model_id`, None if that is not known; `shared` asks the shared store, too."""
        if is_id(model_id):
            with self._failures.tolerated(f"look up the model {model_id}"):
                record = self._models.record(model_id)
                if record is None and shared:
                    record = self._sharing.record(model_ref(model_id))
                if record is not None:
                    return record.target
        return bytes.fromhex(model_id) if is_hex(model_id) else None

    def run(self, name: str, *, shared: bool = True) -> RunManifest | None:
        """Return a recorded run whose whole output is here or in the shared store (§8: a hit checks presence).

        With `shared`, its record may be there as well.
        """
        with self._failures.tolerated(f"load the run {name}"):
            run = self._runs.load_run(name)
            if run is not None and self._has_output(run):
                return run
        return self.run(name, shared=False) if shared and self._sharing.pull(run_ref(name)) else None

    def has_run(self, name: str) -> bool:
        """Say whether a run and its whole output are on this machine; the shared store is not asked."""
        # Invariant 11: nothing is hidden: whoever loads the run says what is wrong with it.
        with contextlib.suppress(CasstoreError):
            run = self._runs.load_run(name)
            return run is not None and self._has_output(run, shared=False)
        return False

    def _has_output(self, run: RunManifest, *, shared: bool = True) -> bool:
        if run.status is RunStatus.RUNNING or run.output is None:
            return False
        return self._models.holds(run.name, run.output) or (
            shared and self._sharing.holds(model_ref(run.name), run.output)
        )

    def model(self, model_id: str, *, deferred: bool = False) -> dict[str, Any] | None:
        """Return the config of a model that is here, with paths that exist, None if there is none.

        With `deferred`, `fetched_folder` may have to write the files first. If the model is damaged, its packs are
        quarantined, so that making or fetching it again repairs the store, and IntegrityError is raised.
        """
        with self._quarantining(model_id):
            config = self._models.load_model(model_id, deferred=deferred)
            return self._adopt(model_id) if config is None else config

    def _folder(self, model_id: str) -> Path | None:
        with self._quarantining(model_id):
            return self._models.check_out(model_id)

    @contextlib.contextmanager
    def _quarantining(self, model_id: str) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            # Invariant 11: the error is raised; the note only keeps the next add from relying on the damage.
            record = self._models.record(model_id)
            if record is not None:
                for pack, reason in quarantine_damaged(self._sharing.local, record).items():
                    _log.error("The pack %s is damaged and was quarantined: %s", pack, reason)  # for people
            raise

    def shared_config(self, model_id: str) -> dict[str, Any] | None:
        """Return the config of a model that only the shared store has, with the paths that its files will have here.

        `{}` for a failed pass, None if the shared store has no such model.
        """

        def read(shared: SharedStore) -> dict[str, Any] | None:
            record = shared.record(model_ref(model_id))
            return self._models.future_config(shared.remote, record) if record is not None else None

        return self._sharing.ask(f"look up the model {model_id}", read)

    def fetched_model(self, model_id: str) -> dict[str, Any] | None:
        """Return the config of a model with paths that exist, from here or the shared store; None if nowhere.

        Raises IntegrityError for damage that the shared store cannot repair, BackendError if it fails.
        """
        checked_id(model_id)
        if (uncached := self.uncached.get(model_id)) is not None:
            return uncached
        return self._fetched(model_id, self.model)

    def fetched_folder(self, model_id: str) -> Path | None:
        """Return the folder with the checkout of a model, written unless it is there; else as `fetched_model`."""
        return self._fetched(model_id, self._folder)

    def _fetched(self, model_id: str, load: Callable[[str], _T | None]) -> _T | None:
        shared, ref = self._sharing.shared, model_ref(model_id)
        found, is_damaged = None, False
        try:
            found = load(model_id) or None
        except IntegrityError as error:
            # Invariant 11: damage here is not a miss while the shared store has the same bytes.
            if shared is None or shared.existing() is None:
                raise
            self._failures.note(f"read the model {model_id} of this cache", error)
            is_damaged = True
        if found is None and shared is not None:
            if shared.exists(ref):
                # With `overwrite`, objects in quarantined packs are written again, which repairs this store.
                self._sharing.retrieve(shared, ref, overwrite=is_damaged)
                found = load(model_id)
            else:
                shared.check_parent()
        return found


def is_id(name: str) -> bool:
    """Say whether something can be cached under a name."""
    try:
        checked_id(name)
    except ConfigError:
        return False  # Nothing is cached under such a name.
    return True
