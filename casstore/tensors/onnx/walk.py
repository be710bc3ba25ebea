"""One pass over an ONNX file by protobuf's wire format, without reading the tensors' bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from casstore import _build
from casstore.tensors.onnx.schema import (
    BYTES,
    CHILDREN,
    FIXED32,
    FIXED64,
    GROUP,
    GROUP_END,
    TYPED_FIELDS,
    VARINT,
    WIRES,
)
from casstore.tensors.span import MAX_DIMS, MAX_NAME_BYTES, MAX_SPANS, Unrecognised
from casstore.tensors.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.tensors.span import ByteSource

__all__ = ["FoundTensor", "Walk"]

MAX_NESTING = 16
# Fields looked at in one file; a graph of 100,000 nodes has about a million.
MAX_FIELDS = 4_000_000
MAX_EXTERNAL_ENTRIES = 64
MAX_CONTEXT_FILES = 4096
# Protobuf's own limit. Fields that are not known here are stepped over, whatever their number.
MAX_FIELD_NUMBER = (1 << 29) - 1
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
# Two varints of ten bytes: the head of a field.
_FIELD_HEAD = 20


def _steps(kind: str) -> list[tuple[str | None, bool] | None]:
    """Return for each first byte of a field of a message: the message that it holds, and whether it names a node.

    None where the byte is not the whole tag of a known, length-delimited field.
    """
    steps: list[tuple[str | None, bool] | None] = [None] * 256
    known = {number for number, wire in WIRES.get(kind, {}).items() if wire == BYTES} | set(CHILDREN[kind])
    for number in known:
        if number < 16:
            steps[number << 3 | BYTES] = (CHILDREN[kind].get(number), kind == "Node" and number == 2)
    return steps


def _first_byte(number: int) -> int:
    """Return the first byte of the tag of a length-delimited field."""
    tag = number << 3 | BYTES
    return tag if tag < 0x80 else tag & 0x7F | 0x80


# The whole tags of the nodes of a message.
_NODE_TAGS = {
    kind: number << 3 | BYTES
    for kind, children in CHILDREN.items()
    for number, child in children.items()
    if child == "Node"
}
_STEPS = {kind: _steps(kind) for kind in CHILDREN}
# The first bytes of the fields that lead from an attribute to a tensor.
_LEADS_ON = re.compile(b"[%b]" % re.escape(bytes({_first_byte(number) for number in CHILDREN["Attribute"]})))


class Walk:
    """One pass over a ModelProto, front to back."""

    def __init__(self, source: ByteSource) -> None:
        self._window = Window(source)
        self._size = source.size
        self._fields_left = MAX_FIELDS
        self._tensors_left = MAX_SPANS
        self._found: list[FoundTensor] = []

    def tensors(self) -> list[FoundTensor]:
        """Return every tensor; raise Unrecognised as soon as the file turns out not to be a ModelProto."""
        seen = set()
        unknown = 0
        for number, _, begin, end in self._fields("Model", 0, self._size):
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

    def contexts(self) -> Iterator[str]:
        """Yield the text of each EPContext node of the main graph; raise Unrecognised as `tensors` does."""
        left = MAX_CONTEXT_FILES
        for number, _, begin, end in self._fields("Model", 0, self._size):
            if number != 7:
                continue
            for inner, _, start, stop in self._fields("Graph", begin, end):
                text = self._context(start, stop) if inner == 1 else None
                if text is not None:
                    left -= 1
                    if left < 0:
                        raise Unrecognised("absurdly many contexts")
                    yield text

    def _context(self, begin: int, end: int) -> str | None:
        kind, attributes = "", []
        for number, _, start, stop in self._fields("Node", begin, end):
            if number == 4:
                kind = self._text(start, stop)
            elif number == 5:
                attributes.append((start, stop))
        if kind != "EPContext":
            return None
        for start, stop in attributes:
            name, place = "", None
            for number, wire, first, last in self._fields("Attribute", start, stop):
                if number == 1:
                    name = self._text(first, last, wire)
                elif number == 4 and wire == BYTES:
                    place = (first, last)
            if name == "ep_cache_context" and place is not None and place[1] - place[0] <= MAX_NAME_BYTES:
                try:
                    return self._window.take(place[0], place[1] - place[0]).decode()
                except UnicodeDecodeError:
                    return None  # The compiled bytes themselves.
        return None

    def _message(  # noqa: PLR0915  one loop: a call for each field takes most of the time
        self, kind: str, begin: int, end: int, depth: int, label: str
    ) -> None:
        """Collect the tensors of a message. What `_fields` does is done here in place for fields of one common form."""
        if depth > MAX_NESTING:
            raise Unrecognised("absurdly deep nesting")
        if kind == "Tensor":
            self._found.append(self._tensor(begin, end, depth, label))
            return
        is_node = kind == "Node"
        if is_node:
            label = ""
        window, children, steps = self._window, CHILDREN[kind], _STEPS[kind]
        data, base = window.data, window.base
        node_tag = _NODE_TAGS.get(kind)
        left = self._fields_left
        position = begin
        while position < end:
            index = position - base
            if not 0 <= index <= len(data) - _FIELD_HEAD:
                index = window.seek(position, _FIELD_HEAD)
                data, base = window.data, window.base
            if index < len(data) and data[index] == node_tag:
                self._fields_left = left
                behind = self._take_nodes(data, base, position, end, node_tag, depth)
                left = self._fields_left
                if behind > position:
                    position = behind
                    continue
            step = steps[data[index]] if index + 1 < len(data) and data[index + 1] < 0x80 else None
            if step is None:
                # Rare: a long number or payload, or a field that is not known here.
                self._fields_left = left
                number, _, start, stop, position = self._field(kind, position, end)
                left = self._fields_left
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
                if child == "Attribute" and stop - start <= len(data) - _FIELD_HEAD:
                    # Most attributes are numbers, text, or lists of them.
                    at = start - base
                    if (
                        at + stop - start <= len(data)
                        and _LEADS_ON.search(data, at, at + stop - start) is None
                    ):
                        continue
                self._fields_left = left
                self._message(child, start, stop, depth + 1, label)
                left = self._fields_left
            elif named and not label:
                label = self._text(start, stop)
            if left < 0:
                raise Unrecognised("absurdly many fields")
        self._fields_left = left

    def _take_nodes(  # noqa: PLR0917  what the loop has at hand
        self, data: bytes, base: int, position: int, end: int, tag: int, depth: int
    ) -> int:
        """Collect the tensors of the nodes of a common form that come next, nearly all of a graph; return where they end.

        At `position` is a node, whose field has this tag. Without compiled kernels, none are taken.
        """
        # Tensors in attributes of nodes are three levels further down.
        if _build.kernels is None or depth + 3 > MAX_NESTING:
            return position
        # Where so few bytes are left, the loop moves the window first.
        spare = 0 if base + len(data) >= self._size else _FIELD_HEAD
        whole = min(end - base, len(data) - spare)
        if whole <= position - base:
            return position
        behind, fields, tensors = _build.kernels.skip_nodes(data, position - base, whole, tag)
        self._fields_left -= fields
        for first, last, *name in tensors:
            label = data[slice(*name)].decode()
            self._found.append(self._tensor(base + first, base + last, depth + 3, label))
        if self._fields_left < 0:
            raise Unrecognised("absurdly many fields")
        return base + behind

    def _tensor(  # noqa: PLR0915  one loop: a call for each field takes most of the time
        self, begin: int, end: int, depth: int, label: str
    ) -> FoundTensor:
        self._tensors_left -= 1
        if self._tensors_left < 0:
            raise Unrecognised("too many tensors")
        name, data_type, external_location = label, 0, 0
        shape: list[int] = []
        places: dict[int, tuple[int, int]] = {}
        entries: dict[str, str] = {}
        window = self._window
        data, base = window.data, window.base
        position = begin
        while position < end:
            index = position - base
            if not 0 <= index <= len(data) - _FIELD_HEAD:
                index = window.seek(position, _FIELD_HEAD)
                data, base = window.data, window.base
            if index + 1 < len(data) and data[index + 1] < 0x80 and position + 2 <= end:
                # Small numbers and short names, done in place: most dimensions, the type, most names.
                tag, value = data[index], data[index + 1]
                if tag == _DIM and len(shape) < MAX_DIMS:
                    shape.append(value)
                    self._fields_left -= 1
                    position += 2
                    continue
                if tag == _DATA_TYPE:
                    data_type = value
                    self._fields_left -= 1
                    position += 2
                    continue
                if tag == _NAME and position + 2 + value <= end and index + 2 + value <= len(data):
                    text = data[index + 2 : index + 2 + value]
                    name = (text.decode() if text.isascii() else _decoded(text)) or label
                    self._fields_left -= 1
                    position += 2 + value
                    continue
            number, wire, start, stop, position = self._field("Tensor", position, end)
            if number == 1:
                shape += self._packed(start, stop) if wire == BYTES else [start]
                if len(shape) > MAX_DIMS:
                    raise Unrecognised("too many dimensions")
            elif number == 2:
                data_type = self._number(wire, start)
            elif number == 8:
                name = self._text(start, stop, wire) or label
            elif number in (4, 9, 10) and wire == BYTES:
                if number in places:
                    raise Unrecognised("a tensor's bytes in pieces")
                places[number] = (start, stop)
            elif number == 13:
                self._external_entry(entries, wire, start, stop)
            elif number == 14:
                external_location = self._number(wire, start)
        place = places.get(9) or places.get(TYPED_FIELDS.get(data_type, 9))
        return FoundTensor(
            depth, name, data_type, tuple(shape), place, entries if external_location == 1 else None
        )

    def _external_entry(self, entries: dict[str, str], wire: int, begin: int, end: int) -> None:
        if wire != BYTES or len(entries) >= MAX_EXTERNAL_ENTRIES:
            raise Unrecognised("absurd external data")
        key = value = ""
        for number, inner, start, stop in self._fields("Entry", begin, end):
            if number == 1:
                key = self._text(start, stop, inner)
            elif number == 2:
                value = self._text(start, stop, inner)
        entries[key] = value

    def _fields(self, kind: str, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (number, wire type, begin, end) of each field; a varint comes as (number, 0, value, 0)."""
        position = begin
        while position < end:
            number, wire, start, stop, position = self._field(kind, position, end)
            yield number, wire, start, stop

    def _field(self, kind: str, position: int, end: int) -> tuple[int, int, int, int, int]:
        """Return number, wire type, begin and end of the field at `position`, and the position behind it."""
        self._fields_left -= 1
        if self._fields_left < 0:
            raise Unrecognised("absurdly many fields")
        # The window holds what was last looked at, so that this is a look-up nearly always.
        index = first = self._window.seek(position, _FIELD_HEAD)
        data = self._window.data
        # Nearly all varints are of one byte, and there are several for each node of a graph.
        tag = data[index] if index < len(data) else 0x80
        if tag < 0x80:
            index += 1
        else:
            tag, index = _varint(data, index)
        number, wire = tag >> 3, tag & 7
        if not 0 < number <= MAX_FIELD_NUMBER or WIRES.get(kind, {}).get(number, wire) != wire:
            raise Unrecognised("no such field")
        if number in CHILDREN.get(kind, {}) and wire != BYTES:
            raise Unrecognised("a message of another wire type")
        if wire in (VARINT, BYTES):
            value = data[index] if index < len(data) else 0x80
            if value < 0x80:
                index += 1
            else:
                value, index = _varint(data, index)
        elif wire in (FIXED64, FIXED32):
            value = 8 if wire == FIXED64 else 4
        elif wire == GROUP:
            start = position + index - first
            stop = self._group_end(number, start, end)
            return number, wire, start, stop, stop
        else:
            raise Unrecognised("no such wire type")
        start = position + index - first
        stop = start if wire == VARINT else start + value
        if stop > end:
            raise Unrecognised("a field beyond its message")
        return (number, wire, value, 0, stop) if wire == VARINT else (number, wire, start, stop, stop)

    def _group_end(self, number: int, position: int, end: int) -> int:
        """Return the position behind a group, protobuf's old form of a message, that nothing here knows."""
        open_groups = [number]
        while open_groups:
            if position >= end or len(open_groups) > MAX_NESTING:
                raise Unrecognised("a group without an end")
            data = self._window.take(position, min(5, end - position))
            tag, length = _varint(data, 0)
            if tag & 7 == GROUP:
                open_groups.append(tag >> 3)
            elif tag & 7 == GROUP_END:
                if open_groups.pop() != tag >> 3:
                    raise Unrecognised("a group that ends as another")
            else:
                length = self._field("", position, end)[-1] - position
            position += length
        return position

    def _packed(self, begin: int, end: int) -> list[int]:
        if end - begin > 10 * MAX_DIMS:
            raise Unrecognised("too many dimensions")
        data = self._window.take(begin, end - begin)
        values, index = [], 0
        while index < len(data):
            value, index = _varint(data, index)
            values.append(value)
        return values

    def _number(self, wire: int, value: int) -> int:
        if wire != VARINT:
            raise Unrecognised("a number of another wire type")
        return value

    def _text(self, begin: int, end: int, wire: int = BYTES) -> str:
        if wire != BYTES or end - begin > MAX_NAME_BYTES:
            raise Unrecognised("an absurd name")
        return _decoded(self._window.take(begin, end - begin))


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise Unrecognised("a name that is not UTF-8") from error


def _varint(data: bytes, index: int) -> tuple[int, int]:
    """Return the varint at `index` and the index behind it."""
    value = shift = 0
    for byte in data[index : index + 10]:
        index += 1
        if byte < 0x80:
            return (value | byte << shift) & 0xFFFF_FFFF_FFFF_FFFF, index
        value |= (byte & 0x7F) << shift
        shift += 7
    raise Unrecognised("a number without an end")
