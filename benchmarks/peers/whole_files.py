"""Peers that compress whole files: each content once, found again by its hash."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.base import Receipt, model_files, tree_bytes
from benchmarks.peers.file_objects import FileObjects, load_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.peers.base import Model
    from benchmarks.peers.file_objects import Codec


class WholeFiles:
    """The protocol around a codec; a peer gives the codec."""

    restored_at_once: ClassVar[int] = 1
    """Files that are decoded at the same time, by a codec that uses one core for each."""

    def __init__(self, codec: Codec) -> None:
        load_hash()  # Now, outside what is timed.
        self._codec = codec

    def prepare(self, store: Path) -> None:
        """Empty folders."""
        FileObjects(store, self._codec).create()

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """Hash every file, encode what is new, fsync it; then write the list of the model's files."""
        del reread  # There is no stat cache: files are always read.
        objects = FileObjects(store, self._codec)
        for model in models:
            files = {str(path): objects.put_file(model.folder / path) for path in model_files(model.folder)}
            objects.write_model(model.name, files)
        return {"models": [model.name for model in models]}

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """Decode every file."""
        objects = FileObjects(store, self._codec)
        with ThreadPoolExecutor(self.restored_at_once) as threads:
            for name in receipt["models"]:
                (dest / name).mkdir()
                files = objects.read_model(name)
                targets = [dest / name / path for path in files]
                for folder in {target.parent for target in targets}:
                    folder.mkdir(parents=True, exist_ok=True)
                list(threads.map(objects.get_file, files.values(), targets))

    def stored_bytes(self, store: Path) -> int:
        """Encoded files and lists."""
        return tree_bytes(store)
