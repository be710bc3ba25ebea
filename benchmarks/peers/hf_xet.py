"""hf-xet, the chunking store client of the Hugging Face Hub, on its own local store (no network, no server)."""

from __future__ import annotations

import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Receipt, import_peer, model_files, tree_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.peers.base import Model


class HfXet:
    """One upload commit per model and one download group per model, in one session.

    SHA-256 of the files is skipped and telemetry is off, so that the peer is as fast as it can be. What a user
    would keep in git to find a file again, its Xet hash and size, is the receipt.
    """

    name = "hf-xet"
    setting = "local endpoint, SHA-256 skipped"

    def __init__(self) -> None:
        os.environ["HF_XET_LOG_DEST"] = os.devnull  # Else it fills a folder in the home directory.
        self._xet: Any = import_peer("hf_xet", install="pip install '.[bench]'")

    def version(self) -> str:
        """The version of the package."""
        return importlib.metadata.version("hf_xet")

    def prepare(self, store: Path) -> None:
        """An empty folder."""
        store.mkdir(parents=True)

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """One upload commit each, in one session."""
        del reread  # There is no stat cache: files are always read.
        session = self._session()
        receipt: Receipt = {}
        for model in models:
            commit = session.new_upload_commit(endpoint=f"local://{store}")
            uploads = {
                str(path): commit.start_upload_file(str(model.folder / path), sha256=self._xet.SKIP_SHA256)
                for path in model_files(model.folder)
            }
            commit.wait_to_finish()
            found = {path: upload.result().xet_info for path, upload in uploads.items()}
            receipt[model.name] = {path: [info.hash, info.file_size] for path, info in found.items()}
        return receipt

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """One download group each, in one session."""
        session = self._session()
        for name, files in receipt.items():
            group = session.new_file_download_group(endpoint=f"local://{store}")
            for path, (file_hash, size) in files.items():
                target = dest / name / path
                target.parent.mkdir(parents=True, exist_ok=True)
                group.start_download_file(self._xet.XetFileInfo(file_hash, size), str(target))
            group.wait_to_finish()

    def stored_bytes(self, store: Path) -> int:
        """What a server would keep: the client's own caches beside it are not counted against it."""
        kept = store / "xet" / "xorbs"
        return tree_bytes(kept / "xorbs") + tree_bytes(kept / "shards")

    def _session(self) -> Any:
        return self._xet.XetSession(self._xet.XetConfig().with_config("telemetry.enabled", False))
