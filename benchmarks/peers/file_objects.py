"""A folder of files by the hash of their content: what stands in for a store around a compressor.

Every content is encoded once. Files and folders are fsynced before what names them is written, as in any
store that survives a power cut.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from benchmarks.peers.base import fsync_path, import_peer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


class Codec(Protocol):
    """A compressor of whole files."""

    def encode(self, source: BinaryIO, size: int, target: BinaryIO) -> None:
        """Write the encoded form of all `size` bytes of a source."""

    def decode(self, source: BinaryIO, target: BinaryIO) -> None:
        """Write the bytes that were encoded."""


class FileObjects:
    """Encoded contents in `store`/objects and what names them in `store`/models."""

    def __init__(self, store: Path, codec: Codec) -> None:
        self._objects = store / "objects"
        self._models = store / "models"
        self._codec = codec
        self._blake3: Any = load_hash().blake3

    def create(self) -> None:
        """Make the empty folders, and those above them."""
        self._objects.mkdir(parents=True)
        self._models.mkdir()

    def put_file(self, path: Path) -> str:
        """Keep a file; return the hash that names it. Durable after `write_model`."""
        digest = self._blake3(max_threads=self._blake3.AUTO).update_mmap(path).hexdigest()
        if not (self._objects / digest).exists():
            with path.open("rb") as source:
                self._encode(source, path.stat().st_size, digest)
        return digest

    def put_bytes(self, data: bytes) -> str:
        """Keep bytes; return the hash that names them. Durable after `write_model`."""
        digest = self._blake3(data).hexdigest()
        if not (self._objects / digest).exists():
            self._encode(io.BytesIO(data), len(data), digest)
        return digest

    def get_file(self, digest: str, path: Path) -> None:
        """Write a content to a new file."""
        with (self._objects / digest).open("rb") as source, path.open("wb") as target:
            self._codec.decode(source, target)

    def get_bytes(self, digest: str) -> bytes:
        """Return a content."""
        target = io.BytesIO()
        with (self._objects / digest).open("rb") as source:
            self._codec.decode(source, target)
        return target.getvalue()

    def write_model(self, name: str, contents: dict[str, Any]) -> None:
        """Say durably what a model consists of, after making its objects durable."""
        fsync_path(self._objects)
        data = json.dumps(contents).encode()
        _write_durably(self._models / f"{name}.json", lambda target: target.write(data))
        fsync_path(self._models)

    def read_model(self, name: str) -> dict[str, Any]:
        """Return what `write_model` was told."""
        found: dict[str, Any] = json.loads((self._models / f"{name}.json").read_bytes())
        return found

    def has_model(self, name: str) -> bool:
        """Say whether the name is taken."""
        return (self._models / f"{name}.json").exists()

    def _encode(self, source: BinaryIO, size: int, digest: str) -> None:
        _write_durably(self._objects / digest, lambda target: self._codec.encode(source, size, target))


def load_hash() -> ModuleType:
    """Load BLAKE3, which only some peers need: its memory must not be counted for the others."""
    return import_peer("blake3", install="pip install .")


def _write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make a whole file appear, fsynced; the folder is left to the caller."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(descriptor, "wb") as target:
        write(target)
        target.flush()
        os.fsync(target.fileno())
    Path(scratch).replace(path)
