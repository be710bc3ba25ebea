"""Finds the tensors in the files to add, and the element width of each chunk."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore import tensors
from casstore.codecs import ElementHint
from casstore.store.adding.sources import is_onnx, open_source, read_range
from casstore.tensors.dtypes import element_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.store.adding.sources import SourceFile
    from casstore.tensors import TensorSpan


class ElementHints:
    """Which element width each chunk most likely has, from the tensor that fills most of it."""

    def __init__(self, spans: Sequence[TensorSpan]) -> None:
        spans = [span for span in spans if span.end > span.begin]
        self._begins: NDArray[np.int64] = np.array([span.begin for span in spans], np.int64)
        self._ends: NDArray[np.int64] = np.array([span.end for span in spans], np.int64)
        self._dtypes = [span.dtype for span in spans]

    def of(self, begin: int, end: int) -> ElementHint | None:
        """Return the hint for the chunk [`begin`, `end`), None where no tensor fills half of it."""
        first = max(0, int(np.searchsorted(self._begins, begin, side="right")) - 1)
        last = int(np.searchsorted(self._begins, end))
        if first >= last:
            return None
        shared = np.minimum(self._ends[first:last], end) - np.maximum(self._begins[first:last], begin)
        best = int(shared.argmax())
        if 2 * int(shared[best]) < end - begin:
            return None
        width = element_width(self._dtypes[first + best])
        return ElementHint(width, (int(self._begins[first + best]) - begin) % width)


def find_file_spans(
    file: SourceFile, descriptor: int, external: tuple[TensorSpan, ...] | None
) -> tuple[TensorSpan, ...]:
    """Return the tensors in a file: those that `find_external_spans` found in it, else those it names itself."""
    if external is None:
        return ()
    size = file.identity.size
    return tensors.clip_spans(external, size) or tensors.find_spans(
        _FileBytes(descriptor, size, file.location)
    )


def find_external_spans(
    files: Sequence[SourceFile], all_files: Sequence[SourceFile]
) -> dict[str, tuple[TensorSpan, ...] | None]:
    """Return the tensors that ONNX graphs tell of, by the path of the file that holds them.

    Those are tensors in data files and in the graphs themselves, so that a graph is walked once; None stands for
    a graph that holds none.
    """
    unread = {file.path for file in files}
    own: dict[str, tuple[TensorSpan, ...] | None] = {}
    found: dict[str, list[TensorSpan]] = {}
    for file in all_files:
        if not unread or not is_onnx(file):
            continue
        descriptor = open_source(file)
        try:
            spans = tensors.find_model_spans(_FileBytes(descriptor, file.identity.size, file.location))
        finally:
            os.close(descriptor)
        if file.path in unread:
            own[file.path] = spans.own or None
        folder = posixpath.dirname(file.path)
        for location, items in spans.external.items():
            path = _data_file(folder, location, unread)
            if path is not None:
                found.setdefault(path, []).extend(items)
    return {path: tuple(dict.fromkeys(items)) for path, items in found.items()} | own


def _data_file(folder: str, location: str, unread: set[str]) -> str | None:
    """Return the path of the file that a graph in `folder` means; graphs from Windows may have backslashes."""
    for spelling in (location, location.replace("\\", "/")):
        path = posixpath.normpath(posixpath.join(folder, spelling))
        if path in unread:
            return path
    return None


@dataclass(frozen=True, slots=True)
class _FileBytes:
    """A file as the tensor parsers read it."""

    descriptor: int
    size: int
    location: str

    def read(self, offset: int, length: int) -> bytes:
        return read_range(self.descriptor, offset, length, self.location)
