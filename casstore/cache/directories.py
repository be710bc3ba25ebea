"""The folders of a cache, and opening them with the store in them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from casstore.api.store import Store
from casstore.backend.local.mount_types import is_network
from casstore.errors import CasstoreError, ConfigError, RefNotFound
from casstore.format.marks import FORMAT_KEY
from casstore.format.names import check_name
from casstore.machine.user_folders import expand_home

if TYPE_CHECKING:
    from casstore.cache.failures import Failures
    from casstore.cache.settings import CacheSettings


@dataclass(frozen=True, slots=True)
class CacheDirectories:
    """One workflow's working folders, and what all workflows of one cache share.

    `store` holds everything that was cached, `checkouts` plain files that can be made again, `locks` says
    which of those are in use. Temporary ones are deleted when the cache is closed.
    """

    cache_dir: Path
    runs: Path
    evaluations: Path
    resources: Path
    mlflow: Path
    store: Path
    checkouts: Path
    locks: Path
    is_temporary: bool = False

    @classmethod
    def of(cls, config: CacheSettings) -> CacheDirectories:
        """Return the folders that a config means; nothing is made.

        A config without a workflow id names the working folder itself: if it lies beside a store, it is one
        workflow of that cache. Raises ConfigError for a path with "~" if there is no home directory.
        """
        local = Path(expand_home(str(config.get_local_cache_dir()))).resolve()
        if config.workflow_id is not None:
            return cls._at(local / config.workflow_id, local)
        root = local.parent
        # A store alone is no cache: it may be the user's own, and this a new cache beside it.
        beside = (root / "store" / "format").exists() and (root / "in-use").is_dir()
        beside = beside and not (local / "store").exists()
        return cls._at(local, local.parent if beside else local)

    @classmethod
    def temporary(cls) -> CacheDirectories:
        """Return folders in the system's temporary directory, for when the configured ones cannot be used."""
        folder = Path(tempfile.mkdtemp(prefix="casstore-cache-"))
        return cls._at(folder, folder, is_temporary=True)

    @classmethod
    def _at(cls, working: Path, root: Path, *, is_temporary: bool = False) -> CacheDirectories:
        return cls(
            cache_dir=working,
            runs=working / "runs",
            evaluations=working / "evaluations",
            resources=working / "resources",
            mlflow=working / "mlflow",
            store=root / "store",
            checkouts=root / "checkouts",
            locks=root / "in-use",
            is_temporary=is_temporary,
        )

    @property
    def working(self) -> tuple[Path, ...]:
        """The folders of this workflow alone."""
        return (self.runs, self.evaluations, self.resources, self.mlflow)

    def make(self) -> None:
        """Make every folder but the store's. Raises OSError."""
        for folder in (*self.working, self.checkouts, self.locks):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, model_id: str) -> Path:
        """Return the folder of one run's working files. Raises ConfigError for an id that would leave it."""
        return self.runs / checked_id(model_id)


def open_cache(settings: CacheSettings, failures: Failures) -> tuple[CacheDirectories, Store]:
    """Make a cache's folders, and open its store, without what `settings` say to clear.

    If that fails, it is noted, and both are temporary: `directories.is_temporary`.
    """
    try:
        directories = CacheDirectories.of(settings)
        if settings.clean_cache:
            for folder in directories.working:
                # The user asked for it; another process may do the same.
                shutil.rmtree(folder, ignore_errors=True)
        elif settings.clean_evaluation_cache:
            shutil.rmtree(directories.evaluations, ignore_errors=True)
        directories.make()
        store = _open_own(directories.store, settings)
    except (CasstoreError, OSError) as error:
        # Invariant 11: without its folder the pipeline goes on in a temporary one, and nothing is kept.
        failures.note(f"use {settings.get_local_cache_dir()}, so nothing is kept", error)
        directories = CacheDirectories.temporary()
        directories.make()
        return directories, Store(directories.store, create=True, durability="none", delta="off")
    if settings.clean_cache:
        _forget(store, ("models/", "runs/", "evaluations/"), directories, failures)
    elif settings.clean_evaluation_cache:
        _forget(store, ("evaluations/",), directories, failures)
    return directories, store


def _open_own(folder: Path, settings: CacheSettings) -> Store:
    """Open the store of a cache. One that is made here is private to this machine, unless others may reach its folder."""
    is_new = not (folder / FORMAT_KEY).exists()
    store = Store(folder, create=True, delta=settings.delta)
    if is_new and not is_network(store.file_system_type(str(folder))):
        # Invariant 13: without the mark, the store only keeps no bound.
        with contextlib.suppress(CasstoreError):
            store.mark_private()
    return store


def _forget(
    store: Store, prefixes: tuple[str, ...], directories: CacheDirectories, failures: Failures
) -> None:
    """Delete the refs of this workflow that have one of these prefixes."""
    for prefix in prefixes:
        with failures.tolerated(f"forget {prefix}"):
            for row in store.find(prefix, where={"workflow": directories.cache_dir.name}):
                # A damaged ref does not stop the rest; another process may be cleaning as well.
                with failures.tolerated(f"forget {row.name}"), contextlib.suppress(RefNotFound):
                    store.rm(row.name)


def checked_id(model_id: str) -> str:
    """Return an id that is one safe file name; raise ConfigError for any other."""
    if not isinstance(model_id, str) or not model_id:
        raise ConfigError(f"{model_id!r} is not an id: it must be text.")
    check_name(f"runs/{model_id}")
    if "/" in model_id or "@" in model_id or model_id != os.path.basename(model_id):
        raise ConfigError(f"{model_id!r} cannot be an id: use one name without '/' and '@'.")
    return model_id
