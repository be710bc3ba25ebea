"""The folders of an Olive cache: which runs, models and evaluations they hold, and where their files are.

Reads only, and only below the folder that is given and those that are allowed beside it. Olive has written two
layouts:

    <workflow>/runs/<id>/run.json, model.json, models/…    <workflow>/evaluations/<id>….json     since 0.7
    <workflow>/models/<id>.json, <id>/…   <workflow>/runs/<pass>-<input>-….json   evaluations/   until 0.6

Configs hold absolute paths, as they were where the cache was made. A cache that was moved or copied is found by
the part of such a path that lies inside it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.cache.settings import RESERVED_NAMES
from casstore.digest import is_hex
from casstore.errors import ConfigError
from casstore.format import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_JSON = 64 << 20
"""Limit of a run, config or evaluation in bytes; Olive's have a few thousand."""

_ANCHORS = frozenset({"runs", "models", "resources", "non_local_resources"})
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model that Olive cached: `folder` holds its files, `config` and `run` are JSON files, None if there is none."""

    name: str
    folder: str
    config: str | None
    run: str | None


@dataclass(frozen=True, slots=True)
class Workflow:
    """The folder of one workflow: `name` is its own name, `folder` where it is, links resolved."""

    name: str
    folder: str

    def models(self) -> Iterator[FoundModel]:
        """Yield the cached models in the order of names; empty folders are left out."""
        runs, models = os.path.join(self.folder, "runs"), os.path.join(self.folder, "models")
        files, folders = _listed(runs)
        for name in folders:
            # Folders named by a whole key are casstore's own working folders, which the store has already.
            if not is_hex(name):
                yield from _found(name, os.path.join(runs, name))
        made = self._older_runs(runs, files)
        kept, _ = _listed(models)
        names = {
            name.removesuffix(".json"): os.path.join(models, name) for name in kept if name.endswith(".json")
        }
        for name in sorted({*names, *made}):
            yield FoundModel(name, os.path.join(models, name), names.get(name), made.get(name))

    def evaluations(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each evaluation and its JSON file."""
        folder = os.path.join(self.folder, "evaluations")
        for name in _listed(folder)[0]:
            if name.endswith(".json"):
                yield name.removesuffix(".json"), os.path.join(folder, name)

    def _older_runs(self, runs: str, files: list[str]) -> dict[str, str]:
        """Return the files of runs that have no folder, by the models that they made."""
        made: dict[str, str] = {}
        for name in files:
            if name.endswith(".json"):
                path = os.path.join(runs, name)
                try:
                    output = read_json(path).get("output_model_id")
                except ConfigError:
                    output = None  # Reported under the file's own name, when it is read again for its run.
                made[output if isinstance(output, str) and output else name.removesuffix(".json")] = path
        return made


def find_workflows(folder: str) -> list[Workflow]:
    """Return the workflows of a cache, or the one whose folder is given. Raises ConfigError if there is none."""
    top = os.path.realpath(folder)
    if not os.path.isdir(top):
        raise ConfigError(f"{folder} {'is not a folder' if os.path.exists(top) else 'does not exist'}.")
    if _is_workflow(top):
        return [Workflow(_name_of(top), top)]
    _, folders = _listed(top)
    found = [
        Workflow(_name_of(name), os.path.realpath(os.path.join(top, name)))
        for name in folders
        if name not in RESERVED_NAMES and _is_workflow(os.path.join(top, name))
    ]
    if not found:
        raise ConfigError(
            f"{folder} is not an Olive cache: neither it nor a folder in it has 'runs'. "
            "Give the directory that the workflow's cache_dir names."
        )
    return found


def read_json(path: str) -> dict[str, Any]:
    """Return the map in a JSON file; raise ConfigError for anything else."""
    try:
        # Without O_NONBLOCK, opening a pipe there would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JSON:
                raise ConfigError(f"{path} is not a file of at most {MAX_JSON >> 20} MiB.")
            value = json.loads(file.read(MAX_JSON).decode())
    except OSError as error:
        # Invariant 8: an unreadable file is reported, never taken for empty.
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from error  # Invariant 8, as above.
    if not isinstance(value, dict):
        raise ConfigError(f"{path} does not hold a JSON object.")
    try:
        canonical.encode(value)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be kept: {error}") from error  # Invariant 8, as above.
    return value


@dataclass(frozen=True, slots=True)
class FileFinder:
    """Finds the files that one model's config names; `roots` are the folders that may be read."""

    model: FoundModel
    workflow: Workflow
    roots: tuple[str, ...]

    def __call__(self, text: str) -> str | None:
        """Return where a path is now, None for the name of a model on a hub.

        A path is looked for in the model's own folder first, then elsewhere in its workflow, then at its original
        path, if that may be read. Raises ConfigError for a path that does not exist or leads outside.
        """
        if not text or "\0" in text:
            return None
        windows = _WINDOWS.match(text) is not None
        found = self._moved(re.split(r"[\\/]", text) if windows else text.split("/"))
        if found is not None:
            return found
        if windows or not os.path.isabs(text):
            if windows:
                raise ConfigError(f"The config names {text}, and {self.model.folder} holds no such file.")
            return None
        location = os.path.normpath(text)
        if not os.path.exists(location):
            raise ConfigError(
                f"The config names {text}, which does not exist, and {self.model.folder} holds no such file."
            )
        self.check(location)
        return location

    def check(self, location: str) -> None:
        """Raise ConfigError unless what lies at `location`, links resolved, may be read."""
        real = os.path.realpath(location)
        if not any(_is_below(real, root) for root in self.roots):
            through = "" if real == location else f" (a link to {real})"
            raise ConfigError(
                f"{location}{through} is outside this cache. If the model needs it, allow the folder that "
                "holds it."
            )

    def _moved(self, parts: list[str]) -> str | None:
        """Return the file inside this workflow that a path from another machine or folder means."""
        own = os.path.relpath(self.model.folder, self.workflow.folder).split(os.sep)
        starts = [at for at in range(len(parts) - 1) if parts[at] in _ANCHORS]
        starts.sort(key=lambda at: (parts[at : at + 2] == own, at), reverse=True)
        for at in starts:
            location = os.path.normpath(os.path.join(self.workflow.folder, *filter(None, parts[at:])))
            if os.path.exists(location):
                self.check(location)
                return location
        return None


def _name_of(folder: str) -> str:
    """Return a folder's own name as text, whatever bytes it has."""
    return os.fsencode(os.path.basename(folder)).decode("utf-8", "replace") or "workflow"


def _is_workflow(folder: str) -> bool:
    return os.path.isdir(os.path.join(folder, "runs"))


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _found(name: str, folder: str) -> Iterator[FoundModel]:
    """Yield the contents of a run's folder; Olive makes one whenever it looks for a run, so an empty one means nothing."""
    config, run = (os.path.join(folder, item) for item in ("model.json", "run.json"))
    try:
        held = set(os.listdir(folder))
    except OSError:
        held = {"model.json", "run.json"}  # Invariant 8: reading these raises their errors.
    kept, ran = "model.json" in held, "run.json" in held
    if kept or ran or any(names for _, _, names in os.walk(folder)):
        yield FoundModel(name, folder, config if kept else None, run if ran else None)


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the folders in a folder, in order; empty if it does not exist."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        # Invariant 8: a folder that cannot be listed is an error, never empty.
        raise ConfigError(f"{folder} cannot be read: {error.strerror or error}.") from error
    folders = [entry.name for entry in entries if entry.is_dir()]
    return [entry.name for entry in entries if not entry.is_dir()], folders
