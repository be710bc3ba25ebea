"""restic, the backup program: content-defined chunks, zstd, always encrypted; in a local repository."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.base import Receipt, tree_bytes
from benchmarks.peers.programs import find_program, run_program, runs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.peers.base import Model

_COMMON = (
    "zstd auto, encrypted (it cannot do otherwise), without its cache (which slows down a local repository), "
    "every file fsynced"
)


class Restic:
    """One `backup` and one `restore` per model.

    Each run derives the key of the repository from its password, with scrypt, for most of a second:
    whatever the size of the model.
    """

    name = "restic"
    setting = f"one snapshot and process per model, each deriving its key anew; {_COMMON}"
    together: ClassVar[bool] = False

    def __init__(self) -> None:
        self._program = find_program("restic", install="apt-get install restic")

    def version(self) -> str:
        """What `restic version` says, the number alone."""
        return run_program([self._program, "version"]).split()[1]

    def prepare(self, store: Path) -> None:
        """`restic init`."""
        self._run(store, "init")

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """`restic backup`, with `--force` if files must be read again."""
        options = ["--json", *(["--force"] if reread else [])]
        snapshots = []
        for parent, names in runs(models, together=self.together):
            printed = self._run(store, "backup", *options, "--", *names, cwd=parent)
            snapshots.append(json.loads(printed.splitlines()[-1])["snapshot_id"])
        return {"snapshots": snapshots}

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """`restic restore`: every snapshot holds its models by name."""
        for snapshot in receipt["snapshots"]:
            self._run(store, "restore", snapshot, "--target", dest)

    def remove(self, store: Path, receipt: Receipt, models: Sequence[int]) -> None:
        """`restic forget`, one for all: each run derives the key anew."""
        self._run(store, "forget", *(receipt["snapshots"][at] for at in models))

    def collect(self, store: Path) -> None:
        """`restic prune`, which by default leaves up to 5% of the repository unneeded."""
        self._run(store, "prune")

    def stored_bytes(self, store: Path) -> int:
        """The whole repository."""
        return tree_bytes(store)

    def _run(self, store: Path, *arguments: str | Path, cwd: Path | None = None) -> str:
        command = [self._program, "--repo", store, "--no-cache", "--quiet", *arguments]
        return run_program(command, cwd=cwd, variables={"RESTIC_PASSWORD": "benchmark"})


class ResticBatch(Restic):
    """One `backup` and one `restore` for all models at once: what restic takes when keys cost next to nothing."""

    name = "restic-batch"
    setting = f"one snapshot and process for all models; {_COMMON}"
    together = True
