"""A copy of every file, made durable: what people do without a store."""

from __future__ import annotations

import platform
import shutil
from typing import TYPE_CHECKING

from benchmarks.peers.base import Receipt, fsync_path, model_files, tree_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.peers.base import Model


class PlainCopy:
    """shutil.copyfile, then fsync of each file and directory when adding; no fsync when restoring."""

    name = "copy"
    setting = "copy + fsync"

    def version(self) -> str:
        """That of Python, which copies."""
        return f"Python {platform.python_version()}"

    def prepare(self, store: Path) -> None:
        """An empty folder."""
        store.mkdir(parents=True)

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """Copy, then fsync each file and folder."""
        del reread  # Files are always read.
        for model in models:
            for path in _copy(model.folder, store / model.name):
                fsync_path(path)
        fsync_path(store)
        return {"models": [model.name for model in models]}

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """Copy."""
        for name in receipt["models"]:
            _copy(store / name, dest / name)

    def remove(self, store: Path, receipt: Receipt, models: Sequence[int]) -> None:
        """Delete folders, then fsync the one that held them."""
        for at in models:
            shutil.rmtree(store / receipt["models"][at])
        fsync_path(store)

    def collect(self, store: Path) -> None:
        """Nothing is left to do."""

    def stored_bytes(self, store: Path) -> int:
        """All of it."""
        return tree_bytes(store)


def _copy(source: Path, target: Path) -> list[Path]:
    """Copy a folder; return what was made, files before the folders that hold them."""
    files = [target / path for path in model_files(source)]
    folders = {target, *(parent for path in files for parent in path.parents if target in parent.parents)}
    for folder in sorted(folders):
        folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(source / path.relative_to(target), path)
    return [*files, *sorted(folders, reverse=True)]
