"""Finds the files that a model config of Olive names, and gives each a path in the model's tree.

The only code that knows which settings of a model config name files (design §2). In the tree they lie beside the
config, whose paths are relative to the tree:

    model.json   model/…   adapter/…   additional_files/0/NAME   components/1/model/…
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore import tensors
from casstore.cache.document import LAZY_FLAG, CollectedModel, ModelDocument, set_at, texts
from casstore.cache.values import plain
from casstore.errors import ConfigError
from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from casstore.cache.document import Pointer

FILE_SETTINGS = {
    "model_path": "model",
    "adapter_path": "adapter",
    "model_script": "script",
    "script_dir": "scripts",
    "test_model_path": "test_model",
}
"""Settings of a model that name a file or a folder, and its name in the tree."""

LOCAL_RESOURCES = frozenset({"file", "folder", "local_file", "local_folder"})
"""Types of resources, as newer and older pipelines write them, that are a path on this machine."""

_ADDITIONAL = "additional_files"


def locate_here(text: str) -> str | None:
    """Return the target of a path, None for text that is not a path here; raise ConfigError if nothing is there."""
    location = os.path.normpath(os.path.abspath(text))
    if os.path.exists(location):
        return location
    if os.path.isabs(text):
        raise ConfigError(f"The model config names {text}, which does not exist.")
    return None


def collect(
    model_json: dict[str, Any], *, locate: Callable[[str], str | None] = locate_here
) -> CollectedModel:
    """Find every file that a model config names, where `locate` says that it is.

    The names of models on a hub stay as they are. Raises ConfigError for an absolute path that does not
    exist, a config that contains itself, or values that JSON cannot hold.
    """
    config: dict[str, Any] = plain(model_json, what="The model config")
    strip_flag(config)
    named = list(_named_files(config, locate))
    files: dict[str, str] = {}
    roots: dict[str, str] = {}
    paths: set[Pointer] = set()
    # Outer folders first, so that nothing inside one of them is taken twice.
    for pointer, role, location in sorted(named, key=lambda item: (item[2].count(os.sep), item[1])):
        inside = _inside(location, roots)
        if inside is None:
            # An additional folder is known by its name, as a file is; any other by what it is for.
            has_name = not os.path.isdir(location) or _ADDITIONAL in role.split("/")
            name = f"{role}/{tree_name(os.path.basename(location))}" if has_name else role
            roots[location], files[name] = name, location
            for outer in companions(location):
                files[f"{role}/{outer}"] = os.path.join(os.path.dirname(location), outer)
            inside = name
        set_at(config, pointer, inside)
        paths.add(pointer)
    for pointer, text in list(texts(config)):
        if pointer in paths or not os.path.isabs(text):
            continue
        try:
            found = locate(text)
        except ConfigError:
            found = None  # It is not one of the model's files, so the model does not need it.
        inside = _inside(found, roots) if found is not None else None
        if inside is not None:
            set_at(config, pointer, inside)
            paths.add(pointer)
        elif found is not None or os.path.lexists(text):
            # Paths of this machine are not stored: elsewhere they would mean nothing, or something else.
            set_at(config, pointer, os.path.basename(os.path.normpath(text)))
    return CollectedModel(ModelDocument(config, tuple(sorted(paths, key=repr))), files)


def _named_files(
    config: dict[str, Any], locate: Callable[[str], str | None]
) -> Iterator[tuple[Pointer, str, str]]:
    """Yield for each file that a config names its pointer, its path in the tree, and its path on this machine."""
    for setting, role, value in _file_settings(config, (), ""):
        pointer, text = setting, value
        if isinstance(value, dict) and str(value.get("type", "")).lower() in LOCAL_RESOURCES:
            pointer, text = (*setting, "config", "path"), (value.get("config") or {}).get("path")
        if not isinstance(text, str) or not text:
            continue
        location = locate(text)
        if location is not None:
            yield pointer, role, location


def _file_settings(node: Any, pointer: Pointer, prefix: str) -> Iterator[tuple[Pointer, str, Any]]:
    config = node.get("config") if isinstance(node, dict) else None
    if not isinstance(config, dict):
        return
    here = (*pointer, "config")
    for name, role in FILE_SETTINGS.items():
        if name in config:
            yield (*here, name), f"{prefix}{role}", config[name]
    attributes = config.get("model_attributes")
    additional = attributes.get(_ADDITIONAL) if isinstance(attributes, dict) else None
    if isinstance(additional, list):
        for at, value in enumerate(additional):
            yield (
                (*here, "model_attributes", _ADDITIONAL, at),
                f"{prefix}{_ADDITIONAL}/{at}",
                value,
            )
    components = config.get("model_components")
    if isinstance(components, list):
        for at, component in enumerate(components):
            yield from _file_settings(component, (*here, "model_components", at), f"{prefix}components/{at}/")


def external_data(location: str) -> list[str]:
    """Return the files beside an ONNX model that hold its tensors, as it names them."""
    found = sorted(_read(location, tensors.find_external_spans))
    folder = os.path.dirname(location)
    missing = [name for name in found if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise ConfigError(f"{location} keeps tensors in {missing[0]}, which is not beside it.")
    return found


def companions(location: str) -> list[str]:
    """Return the files beside an ONNX model that it needs, as it names them: tensors, compiled parts."""
    contexts = _read(location, tensors.find_context_files)
    folder = os.path.dirname(location)
    return external_data(location) + [name for name in contexts if os.path.isfile(os.path.join(folder, name))]


def _read(location: str, find: Callable[[tensors.ByteSource], Iterable[str]]) -> Iterable[str]:
    if not location.endswith(".onnx") or not os.path.isfile(location):
        return ()
    with open(location, "rb") as file:
        return find(_Bytes(file.fileno(), os.fstat(file.fileno()).st_size))


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A file that the tensor parsers read from."""

    descriptor: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        return os.pread(self.descriptor, length, offset)


def _inside(location: str, roots: dict[str, str]) -> str | None:
    """Return the path in the tree of the file at `location`, None if no collected folder holds it."""
    for root, name in roots.items():
        if location == root:
            return name
        if location.startswith(root.rstrip(os.sep) + os.sep) and os.path.isdir(root):
            return f"{name}/{tree_name(location[len(root) :].lstrip(os.sep))}"
    return None


def strip_flag(node: Any) -> None:
    """Drop the flag of a config whose files are still elsewhere: it must never be stored."""
    config = node.get("config") if isinstance(node, dict) else None
    if isinstance(config, dict):
        config.pop(LAZY_FLAG, None)
        for component in config.get("model_components") or []:
            strip_flag(component)
