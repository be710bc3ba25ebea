"""What a peer must do, and nothing more: an adapter adds no work of its own and takes none away."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

Receipt = dict[str, Any]
"""What restore needs to find the models again, as JSON: the ids or names that a user would keep."""


class PeerMissing(Exception):
    """The peer is not installed here; the text says how to get it."""


class PeerFailed(Exception):
    """The peer did not do what it was asked to; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model to add: a folder of files, and the model that it was made from, if any.

    The folder is named like the model. Names have no slashes.
    """

    name: str
    folder: Path
    base: str | None = None


class Peer(Protocol):
    """One tool to compare. Objects are made in the process that is timed; a store is a directory of theirs."""

    name: str
    setting: str
    """The settings that matter, for the report; what is made durable, where it differs from casstore."""

    def version(self) -> str:
        """Return the peer's version; raise PeerMissing if it is not here."""

    def prepare(self, store: Path) -> None:
        """Make an empty store. Not timed."""

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """Add models, which a store may have already, one after another, as a pipeline would.

        A base is in the store or earlier among `models`. `reread` forbids to skip files because their times
        say that nothing changed.
        """

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """Write every model of the receipt to `dest`/NAME. `dest` is there and empty."""

    def stored_bytes(self, store: Path) -> int:
        """Return what the store costs on disk, in bytes of file content."""


class Collector(Peer, Protocol):
    """A peer that can forget models and give back what only they needed."""

    def remove(self, store: Path, receipt: Receipt, models: Sequence[int]) -> None:
        """Remove the names of models, by their positions among those that were added."""

    def collect(self, store: Path) -> None:
        """Free what no name needs any more, with the peer's own settings."""


def tree_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model as paths inside it."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def import_peer(module: str, *, install: str) -> ModuleType:
    """Import a peer's package, which need not be there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PeerMissing(f"{module} is not installed: {install}") from error


def fsync_path(path: Path | str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
