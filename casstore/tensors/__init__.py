"""Tensor spans: where the tensors of a model file lie, for every format that is known.

Pure: bytes in, values out. Files are neither executed nor unpickled nor opened here; README.md says what
each parser trusts and refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casstore.tensors import archive, gguf, npy, safetensors, tflite, zip_directory
from casstore.tensors.dtypes import DTYPES, DType, as_array, element_width
from casstore.tensors.onnx import spans as onnx_spans
from casstore.tensors.span import ByteSource, TensorSpan, Unrecognised, checked_spans
from casstore.tensors.torch import legacy_file as torch_legacy
from casstore.tensors.window import read_exactly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "DTYPES",
    "ByteSource",
    "DType",
    "ModelSpans",
    "TensorSpan",
    "as_array",
    "clip_spans",
    "element_width",
    "find_context_files",
    "find_external_spans",
    "find_model_spans",
    "find_spans",
]


class ModelSpans(NamedTuple):
    """The tensors in a file, and those that an ONNX file keeps in other files by location as written."""

    own: tuple[TensorSpan, ...]
    external: dict[str, tuple[TensorSpan, ...]]


_HEAD_BYTES = 24
_BY_MAGIC: tuple[tuple[bytes, Callable[[ByteSource], list[TensorSpan]]], ...] = (
    (gguf.MAGIC, gguf.spans),
    (npy.MAGIC, npy.spans),
    (zip_directory.MAGIC, archive.spans),
)


def find_spans(source: ByteSource) -> tuple[TensorSpan, ...]:
    """Return the tensors of a file, sorted by (begin, end, name); () if its format is unknown, or it is broken.

    The format is told by the content. Whatever the content is, the spans lie inside the file and any two either have the
    same range or share no byte; nothing is raised but what `source.read` raises. Reads headers only.
    """
    try:
        return checked_spans(_parser(source)(source), source.size)
    except Unrecognised:
        return ()


def find_model_spans(source: ByteSource) -> ModelSpans:
    """Return what `find_spans` and `find_external_spans` return, after one walk over the file."""
    try:
        parser = _parser(source)
        if parser is not onnx_spans.spans:
            return ModelSpans(checked_spans(parser(source), source.size), {})
        found = onnx_spans.find(source)
    except Unrecognised:
        return ModelSpans((), {})
    return ModelSpans(
        clip_spans(found.own, source.size),
        {location: tuple(spans) for location, spans in found.external.items()},
    )


def find_external_spans(source: ByteSource) -> dict[str, tuple[TensorSpan, ...]]:
    """Return the tensors that an ONNX file keeps in other files: location as written → spans in that file.

    Locations are relative and have no `..`, but come from the file: look them up among the model's own files only. Spans
    are not checked against the other file: pass them to `clip_spans`. {} for any other file. Raises
    what `source.read` raises.
    """
    try:
        is_onnx = _parser(source) is onnx_spans.spans
    except Unrecognised:
        return {}
    return find_model_spans(source).external if is_onnx else {}


def find_context_files(source: ByteSource) -> tuple[str, ...]:
    """Return the files, as an ONNX file writes their locations, that hold what was compiled for its hardware.

    Locations are relative and have no `..`, but come from the file, and may be short compiled data instead: look them up among
    the model's own files only. () for any other file. Raises what `source.read` raises.
    """
    try:
        return tuple(onnx_spans.context_files(source)) if _parser(source) is onnx_spans.spans else ()
    except Unrecognised:
        return ()


def clip_spans(spans: Iterable[TensorSpan], size: int) -> tuple[TensorSpan, ...]:
    """Return external spans checked against their file's size in bytes and sorted; () if any is absurd."""
    try:
        return checked_spans(spans, size)
    except Unrecognised:
        return ()


def _parser(source: ByteSource) -> Callable[[ByteSource], list[TensorSpan]]:
    head = read_exactly(source, 0, min(_HEAD_BYTES, source.size))
    for magic, parser in _BY_MAGIC:
        if head.startswith(magic):
            return parser
    if tflite.matches(head):
        return tflite.spans
    if torch_legacy.matches(head):
        return torch_legacy.spans
    if safetensors.matches(head, source.size):
        return safetensors.spans
    return onnx_spans.spans
