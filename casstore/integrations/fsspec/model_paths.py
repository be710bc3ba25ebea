"""Resolves paths below `cas://`: namespaces, refs, and the files and directories of models."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore.errors import ConfigError, RefNotFound
from casstore.format import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.api.store import Store
    from casstore.format.layout import Layout
    from casstore.format.manifest import TreeEntry
    from casstore.format.record import Record
    from casstore.store.reading.model import Model

_KEPT_FOLDERS = 8
_KEPT_REFS = 4096
_MODEL_ID = re.compile(r"[0-9a-f]{4,64}")


@dataclass(slots=True)
class Folders:
    """The files of one model, and its directories with the names in each; the root is ""."""

    model: Model
    files: dict[str, TreeEntry] = field(default_factory=dict)
    directories: dict[str, set[str]] = field(default_factory=lambda: {"": set()})

    @classmethod
    def of(cls, model: Model) -> Folders:
        """Arrange the tree of a model."""
        folders = cls(model)
        for entry in model.tree.files:
            folders.files[entry.path] = entry
            folders._enter(entry.path)
        for path in model.tree.empty:
            folders._enter(path)
            folders.directories.setdefault(path, set())
        return folders

    def _enter(self, path: str) -> None:
        while path:
            folder, _, name = path.rpartition("/")
            self.directories.setdefault(folder, set()).add(name)
            path = folder

    def info(self, name: str, inside: str) -> dict[str, Any]:
        """Return fsspec's info of the file or directory `inside`, which is called `name`."""
        if inside in self.directories:
            return {"name": name, "type": "directory", "size": 0, "model_id": self.model.model_id}
        entry = self.files[inside]
        return {
            "name": name,
            "type": "file",
            "size": entry.size,
            "blake3": (entry.file_id or b"").hex(),
            "executable": inside in self.model.executable,
            "model_id": self.model.model_id,
        }


class ModelPaths:
    """Finds what paths name in one store; safe in threads.

    A path means the shortest ref that it begins with and whose model has the rest. A ref is assumed unchanged
    for `ref_seconds`.
    """

    def __init__(self, store: Store, *, ref_seconds: float) -> None:
        self._store = store
        self._ref_seconds = ref_seconds
        self._records: OrderedDict[str, tuple[float, Record | None]] = OrderedDict()
        self._folders: OrderedDict[bytes, Folders] = OrderedDict()

    def forget(self) -> None:
        """Look at every ref again when it is next needed."""
        self._records.clear()

    def info(self, path: str) -> dict[str, Any]:
        """Return what a path is; raises FileNotFoundError."""
        if path == "":
            return {"name": "", "type": "directory", "size": 0}
        found = self._find(path)
        if found is not None:
            folders, inside = found
            return folders.info(path, inside)
        if path in names.MODEL_NAMESPACES or (_in_namespace(path) and self._store.find(f"{path}/", limit=1)):
            return {"name": path, "type": "directory", "size": 0}
        raise FileNotFoundError(f"No cas://{path} in {self._store.backend.url}.")

    def list(self, path: str) -> list[dict[str, Any]]:
        """List a directory, or return the info of a file; raises FileNotFoundError."""
        if path == "":
            return [
                {"name": namespace, "type": "directory", "size": 0} for namespace in names.MODEL_NAMESPACES
            ]
        found = self._find(path)
        if found is not None:
            folders, inside = found
            if inside not in folders.directories:
                return [folders.info(path, inside)]
            children = sorted(folders.directories[inside])
            return [
                folders.info(f"{path}/{child}", f"{inside}/{child}" if inside else child)
                for child in children
            ]
        if not _in_namespace(path):
            raise FileNotFoundError(f"No cas://{path} in {self._store.backend.url}.")
        listed: dict[str, dict[str, Any]] = {}
        for row in self._store.find(f"{path}/"):
            child, _, below = row.name[len(path) + 1 :].partition("/")
            info = listed.setdefault(child, {"name": f"{path}/{child}", "type": "directory", "size": 0})
            if not below and row.target is not None:
                info["model_id"] = row.target.hex()
        if not listed and path not in names.MODEL_NAMESPACES:
            raise FileNotFoundError(f"No cas://{path} in {self._store.backend.url}.")
        return [listed[child] for child in sorted(listed)]

    def file(self, path: str) -> tuple[TreeEntry, Layout]:
        """Return the file that a path names; raises FileNotFoundError and IsADirectoryError."""
        found = self._find(path)
        if found is None or found[1] in found[0].directories:
            if self.info(path)["type"] == "directory":
                raise IsADirectoryError(f"cas://{path} is a directory.")
            raise FileNotFoundError(f"No cas://{path} in {self._store.backend.url}.")
        folders, inside = found
        self._store.last_use.note(bytes.fromhex(folders.model.model_id))
        return folders.files[inside], folders.model.layout(inside)

    def _find(self, path: str) -> tuple[Folders, str] | None:
        """Return the model that has this path, and the path inside it, None if no model has."""
        for ref, inside in _divisions(path):
            record = self._record(ref)
            if record is None or record.target is None or record.manifest is None:
                continue
            folders = self._folders_of(record)
            if inside in folders.files or inside in folders.directories:
                return folders, inside
        return None

    def _folders_of(self, record: Record) -> Folders:
        assert record.manifest is not None
        key = record.manifest
        folders = self._folders.get(key)
        if folders is None:
            folders = self._folders[key] = Folders.of(self._store.model_of(record, elsewhere=True))
            while len(self._folders) > _KEPT_FOLDERS:
                self._folders.popitem(last=False)
        return folders

    def _record(self, ref: str) -> Record | None:
        now = time.monotonic()
        known = self._records.get(ref)
        if known is not None and now < known[0]:
            return known[1]
        record: Record | None
        if _in_namespace(ref):
            record = self._store.record(ref)
        else:
            try:
                record = self._store.resolve(ref).record
            except RefNotFound as error:
                # Design §3: this includes ambiguous prefixes; the message says so.
                raise FileNotFoundError(str(error)) from error
        self._records[ref] = (now + self._ref_seconds, record)
        while len(self._records) > _KEPT_REFS:
            self._records.popitem(last=False)
        return record


def _in_namespace(path: str) -> bool:
    return path.partition("/")[0] in names.MODEL_NAMESPACES


def _divisions(path: str) -> Iterator[tuple[str, str]]:
    """Yield the ways to divide a path into a ref or model id and a path inside it, the shortest ref first."""
    parts = path.split("/")
    if parts[0] not in names.MODEL_NAMESPACES:
        if _MODEL_ID.fullmatch(parts[0]):
            yield parts[0], "/".join(parts[1:])
        return
    for count in range(2, len(parts) + 1):
        ref = "/".join(parts[:count])
        try:
            names.check_name(ref)
        except ConfigError:
            return  # No ref can have such a name, nor a longer one.
        yield ref, "/".join(parts[count:])
