"""The fields of one protobuf file, read through a window, as far as an ONNX file may have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.tensors.onnx.schema import BYTES, CHILDREN, FIXED32, FIXED64, GROUP, GROUP_END, VARINT, WIRES
from casstore.tensors.span import MAX_DIMS, MAX_NAME_BYTES, Unrecognised
from casstore.tensors.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.tensors.span import ByteSource

__all__ = ["FIELD_HEAD", "MAX_NESTING", "FieldReader", "decoded"]

MAX_NESTING = 16
# Fields looked at in one file; a graph of 100,000 nodes has about a million.
MAX_FIELDS = 4_000_000
# Protobuf's own limit. Fields that are not known here are stepped over, whatever their number.
MAX_FIELD_NUMBER = (1 << 29) - 1
# Two varints of ten bytes: the head of a field.
FIELD_HEAD = 20


class FieldReader:
    """Reads fields one after the other, and counts them; raises Unrecognised for what is no field."""

    def __init__(self, source: ByteSource) -> None:
        self.window = Window(source)
        self.left = MAX_FIELDS

    def fields(self, kind: str, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (number, wire type, begin, end) of each field; a varint comes as (number, 0, value, 0)."""
        position = begin
        while position < end:
            number, wire, start, stop, position = self.field(kind, position, end)
            yield number, wire, start, stop

    def field(self, kind: str, position: int, end: int) -> tuple[int, int, int, int, int]:
        """Return number, wire type, begin and end of the field at `position`, and the position behind it."""
        self.left -= 1
        if self.left < 0:
            raise Unrecognised("absurdly many fields")
        # The window holds what was last looked at, so that this is a look-up nearly always.
        index = first = self.window.seek(position, FIELD_HEAD)
        data = self.window.data
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
            data = self.window.take(position, min(5, end - position))
            tag, length = _varint(data, 0)
            if tag & 7 == GROUP:
                open_groups.append(tag >> 3)
            elif tag & 7 == GROUP_END:
                if open_groups.pop() != tag >> 3:
                    raise Unrecognised("a group that ends as another")
            else:
                length = self.field("", position, end)[-1] - position
            position += length
        return position

    def packed(self, begin: int, end: int) -> list[int]:
        """Return the dimensions of a tensor, written as varints in one field."""
        if end - begin > 10 * MAX_DIMS:
            raise Unrecognised("too many dimensions")
        data = self.window.take(begin, end - begin)
        values, index = [], 0
        while index < len(data):
            value, index = _varint(data, index)
            values.append(value)
        return values

    def text(self, begin: int, end: int, wire: int = BYTES) -> str:
        """Return the text in a field of this wire type."""
        if wire != BYTES or end - begin > MAX_NAME_BYTES:
            raise Unrecognised("an absurd name")
        return decoded(self.window.take(begin, end - begin))


def decoded(text: bytes) -> str:
    """Return text, or raise Unrecognised."""
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
