"""Remote resources that a workflow names: downloaded once, and shared.

A resource is any object with `is_local_resource_or_string_name()`, `get_path()`, `to_json()` and
`save_to_dir(folder)`, as Olive's resource paths have.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.cache.making import making_folder
from casstore.cache.passes.single_flight import single_flight
from casstore.digest import digest
from casstore.machine.atomic_write import atomic_write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casstore.cache.shared_resources import SharedResources


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

    `shared` is asked first, and gets what was downloaded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        make: Callable[[str], Any] = LocalResource,
        shared: SharedResources | None = None,
    ) -> None:
        self.shared = shared
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
        place, note = self._folder / name, self._folder / f"{name}.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        # Leftovers of one attempt are never part of another (invariant 4).
        with making_folder(str(self._folder)) as aside:
            making, replaced = os.path.join(aside, "new"), os.path.join(aside, "old")
            os.mkdir(making)
            saved = self.shared.fetch(name, making) if self.shared is not None else None
            fetched = saved is not None
            if saved is None:
                saved = os.path.relpath(resource.save_to_dir(making), making)
            kept = self._kept(name)
            if kept is not None:
                return kept  # Another process was faster, and its files are in use (invariant 10).
            with contextlib.suppress(FileNotFoundError):
                os.rename(place, replaced)  # A folder without a note was never finished (invariant 4).
            os.rename(making, place)  # It gets its name only when complete (invariant 4).
        path = os.path.normpath(os.path.join(place, saved))
        # After the files, so that a note never names missing files (invariant 3).
        with atomic_write(note) as file:
            file.write(json.dumps({"source": source, "dest": path}, indent=4, default=str).encode())
        if self.shared is not None and not fetched:
            self.shared.keep(name, str(place), saved)
        return path


def _is_resource(value: Any) -> bool:
    return callable(getattr(value, "is_local_resource_or_string_name", None)) and not isinstance(value, type)


def _read(note: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(note.read_bytes())
        return {"source": value["source"], "dest": str(value["dest"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Without a note that can be read, the resource is downloaded again (invariant 4).
