"""BorgBackup: content-defined chunks, one core; in a local repository."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.base import Receipt, tree_bytes
from benchmarks.peers.programs import find_program, run_program, runs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.peers.base import Model

_REPOSITORY = "repository"
_BASE = "borg"
_COMMON = (
    "encryption none (chunks are named by SHA-256 and checked against it when read), zstd level 3, "
    "every segment fsynced; its cache is not counted"
)


class Borg:
    """One `create` and one `extract` per model.

    Without encryption, borg does for integrity what casstore does: it hashes every chunk when writing and
    when reading. Its `authenticated` modes add a key and its BLAKE2b is slower than SHA-256 instructions.
    zstd instead of borg's default lz4, which finds nothing in weights.
    """

    name = "borg"
    setting = f"one archive and process per model; {_COMMON}"
    together: ClassVar[bool] = False

    def __init__(self) -> None:
        self._program = find_program("borg", install="apt-get install borgbackup")

    def version(self) -> str:
        """What `borg --version` says, the number alone."""
        return run_program([self._program, "--version"]).split()[1]

    def prepare(self, store: Path) -> None:
        """`borg init`."""
        store.mkdir(parents=True)
        self._run(store, "init", "--encryption=none", store / _REPOSITORY)

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """`borg create`, without its cache of files if they must be read again."""
        options = ["--compression", "zstd,3", *(["--files-cache", "disabled"] if reread else [])]
        archives = []
        for parent, names in runs(models, together=self.together):
            # A name is taken for good, also when a model is added again.
            archive = f"{names[0]}-{uuid.uuid4().hex}"
            self._run(store, "create", *options, f"{store / _REPOSITORY}::{archive}", *names, cwd=parent)
            archives.append(archive)
        return {"archives": archives}

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """`borg extract`: every archive holds its models by name."""
        for archive in receipt["archives"]:
            self._run(store, "extract", f"{store / _REPOSITORY}::{archive}", cwd=dest)

    def remove(self, store: Path, receipt: Receipt, models: Sequence[int]) -> None:
        """`borg delete`, one for all."""
        archives = [receipt["archives"][at] for at in models]
        self._run(store, "delete", store / _REPOSITORY, *archives)

    def collect(self, store: Path) -> None:
        """`borg compact`, which by default leaves segments of which less than 10% is unneeded."""
        self._run(store, "compact", store / _REPOSITORY)

    def stored_bytes(self, store: Path) -> int:
        """The repository; what borg keeps about it in a home directory is not counted against it."""
        return tree_bytes(store / _REPOSITORY)

    def _run(self, store: Path, *arguments: str | Path, cwd: Path | None = None) -> str:
        variables = {
            "BORG_BASE_DIR": str(store / _BASE),  # Cache and configuration, else in the home directory.
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        return run_program([self._program, *arguments], cwd=cwd, variables=variables)


class BorgBatch(Borg):
    """One `create` and one `extract` for all models at once: what borg takes when starting it costs nothing."""

    name = "borg-batch"
    setting = f"one archive and process for all models; {_COMMON}"
    together = True
