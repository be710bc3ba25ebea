"""The folders of a cache."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from casstore.errors import ConfigError
from casstore.format.names import check_name
from casstore.machine.user_folders import expand_home

if TYPE_CHECKING:
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
        beside = (local.parent / "store" / "format").exists() and not (local / "store").exists()
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


def checked_id(model_id: str) -> str:
    """Return an id that is one safe file name; raise ConfigError for any other."""
    if not isinstance(model_id, str) or not model_id:
        raise ConfigError(f"{model_id!r} is not an id: it must be text.")
    check_name(f"runs/{model_id}")
    if "/" in model_id or "@" in model_id or model_id != os.path.basename(model_id):
        raise ConfigError(f"{model_id!r} cannot be an id: use one name without '/' and '@'.")
    return model_id
