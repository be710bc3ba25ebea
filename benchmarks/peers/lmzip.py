"""lmz (lmzip on PyPI), which codes a tensor as the difference from one of the same name that its archive holds."""

from __future__ import annotations

import importlib.metadata
import json
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Receipt, fsync_path, import_peer, model_files, tree_bytes
from benchmarks.peers.file_objects import load_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.peers.base import Model

_ARCHIVE = "archive.lmz"
_SCRATCH = "scratch"
_MODELS = "models"


class Lmzip:
    """One archive that grows: `compress` for its first file, `append` for every other one, `extract` to restore.

    Members are named by their hash, so that equal files are given once. lmz takes no links in folders, but a link as a
    file: that is how files get such a name without a copy.
    """

    name = "lmzip"
    setting = (
        "one archive, each new file appended with deltas against what it holds, all cores; one copy of equal "
        "files (by BLAKE3); the archive is fsynced after each model; it knows no lineage"
    )

    def __init__(self) -> None:
        self._lmz: Any = import_peer("lmz", install="pip install '.[bench]'")
        self._blake3: Any = load_hash().blake3

    def version(self) -> str:
        """The version of the package, and what its coder runs on."""
        return importlib.metadata.version("lmzip")

    def prepare(self, store: Path) -> None:
        """Empty folders: an archive holds at least one file."""
        for name in (_SCRATCH, _MODELS):
            (store / name).mkdir(parents=True)

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """Hash every file, append what is new, fsync; then write the list of the model's files."""
        del reread  # There is no stat cache: files are always read.
        archive = store / _ARCHIVE
        known = self._known(archive)
        for model in models:
            files = {}
            for path in model_files(model.folder):
                source = model.folder / path
                digest = self._blake3(max_threads=self._blake3.AUTO).update_mmap(source).hexdigest()
                if digest not in known:
                    self._put(archive, source, store / _SCRATCH / digest)
                    known.add(digest)
                files[str(path)] = digest
            fsync_path(archive)
            listed = store / _MODELS / f"{model.name}.json"
            listed.write_text(json.dumps(files))
            fsync_path(listed)
            fsync_path(listed.parent)
        return {"models": [model.name for model in models]}

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """One `extract` for each file; checksums are verified."""
        for name in receipt["models"]:
            (dest / name).mkdir()
            files = json.loads((store / _MODELS / f"{name}.json").read_bytes())
            for path, digest in files.items():
                target = dest / name / path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._lmz.extract(str(store / _ARCHIVE), digest, str(target))

    def stored_bytes(self, store: Path) -> int:
        """The archive, and the lists."""
        return tree_bytes(store)

    def _known(self, archive: Path) -> set[str]:
        if not archive.exists():
            return set()
        return {member["path"] for member in self._lmz.info(str(archive))["members"]}

    def _put(self, archive: Path, source: Path, link: Path) -> None:
        link.symlink_to(source.resolve())
        try:
            if archive.exists():
                self._lmz.append(str(archive), str(link))
            else:
                self._lmz.compress(str(link), str(archive))
        finally:
            link.unlink()
