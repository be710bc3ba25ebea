"""Changes where an ONNX graph says that its tensors are. Only this module needs the package `onnx`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def with_locations(locations: Mapping[str, str]) -> Callable[[str, str], None]:
    """Return a function that copies a graph and names its external data as `locations` says.

    Raises ConfigError at once if the package `onnx` is missing, rather than when half of the output is written.
    """
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        # Invariant 11: nothing was written yet, and the message says what to do.
        raise ConfigError(
            "Saving several ONNX models into one folder renames the files of their tensors, which needs the "
            "package onnx. Install it: pip install 'casstore[onnx]'."
        ) from error

    def write(source: str, destination: str) -> None:
        model = onnx.load_model(source, load_external_data=False)
        for tensor in _tensors(model.graph, model.functions):
            for entry in tensor.external_data:
                if entry.key == "location":
                    if entry.value not in locations:
                        raise ConfigError(
                            f"{source} keeps tensors in {entry.value!r}, which is not a safe name."
                        )
                    entry.value = locations[entry.value]
        with open(destination, "xb") as file:
            file.write(model.SerializeToString())

    return write


def _tensors(graph: Any, functions: Any = ()) -> Iterator[Any]:
    """Yield every tensor of a graph: initialisers, and those in the attributes of nodes, however deep."""
    yield from graph.initializer
    yield from _sparse(graph.sparse_initializer)
    for node in (*graph.node, *(node for function in functions for node in function.node)):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _sparse([attribute.sparse_tensor])
            yield from _sparse(attribute.sparse_tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _tensors(inner)


def _sparse(found: Any) -> Iterator[Any]:
    for tensor in found:
        yield tensor.values
        yield tensor.indices
