"""Peers that are programs: finding them, running them, and what of the environment they may see."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from benchmarks.peers.base import PeerFailed, PeerMissing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from benchmarks.peers.base import Model


_SETTINGS = ("AWS_", "AZURE_", "BORG_", "RCLONE_", "RESTIC_")


def find_program(name: str, *, install: str) -> str:
    """Return where a program is; raise PeerMissing if it is not installed."""
    found = shutil.which(name)
    if found is None:
        raise PeerMissing(f"{name} is not installed: {install}")
    return found


def run_program(
    command: Sequence[str | Path], *, cwd: Path | None = None, variables: Mapping[str, str] | None = None
) -> str:
    """Run a program to its end and return what it printed; raise PeerFailed unless it exits with 0.

    Of the environment it sees all but the settings of such programs, and `variables`.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    done = subprocess.run(
        [os.fspath(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**kept, **(variables or {})},
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise PeerFailed(f"{' '.join(map(str, command))} exited with {done.returncode}: {said}")
    return done.stdout


def runs(models: Sequence[Model], *, together: bool) -> Iterator[tuple[Path, list[str]]]:
    """Say what each run of a program adds: names of folders, below a folder that it runs in.

    One run for each model; or, `together`, one for all neighbours that lie in the same folder.
    """
    for model in models:
        if model.folder.name != model.name:
            raise ValueError(f"{model.folder} is not named like its model, {model.name}.")
    if together:
        for parent, group in itertools.groupby(models, key=lambda model: model.folder.parent):
            yield parent, [model.name for model in group]
    else:
        for model in models:
            yield model.folder.parent, [model.name]
