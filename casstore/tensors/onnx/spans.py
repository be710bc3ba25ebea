"""ONNX: the tensors in a ModelProto, in the file itself and in the files beside it."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from casstore.tensors.dtypes import DTYPES
from casstore.tensors.onnx.contexts import ContextReader
from casstore.tensors.onnx.schema import DTYPE_NAMES
from casstore.tensors.onnx.walk import Walk
from casstore.tensors.span import TensorSpan, UniqueNames, Unrecognised

if TYPE_CHECKING:
    from casstore.tensors.onnx.walk import FoundTensor
    from casstore.tensors.span import ByteSource

__all__ = ["Found", "context_files", "find", "spans"]

UNNAMED = "unnamed"


class Found(NamedTuple):
    """The tensors of a model: those in its own file, and those in other files by location."""

    own: list[TensorSpan]
    external: dict[str, list[TensorSpan]]


def spans(source: ByteSource) -> list[TensorSpan]:
    """Return the tensors whose bytes lie in this file as they lie in memory, or raise Unrecognised."""
    return _own_spans(_outer_first(source))


def find(source: ByteSource) -> Found:
    """Return all tensors after one walk, or raise Unrecognised.

    External ones are left out together if one of them is absurd.
    """
    tensors = _outer_first(source)
    try:
        external = _external_spans(tensors)
    except Unrecognised:
        external = {}
    return Found(_own_spans(tensors), external)


def _own_spans(tensors: list[FoundTensor]) -> list[TensorSpan]:
    """Return the tensors whose bytes lie in this file.

    Tensors without a name (those in a node's attributes) take the name of the node's first output; a name that occurs
    again, deeper or later, gets a number. Values stored as varints have no bytes to point at and are left out.
    """
    claim = UniqueNames().claim
    found = []
    for _, name, data_type, shape, place, external in tensors:
        if place is not None and external is None:
            begin, end = place
            dtype = DTYPE_NAMES.get(data_type)
            if dtype is None:
                dtype, shape = "U8", (end - begin,)  # noqa: PLW2901
            found.append(TensorSpan(claim(name or UNNAMED), dtype, shape, begin, end))
    return found


def _external_spans(tensors: list[FoundTensor]) -> dict[str, list[TensorSpan]]:
    """Return the tensors whose bytes lie in other files, by location, or raise Unrecognised.

    Only relative locations that stay below their directory are returned.
    """
    names: dict[str, UniqueNames] = {}
    found: dict[str, list[TensorSpan]] = {}
    for tensor in tensors:
        if tensor.external is None or not _stays_below(tensor.external.get("location", "")):
            continue
        location = tensor.external["location"]
        begin = _decimal(tensor.external.get("offset", "0"))
        dtype = DTYPE_NAMES.get(tensor.data_type)
        expected = DTYPES[dtype].byte_length(tensor.shape) if dtype else None
        length = tensor.external.get("length")
        if length is None and expected is None:
            raise Unrecognised("an external tensor without a length")
        size = _decimal(length) if length is not None else expected or 0
        name = names.setdefault(location, UniqueNames()).claim(tensor.name or UNNAMED)
        span = TensorSpan(name, dtype or "U8", tensor.shape if dtype else (size,), begin, begin + size)
        found.setdefault(location, []).append(span)
    return found


def context_files(source: ByteSource) -> list[str]:
    """Return the locations that the main graph's EPContext nodes name, or raise Unrecognised.

    Such a node holds what an execution provider compiled, or names the file that does: what is no relative path below the
    graph's directory is taken for the former. Source: https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html.
    """
    return list(dict.fromkeys(filter(_stays_below, ContextReader(source).contexts())))


def _outer_first(source: ByteSource) -> list[FoundTensor]:
    # An initializer of the main graph keeps its name, whatever a subgraph in front of it calls its own.
    return sorted(Walk(source).tensors(), key=attrgetter("depth"))


def _stays_below(location: str) -> bool:
    parts = location.replace("\\", "/").split("/")
    is_drive = len(parts) > 1 and len(parts[0]) == 2 and parts[0][1] == ":"  # C:\\weights, from Windows
    return bool(parts[0]) and ".." not in parts and not is_drive and location.isprintable()


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise Unrecognised("an external tensor at no number")
    return int(text)
