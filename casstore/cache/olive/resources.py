"""Remote resources that a workflow names: downloaded once, and shared with other machines.

A resource is any object with `is_local_resource_or_string_name()`, `get_path()`, `to_json()` and
`save_to_dir(folder)`, as Olive's resource paths have.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.cache.passes.single_flight import single_flight
from casstore.cache.views import write_json
from casstore.digest import digest
from casstore.errors import CasstoreError
from casstore.format.paths import check_path
from casstore.store.checkout.staging import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casstore.cache.shared.sharing import Sharing

_log = logging.getLogger("casstore.cache")

_SAVED = "saved"
"""Metadata of a shared resource: the path of the resource in what is stored."""


@dataclass(frozen=True, slots=True)
class LocalResource:
    """A resource that lies on this machine."""

    path: str

    def get_path(self) -> str:
        """Return its path."""
        return self.path

    def is_local_resource_or_string_name(self) -> bool:
        """Say that nothing needs to be downloaded."""
        return True

    def to_json(self) -> dict[str, Any]:
        """Return the resource as Olive writes it."""
        kind = "local_folder" if os.path.isdir(self.path) else "local_file"
        return {"type": kind, "config": {"path": self.path}}


class Resources:
    """The downloaded resources in one folder. `make` turns a local path into what callers expect.

    The shared store is asked first, and gets what was downloaded; if that fails, it is logged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        make: Callable[[str], Any] = LocalResource,
        sharing: Sharing | None = None,
    ) -> None:
        self._sharing = sharing
        self._folder = folder
        self._make = make

    def prepare(self, config: Any) -> Any:
        """Return `config` with every resource in it replaced by its local path; the same object if it has none."""
        if _is_resource(config):
            return self.local_path(config)
        if isinstance(config, dict):
            return {key: self.prepare(value) for key, value in config.items()}
        if isinstance(config, list):
            return [self.prepare(value) for value in config]
        return config

    def origin(self, path: str) -> Any | None:
        """Return what was downloaded to `path`, as it is written in configs; None for any other path."""
        inside = os.path.relpath(os.path.realpath(path), os.path.realpath(self._folder)).split(os.sep)
        if inside[0] in (os.curdir, os.pardir):
            return None
        note = _read(self._folder / f"{inside[0]}.json")
        # A part of a resource is not the resource.
        whole = note is not None and os.path.realpath(str(note["dest"])) == os.path.realpath(path)
        return note["source"] if note is not None and whole else None

    def local_path(self, resource: Any) -> str | None:
        """Return the local path of a resource as text; None for None."""
        return str(self.local(resource).get_path()) if resource is not None else None

    def local(self, resource: Any) -> Any:
        """Return a resource that is on this machine as it is; download any other one, once."""
        if resource.is_local_resource_or_string_name():
            return resource
        source = resource.to_json()
        name = digest(json.dumps(source, sort_keys=True, default=str).encode()).hex()
        with single_flight(str(self._folder), name):
            return self._make(self._kept(name) or self._download(resource, source, name))

    def _kept(self, name: str) -> str | None:
        """Return where a resource that was downloaded before is, None if it is not there."""
        kept = _read(self._folder / f"{name}.json")
        return str(kept["dest"]) if kept is not None and os.path.exists(kept["dest"]) else None

    def _download(self, resource: Any, source: dict[str, Any], name: str) -> str:
        folder, note = self._folder / name, self._folder / f"{name}.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        # Leftovers of one attempt are never part of another (invariant 4).
        with scratch_folder(str(self._folder)) as scratch:
            new, replaced = os.path.join(scratch, "new"), os.path.join(scratch, "old")
            os.mkdir(new)
            saved = self._fetch(name, new)
            is_new = saved is None
            if saved is None:
                saved = os.path.relpath(resource.save_to_dir(new), new)
            kept = self._kept(name)
            if kept is not None:
                return kept  # Another process was faster, and its files are in use (invariant 10).
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, replaced)  # A folder without a note was never finished (invariant 4).
            os.rename(new, folder)  # It gets its name only when complete (invariant 4).
        path = os.path.normpath(os.path.join(folder, saved))
        # After the files, so that a note never names missing files (invariant 3).
        write_json(note, {"source": source, "dest": path})
        if is_new:
            self._share(name, str(folder), saved)
        return path

    def _fetch(self, name: str, dest: str) -> str | None:
        """Write a shared resource into the empty folder `dest`; return its path in there, None if there is none."""
        if self._sharing is None or not self._sharing.pull(_ref(name)):
            return None
        try:
            store = self._sharing.local
            record = store.record(_ref(name))
            saved = record.metadata.get(_SAVED) if record is not None else None
            if record is None or not isinstance(saved, str):
                return None
            check_path(saved)
            store.checkout_record(record, dest)
        except (CasstoreError, OSError) as error:
            # Invariant 11: the resource is downloaded from its origin instead.
            _log.warning("The shared resource %s is not used: %s", name, error)
            return None
        return saved

    def _share(self, name: str, folder: str, saved: str) -> None:
        """Share a resource that was downloaded into `folder`, where it is the file or folder `saved`."""
        if self._sharing is None or self._sharing.shared is None:
            return
        try:
            metadata = {_SAVED: saved, "type": "resource"}
            self._sharing.local.add(folder, ref=_ref(name), metadata=metadata, ignore_file=False)
        except (CasstoreError, OSError) as error:
            # Invariant 11: the resource is here, and other machines download it themselves.
            _log.warning("The resource %s could not be shared: %s", name, error)
        else:
            self._sharing.push([_ref(name)])


def _ref(name: str) -> str:
    return f"models/resources/{name}"


def _is_resource(value: Any) -> bool:
    return callable(getattr(value, "is_local_resource_or_string_name", None)) and not isinstance(value, type)


def _read(note: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(note.read_bytes())
        return {"source": value["source"], "dest": str(value["dest"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Without a note that can be read, the resource is downloaded again (invariant 4).
