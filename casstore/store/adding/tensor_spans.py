"""Finds the tensors in the files to add, and the element width of each chunk."""

from __future__ import annotations

import os
import posixpath
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore import tensors
from casstore.codecs import ElementHint
from casstore.store.adding.sources import is_onnx, open_source, read_range
from casstore.tensors.dtypes import element_width

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from casstore.store.adding.sources import SourceFile
    from casstore.tensors import TensorSpan


class ElementHints:
    """Which element width each chunk most likely has, from the tensor that fills most of it."""

    def __init__(self, spans: Sequence[TensorSpan]) -> None:
        self._spans = [span for span in spans if span.end > span.begin]
        # Bisecting a list takes a tenth of the time that a look-up in an array takes, and there is one for each chunk.
        self._begins = [span.begin for span in self._spans]

    def of(self, begin: int, end: int) -> ElementHint | None:
        """Return the hint for the chunk [`begin`, `end`), None where no tensor fills half of it."""
        first = max(0, bisect_right(self._begins, begin) - 1)
        last = bisect_left(self._begins, end)
        best, most = None, -1
        for span in self._spans[first:last]:
            shared = min(span.end, end) - max(span.begin, begin)
            if shared > most:
                best, most = span, shared
        if best is None or 2 * most < end - begin:
            return None
        width = element_width(best.dtype)
        return ElementHint(width, (best.begin - begin) % width)


def find_file_spans(
    file: SourceFile, descriptor: int, external: tuple[TensorSpan, ...] | None
) -> tuple[TensorSpan, ...]:
    """Return the tensors in a file: those that `find_external_spans` found in it, else those it names itself."""
    if external is None:
        return ()
    return external or tensors.find_spans(_FileBytes(descriptor, file.identity.size, file.location))


def find_external_spans(
    files: Sequence[SourceFile], all_files: Sequence[SourceFile]
) -> dict[str, tuple[TensorSpan, ...] | None]:
    """Return the tensors that ONNX graphs tell of, checked, by the path of the file that holds them.

    Those are tensors in data files and in the graphs themselves, so that a graph is walked once; None stands for
    a graph that holds none, and () for a data file of which a graph tells something absurd.
    """
    unread = {file.path: file.identity.size for file in files}
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
    checked = {path: tensors.clip_spans(dict.fromkeys(items), unread[path]) for path, items in found.items()}
    return checked | own


def _data_file(folder: str, location: str, unread: Container[str]) -> str | None:
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
