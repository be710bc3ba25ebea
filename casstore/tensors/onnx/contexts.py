"""What the EPContext nodes of an ONNX graph hold: compiled bytes, or the name of the file that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.tensors.onnx.schema import BYTES
from casstore.tensors.onnx.wire import FieldReader
from casstore.tensors.span import MAX_NAME_BYTES, Unrecognised

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ContextReader"]

MAX_CONTEXT_FILES = 4096


class ContextReader(FieldReader):
    """Looks at the nodes of one ModelProto."""

    def contexts(self) -> Iterator[str]:
        """Yield the text of each EPContext node of the main graph; raise Unrecognised for what is no graph."""
        left = MAX_CONTEXT_FILES
        for number, _, begin, end in self.fields("Model", 0, self.window.size):
            if number != 7:
                continue
            for inner, _, start, stop in self.fields("Graph", begin, end):
                text = self._context(start, stop) if inner == 1 else None
                if text is not None:
                    left -= 1
                    if left < 0:
                        raise Unrecognised("absurdly many contexts")
                    yield text

    def _context(self, begin: int, end: int) -> str | None:
        kind, attributes = "", []
        for number, _, start, stop in self.fields("Node", begin, end):
            if number == 4:
                kind = self.text(start, stop)
            elif number == 5:
                attributes.append((start, stop))
        if kind != "EPContext":
            return None
        for start, stop in attributes:
            name, place = "", None
            for number, wire, first, last in self.fields("Attribute", start, stop):
                if number == 1:
                    name = self.text(first, last, wire)
                elif number == 4 and wire == BYTES:
                    place = (first, last)
            if name == "ep_cache_context" and place is not None and place[1] - place[0] <= MAX_NAME_BYTES:
                try:
                    return self.window.take(place[0], place[1] - place[0]).decode()
                except UnicodeDecodeError:
                    return None  # The compiled bytes themselves.
        return None
