"""Writes a cached model where its user wants it: one file, a folder, or a package of components."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casstore.cache.document import set_at, texts
from casstore.cache.olive.collect import (
    FILE_SETTINGS,
    LOCAL_RESOURCES,
    companions,
    external_data,
    strip_flag,
)
from casstore.cache.olive.onnx_files import with_locations
from casstore.cache.olive.output import Output, same_content
from casstore.errors import ConfigError
from casstore.format.paths import check_path
from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.cache.document import Pointer
    from casstore.cache.olive.resources import Resources

CONFIG_NAME = "model_config.json"

_ONNX, _COMPOSITE = "onnxmodel", "compositemodel"
_SUFFIX = ".onnx"
_BESIDE_ONNX = ("external_initializers_file_name", "constant_inputs_file_name")


def save_model(
    config: dict[str, Any],
    output: Path,
    *,
    overwrite: bool,
    only_files_below: Path | None,
    resources: Resources,
) -> dict[str, Any]:
    """Write the files that a model config names to `output`; return the config with their paths there.

    `output` is a folder, or a .onnx file: the model's graph gets this name, everything else lies beside it.
    The config is written beside the files as model_config.json. With `only_files_below`, files elsewhere
    are left where they are, and downloaded resources are named by their origin. Raises
    OutputExists for an existing file, unless `overwrite`; ConfigError for a config that cannot
    be saved; BackendError if writing fails. Nothing is written then.
    """
    output = Path(os.path.abspath(output))
    graph = output.name if output.suffix.lower() == _SUFFIX and not output.is_dir() else None
    saving = _Saving(output.parent if graph else output, below=only_files_below, resources=resources)
    return saving.save(config, graph=graph, overwrite=overwrite)


class _Saving:
    """One model that is being saved: which file goes where, and which settings change because of it."""

    def __init__(self, folder: Path, *, below: Path | None, resources: Resources) -> None:
        self._output = Output(folder)
        self._below = below
        self._resources = resources
        self._assigned: dict[Pointer, Any] = {}
        self._dropped: list[Pointer] = []
        self._data: dict[int, list[tuple[str, str]]] = {}

    def save(self, config: dict[str, Any], *, graph: str | None, overwrite: bool) -> dict[str, Any]:
        model = copy.deepcopy(config)
        strip_flag(model)
        if _kind(model) == _COMPOSITE and _attributes(model).get("no_flatten"):
            self._package(model)
        else:
            self._model(model, (), prefix="", graph=graph)
        self._additional_files(model)
        self._rewrite(model)
        self._output.add_bytes(CONFIG_NAME, json.dumps(model, indent=4).encode())
        self._output.write(overwrite=overwrite)
        return model

    def _model(self, model: dict[str, Any], here: Pointer, *, prefix: str, graph: str | None = None) -> None:
        """Plan one model that is not a package; the names of its files start with `prefix`."""
        if _kind(model) == _COMPOSITE:
            for at, (name, component) in enumerate(_components(model)):
                inner = (*here, "config", "model_components", at)
                if _kind(component) == _ONNX:
                    self._flat_graph(component, inner, f"{prefix}{name}")
                else:
                    self._model(component, inner, prefix=f"{prefix}{name}_")
            return
        for setting in FILE_SETTINGS:
            source = self._source(model, here, setting)
            if source is None:
                continue
            if setting == "model_path" and _kind(model) == _ONNX:
                self._graph(model, here, source, graph or f"{prefix}model{_SUFFIX}", asked=graph is not None)
            else:
                self._resource(here, setting, source, prefix + setting.removesuffix("_path"))

    def _source(self, model: dict[str, Any], here: Pointer, setting: str) -> str | None:
        """Return the file or folder that a setting names, None if it stays as it is."""
        value = model["config"].get(setting)
        if isinstance(value, dict) and str(value.get("type", "")).lower() in LOCAL_RESOURCES:
            value = (value.get("config") or {}).get("path")
        else:
            value = self._resources.prepare(value)
        if not isinstance(value, str) or not os.path.exists(value):
            if isinstance(value, str) and os.path.isabs(value):
                raise ConfigError(f"The model's config names {value}, which does not exist.")
            return (
                None  # The name of a model on a hub, a resource that is fetched where it is used, or nothing.
            )
        if self._below is not None:
            origin = self._resources.origin(value)
            if origin is not None:
                self._assigned[(*here, "config", setting)] = origin
                return None
            if not _is_below(value, self._below):
                return None
        return value

    def _resource(self, here: Pointer, setting: str, source: str, name: str) -> None:
        """Plan a file or folder under a name of its own."""
        if os.path.isdir(source):
            self._output.add_folder(name, source, whole=True)
        else:
            name += tree_name(os.path.splitext(source)[1])
            self._output.add_file(name, source)
        self._assigned[(*here, "config", setting)] = self._output.at(name)

    def _graph(self, model: dict[str, Any], here: Pointer, source: str, name: str, *, asked: bool) -> None:
        """Plan an ONNX model with everything that lies in its folder, or, for a file, that it needs."""
        setting = (*here, "config", "model_path")
        file_name = model["config"].get("onnx_file_name")
        if os.path.isfile(source):
            self._output.add_file(name, source)
            for companion in companions(source):
                self._output.add_file(companion, os.path.join(os.path.dirname(source), companion))
            self._assigned[setting] = self._output.at(name)
            return
        renamed = {}
        if file_name:
            _check_inside(source, file_name)
            # External data is named relative to the graph, so the graph stays where it is in the folder.
            folder, _, _ = file_name.rpartition("/")
            new = f"{folder}/{name}" if folder else name
            if not asked and new != file_name and os.path.lexists(os.path.join(source, new)):
                new = file_name  # Another graph has that name, and both must be kept.
            renamed[file_name] = new
            self._assigned[(*here, "config", "onnx_file_name")] = new
        elif "onnx_file_name" in model["config"]:
            self._dropped.append((*here, "config", "onnx_file_name"))
        self._output.add_folder("", source, renamed=renamed)
        self._assigned[setting] = self._output.at("")

    def _flat_graph(self, model: dict[str, Any], here: Pointer, name: str) -> None:
        """Plan one of several ONNX models that share a folder: `name`.onnx, its tensors beside it."""
        source = self._source(model, here, "model_path")
        if source is None:
            return
        graph = _graph_file(source, model["config"].get("onnx_file_name"))
        folder = os.path.dirname(graph)
        name = name if name.endswith(_SUFFIX) else f"{name}{_SUFFIX}"
        outer = external_data(graph)
        locations = {location: self._tensors(os.path.join(folder, location), name) for location in outer}
        moved = {old: new for old, new in locations.items() if old != new}
        self._output.add_file(name, graph, write=with_locations(locations) if moved else None)
        for companion in companions(graph):
            if companion not in locations:
                self._output.add_file(companion, os.path.join(folder, companion))
        for setting in _BESIDE_ONNX:
            beside = model["config"].get(setting)
            if beside and os.path.isfile(os.path.join(folder, beside)):
                new = f"{name.removesuffix(_SUFFIX)}_{os.path.basename(beside)}"
                self._output.add_file(new, os.path.join(folder, beside))
                self._assigned[(*here, "config", setting)] = new
        if os.path.isdir(source):
            self._output.map_source(source, "")
        self._assigned[(*here, "config", "model_path")] = self._output.at("")
        self._assigned[(*here, "config", "onnx_file_name")] = name

    def _tensors(self, source: str, graph: str) -> str:
        """Plan a file of tensors, once however many graphs use it; return its name."""
        if not os.path.isfile(source):
            raise ConfigError(f"{graph} keeps tensors in {source}, which does not exist.")
        known = self._output.path_of(source)
        if known is not None:
            return known
        size = os.path.getsize(source)
        # A cached model may hold the shared file once for each graph.
        alike = self._data.setdefault(size, [])
        for other, name in alike:
            if same_content(other, source):
                return name
        name, number = f"{graph}.data", 0
        while self._output.holds(name):
            number += 1
            name = f"{graph}.data.{number}"
        self._output.add_file(name, source)
        alike.append((source, name))
        return name

    def _package(self, model: dict[str, Any]) -> None:
        """Plan a composite model whose folders stay as they are."""
        root = self._source(model, (), "model_path")
        if root is not None and os.path.isdir(root):
            self._output.add_folder("", root)
        elif root is not None:
            self._output.add_file(tree_name(os.path.basename(root)), root)
        if root is not None or not model["config"].get("model_path"):
            self._assigned["config", "model_path"] = self._output.at("")
        for at, (name, component) in enumerate(_components(model)):
            here: Pointer = ("config", "model_components", at)
            for setting in FILE_SETTINGS:
                source = self._source(component, here, setting)
                if source is None:
                    if setting == "model_path" and not component["config"].get(setting):
                        self._assigned[(*here, "config", setting)] = self._output.at("")
                    continue
                if self._output.path_of(source) is None:
                    self._apart(source, name if setting == "model_path" else f"{name}/{setting}")
                path = self._output.path_of(source)
                assert path is not None
                self._assigned[(*here, "config", setting)] = self._output.at(path)

    def _apart(self, source: str, folder: str) -> None:
        """Plan a part of a package that lies outside the package's folder."""
        if os.path.isdir(source):
            self._output.add_folder(folder, source)
            return
        self._output.add_file(f"{folder}/{tree_name(os.path.basename(source))}", source)
        for companion in companions(source):
            beside = os.path.join(os.path.dirname(source), companion)
            self._output.add_file(f"{folder}/{companion}", beside)

    def _additional_files(self, model: dict[str, Any]) -> None:
        """Plan the additional files of a model or a component: two of the same name get two paths."""
        for here, node in _nodes(model, ()):
            files = _attributes(node).get("additional_files")
            for at, source in enumerate(files if isinstance(files, list) else ()):
                if not isinstance(source, str) or not source:
                    continue
                if not os.path.exists(source):
                    raise ConfigError(f"The model's config names {source}, which does not exist.")
                path = self._output.path_of(source)
                if path is None:
                    path = self._free_path(source, self._folder_of(here))
                    if os.path.isdir(source):
                        self._output.add_folder(path, source)
                    else:
                        self._output.add_file(path, source)
                pointer: Pointer = (*here, "config", "model_attributes", "additional_files", at)
                self._assigned[pointer] = self._output.at(path)

    def _folder_of(self, here: Pointer) -> str:
        """Return the folder in the output in which a component's model lies."""
        path = self._assigned.get((*here, "config", "model_path"))
        if not here or not isinstance(path, str) or not _is_below(path, self._output.folder):
            return ""
        inside = tree_name(os.path.relpath(path, self._output.folder))
        if self._output.holds(inside) and not self._output.is_file(inside):
            return inside
        return "" if inside == "." else inside.rpartition("/")[0]

    def _free_path(self, source: str, folder: str) -> str:
        """Return where an additional file goes: beside the model, else where no other file has its name."""
        name = tree_name(os.path.basename(os.path.normpath(source)))
        path, number = f"{folder}/{name}" if folder else name, 0
        while path == CONFIG_NAME or (self._output.holds(path) and not self._output.same_as(path, source)):
            path = "/".join(filter(None, (folder, "additional_files", str(number), name)))
            number += 1
        return path

    def _rewrite(self, model: dict[str, Any]) -> None:
        """Put the new paths into the config; no setting may still name a file in the cache."""
        for pointer, text in list(texts(model)):
            if pointer not in self._assigned and os.path.isabs(text) and os.path.lexists(text):
                path = self._output.path_of(text)
                if path is not None:
                    set_at(model, pointer, self._output.at(path))
        for pointer, value in self._assigned.items():
            set_at(model, pointer, value)
        for pointer in self._dropped:
            node: Any = model
            for key in pointer[:-1]:
                node = node[key]
            del node[pointer[-1]]


def _kind(model: dict[str, Any]) -> str:
    return str(model.get("type", "")).lower()


def _attributes(model: dict[str, Any]) -> dict[str, Any]:
    attributes = model["config"].get("model_attributes")
    return attributes if isinstance(attributes, dict) else {}


def _components(model: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each component with its name, which becomes part of files' names."""
    components = model["config"].get("model_components") or []
    names = model["config"].get("model_component_names") or [str(at) for at in range(len(components))]
    if len(names) != len(components):
        raise ConfigError(f"A composite model names {len(names)} components and has {len(components)}.")
    for name, component in zip(names, components, strict=True):
        check_path(name)
        if "/" in name:
            raise ConfigError(f"The component name {name!r} cannot become a file's name: it has a '/'.")
        yield name, component


def _nodes(model: dict[str, Any], here: Pointer) -> Iterator[tuple[Pointer, dict[str, Any]]]:
    yield here, model
    for at, component in enumerate(model["config"].get("model_components") or []):
        yield from _nodes(component, (*here, "config", "model_components", at))


def _graph_file(source: str, name: str | None) -> str:
    """Return the ONNX file that a model means."""
    if os.path.isfile(source):
        return source
    if name:
        _check_inside(source, name)
        return os.path.join(source, name)
    found = sorted(item for item in os.listdir(source) if item.endswith(_SUFFIX))
    if len(found) != 1:
        raise ConfigError(
            f"{source} holds {len(found)} .onnx files: say which one is the model with onnx_file_name."
        )
    return os.path.join(source, found[0])


def _check_inside(folder: str, name: str) -> None:
    check_path(name)
    if not os.path.isfile(os.path.join(folder, name)):
        raise ConfigError(f"The model's config names {name} in {folder}, where there is no such file.")


def _is_below(path: str, folder: str | os.PathLike[str]) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
