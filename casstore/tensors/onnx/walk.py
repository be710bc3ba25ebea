"""One pass over an ONNX file by protobuf's wire format, without reading the tensors' bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casstore import _build
from casstore.tensors.onnx.schema import BYTES, CHILDREN, LEADS_ON, STEPS, TAGS, TYPED_FIELDS, VARINT, WIRES
from casstore.tensors.onnx.wire import FIELD_HEAD, MAX_NESTING, FieldReader, decoded
from casstore.tensors.span import MAX_DIMS, MAX_SPANS, Unrecognised

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casstore.tensors.onnx.schema import Tags
    from casstore.tensors.span import ByteSource

__all__ = ["FoundTensor", "Walk"]

MAX_EXTERNAL_ENTRIES = 64
# A model has few fields that are not known here; bytes of another format that pass for fields may have any number.
MAX_UNKNOWN_FIELDS = 1000


class FoundTensor(NamedTuple):
    """A TensorProto: `place` is the range of its bytes in this file, `external` says where else they are."""

    depth: int
    name: str
    data_type: int
    shape: tuple[int, ...]
    place: tuple[int, int] | None
    external: dict[str, str] | None


# Whole tags of fields of a tensor.
_DIM, _DATA_TYPE, _NAME = 1 << 3 | VARINT, 2 << 3 | VARINT, 8 << 3 | BYTES


class Walk(FieldReader):
    """One pass over a ModelProto, front to back."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__(source)
        self._tensors_left = MAX_SPANS
        self._found: list[FoundTensor] = []

    def tensors(self) -> list[FoundTensor]:
        """Return every tensor; raise Unrecognised as soon as the file turns out not to be a ModelProto."""
        seen = set()
        unknown = 0
        for number, _, begin, end in self.fields("Model", 0, self.window.size):
            if number in (1, 7) and number in seen:
                raise Unrecognised("two versions or graphs")
            seen.add(number)
            child = CHILDREN["Model"].get(number)
            if child is not None:
                self._message(child, begin, end, 1, "")
            elif number not in WIRES["Model"]:
                unknown += 1
                if unknown > MAX_UNKNOWN_FIELDS:
                    raise Unrecognised("absurdly many fields that are not known")
        if not {1, 7} <= seen:
            raise Unrecognised("no version or no graph")
        return self._found

    def _message(  # noqa: PLR0915  one loop: a call for each field takes most of the time
        self, kind: str, begin: int, end: int, depth: int, label: str
    ) -> None:
        """Collect the tensors of a message. What `fields` does is done here in place for fields of one common form."""
        if depth > MAX_NESTING:
            raise Unrecognised("absurdly deep nesting")
        if kind == "Tensor":
            self._found.append(self._tensor(begin, end, depth, label))
            return
        is_node = kind == "Node"
        if is_node:
            label = ""
        window, children, steps = self.window, CHILDREN[kind], STEPS[kind]
        data, base = window.data, window.base
        tags = TAGS.get(kind)
        left = self.left
        position = begin
        while position < end:
            index = position - base
            if not 0 <= index <= len(data) - FIELD_HEAD:
                index = window.seek(position, FIELD_HEAD)
                data, base = window.data, window.base
            if tags is not None:
                self.left = left
                behind = self._take_parts(data, base, position, end, tags, depth, label)
                left = self.left
                if behind > position:
                    position = behind
                    continue
            step = steps[data[index]] if index + 1 < len(data) and data[index + 1] < 0x80 else None
            if step is None:
                # Rare: a long number or payload, or a field that is not known here.
                self.left = left
                number, _, start, stop, position = self.field(kind, position, end)
                left = self.left
                child = children.get(number)
                named = is_node and number == 2
            else:
                left -= 1
                child, named = step
                start = position + 2
                position = stop = start + data[index + 1]
                if position > end:
                    raise Unrecognised("a field beyond its message")
            if child is not None:
                if child == "Attribute" and stop - start <= len(data) - FIELD_HEAD:
                    # Most attributes are numbers, text, or lists of them.
                    at = start - base
                    if (
                        at + stop - start <= len(data)
                        and LEADS_ON.search(data, at, at + stop - start) is None
                    ):
                        continue
                self.left = left
                self._message(child, start, stop, depth + 1, label)
                left = self.left
            elif named and not label:
                label = self.text(start, stop)
            if left < 0:
                raise Unrecognised("absurdly many fields")
        self.left = left

    def _take_parts(  # noqa: PLR0917  what the loop has at hand
        self, data: bytes, base: int, position: int, end: int, tags: Tags, depth: int, label: str
    ) -> int:
        """Collect the tensors of the parts of a common form that come next, nearly all of a graph; return where they end.

        Compiled kernels do what `_message` does, and leave to it what it would read on for.
        """
        # Tensors in attributes of nodes are three levels further down.
        if _build.kernels is None or depth + 3 > MAX_NESTING:
            return position
        whole = len(data) - (0 if base + len(data) >= self.window.size else FIELD_HEAD)
        behind, self.left, tensors = _build.kernels.onnx_parts(
            data,
            position - base,
            end - base,
            whole,
            base,
            tags,
            depth,
            self.left,
            self._tensors_left,
        )
        self._tensors_left -= len(tensors)
        found: Iterable[FoundTensor] = map(FoundTensor._make, tensors)
        if label:
            # In a graph of an attribute: what is in nodes of its own does not go by it.
            found = (
                item._replace(name=label) if item.depth == depth + 1 and not item.name else item
                for item in found
            )
        self._found += found
        return base + behind

    def _take_tensor(self, begin: int, end: int, depth: int, label: str) -> FoundTensor | None:
        """Return a tensor of a common form, None where it is for `_tensor` to read, as without compiled kernels."""
        if _build.kernels is None or begin >= end:
            return None
        window = self.window
        index = window.seek(begin, FIELD_HEAD)
        data, base = window.data, window.base
        whole = len(data) - (0 if base + len(data) >= self.window.size else FIELD_HEAD)
        taken = _build.kernels.onnx_tensor(data, index, index + end - begin, whole, base, depth, self.left)
        if taken is None:
            return None
        self.left, (found,) = taken
        tensor = FoundTensor._make(found)
        return tensor if tensor.name else tensor._replace(name=label)

    def _tensor(  # noqa: PLR0915  one loop: a call for each field takes most of the time
        self, begin: int, end: int, depth: int, label: str
    ) -> FoundTensor:
        self._tensors_left -= 1
        if self._tensors_left < 0:
            raise Unrecognised("too many tensors")
        taken = self._take_tensor(begin, end, depth, label)
        if taken is not None:
            return taken
        name, data_type, external_location = label, 0, 0
        shape: list[int] = []
        places: dict[int, tuple[int, int]] = {}
        entries: dict[str, str] = {}
        window = self.window
        data, base = window.data, window.base
        position = begin
        while position < end:
            index = position - base
            if not 0 <= index <= len(data) - FIELD_HEAD:
                index = window.seek(position, FIELD_HEAD)
                data, base = window.data, window.base
            if index + 1 < len(data) and data[index + 1] < 0x80 and position + 2 <= end:
                # Small numbers and short names, done in place: most dimensions, the type, most names.
                tag, value = data[index], data[index + 1]
                if tag == _DIM and len(shape) < MAX_DIMS:
                    shape.append(value)
                    self.left -= 1
                    position += 2
                    continue
                if tag == _DATA_TYPE:
                    data_type = value
                    self.left -= 1
                    position += 2
                    continue
                if tag == _NAME and position + 2 + value <= end and index + 2 + value <= len(data):
                    text = data[index + 2 : index + 2 + value]
                    name = (text.decode() if text.isascii() else decoded(text)) or label
                    self.left -= 1
                    position += 2 + value
                    continue
            number, wire, start, stop, position = self.field("Tensor", position, end)
            if number == 1:
                shape += self.packed(start, stop) if wire == BYTES else [start]
                if len(shape) > MAX_DIMS:
                    raise Unrecognised("too many dimensions")
            elif number == 2:
                data_type = _number(wire, start)
            elif number == 8:
                name = self.text(start, stop, wire) or label
            elif number in (4, 9, 10) and wire == BYTES:
                if number in places:
                    raise Unrecognised("a tensor's bytes in pieces")
                places[number] = (start, stop)
            elif number == 13:
                self._external_entry(entries, wire, start, stop)
            elif number == 14:
                external_location = _number(wire, start)
        place = places.get(9) or places.get(TYPED_FIELDS.get(data_type, 9))
        return FoundTensor(
            depth, name, data_type, tuple(shape), place, entries if external_location == 1 else None
        )

    def _external_entry(self, entries: dict[str, str], wire: int, begin: int, end: int) -> None:
        if wire != BYTES or len(entries) >= MAX_EXTERNAL_ENTRIES:
            raise Unrecognised("absurd external data")
        key = value = ""
        for number, inner, start, stop in self.fields("Entry", begin, end):
            if number == 1:
                key = self.text(start, stop, inner)
            elif number == 2:
                value = self.text(start, stop, inner)
        entries[key] = value


def _number(wire: int, value: int) -> int:
    if wire != VARINT:
        raise Unrecognised("a number of another wire type")
    return value
