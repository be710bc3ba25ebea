"""A cached model's config, with paths relative to the model's files, beside which it is stored as `model.json`."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore.cache.values import plain
from casstore.errors import ConfigError, FormatError, UnsupportedVersion
from casstore.format.paths import check_path
from casstore.machine.local_names import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCUMENT_NAME = "model.json"
DOCUMENT_VERSION = 1

LAZY_FLAG = "shared_cache"
"""Setting of a config whose files are in the shared store only."""

Pointer = tuple["str | int", ...]
"""Where in a config a value is: keys and positions, outermost first."""


@dataclass(frozen=True, slots=True)
class ModelDocument:
    """A model config whose `paths` point at values that are paths in the model's tree."""

    model: dict[str, Any]
    paths: tuple[Pointer, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes of `model.json`: the same config gives the same bytes, whatever its keys' order."""
        value = {
            "version": DOCUMENT_VERSION,
            "model": self.model,
            "paths": [list(pointer) for pointer in self.paths],
        }
        return (json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()

    def located(self, locate: Callable[[str], str]) -> dict[str, Any]:
        """Return the config with every path in it replaced by the path on this machine that `locate` gives."""
        config = copy.deepcopy(self.model)
        for pointer in self.paths:
            set_at(config, pointer, locate(text_at(config, pointer)))
        return config


@dataclass(frozen=True, slots=True)
class CollectedModel:
    """A model to be cached: its document, and the file or folder on this machine for each path in its tree."""

    document: ModelDocument
    files: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def with_document(self) -> Iterator[dict[str, str]]:
        """Give `files` with a temporary `model.json`: everything that is stored."""
        with tempfile.TemporaryDirectory(prefix="casstore-") as folder:
            path = os.path.join(folder, DOCUMENT_NAME)
            with open(path, "wb") as file:
                file.write(self.document.encode())
            yield {**self.files, DOCUMENT_NAME: path}

    def config(self) -> dict[str, Any]:
        """Return the config with the paths on this machine."""
        return self.document.located(self._locate)

    def _locate(self, path: str) -> str:
        for name, location in self.files.items():
            if path == name:
                return location
            if path.startswith(f"{name}/"):
                return local_path(location, path[len(name) + 1 :])
        raise AssertionError(path)


def decode_document(data: bytes) -> ModelDocument:
    """Read `model.json`; raise FormatError unless every path in it stays inside the tree (design §11)."""
    try:
        value = json.loads(data)
        version, model = int(value["version"]), dict(value["model"])
        paths = tuple(tuple(pointer) for pointer in value["paths"])
        for pointer in paths:
            check_path(text_at(model, pointer))
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
        ConfigError,
    ) as error:
        # Invariant 4: a config from elsewhere is used only if it has the form that this module writes.
        raise FormatError(f"The {DOCUMENT_NAME} of a cached model cannot be used: {error}.") from error
    if version > DOCUMENT_VERSION:
        raise UnsupportedVersion(f"This model was cached by a newer casstore (document version {version}).")
    return ModelDocument(model, paths)


def texts(node: Any, pointer: Pointer = ()) -> Iterator[tuple[Pointer, str]]:
    """Yield every text in a config with its pointer."""
    if isinstance(node, str):
        yield pointer, node
    elif isinstance(node, (dict, list)):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from texts(item, (*pointer, key))


def config_texts(model_json: dict[str, Any]) -> list[str]:
    """Return every text in a model config, none if it cannot be stored."""
    try:
        return [text for _, text in texts(plain(model_json, what="The model config"))]
    except ConfigError:
        return []  # Reported already, when storing it failed.


def flag_lazy(model_json: dict[str, Any]) -> dict[str, Any]:
    """Flag a config whose files are still elsewhere, as Olive's callers expect."""
    model_json.setdefault("config", {})[LAZY_FLAG] = True
    return model_json


def text_at(node: Any, pointer: Pointer) -> str:
    """Return the text at a pointer; raise TypeError for any other value."""
    for key in pointer:
        node = node[key]
    if not isinstance(node, str):
        raise TypeError(f"{pointer} is not a path")
    return node


def set_at(node: Any, pointer: Pointer, value: Any) -> None:
    """Replace the value at a pointer."""
    for key in pointer[:-1]:
        node = node[key]
    node[pointer[-1]] = value
