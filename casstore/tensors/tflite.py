"""TFLite: a flatbuffer whose tensors name buffers, walked by its offsets without reading the buffers.

Source: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs and
https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from casstore.tensors.dtypes import DTYPES
from casstore.tensors.span import MAX_DIMS, MAX_NAME_BYTES, MAX_SPANS, TensorSpan, UniqueNames, Unrecognised
from casstore.tensors.window import Pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.tensors.span import ByteSource

__all__ = ["matches", "spans"]

_IDENTIFIER = b"TFL3"
MAX_SUBGRAPHS = 65_536

# TensorType; strings (5), resources and variants have no fixed size.
_TYPES = {
    0: "F32",
    1: "F16",
    2: "I32",
    3: "U8",
    4: "I64",
    6: "BOOL",
    7: "I16",
    8: "C64",
    9: "I8",
    10: "F64",
    11: "C128",
    12: "U64",
    15: "U32",
    16: "U16",
    17: "I4",
    18: "BF16",
    19: "I2",
    20: "U4",
}
# Fields by their numbers in the schema.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS = 0
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME = range(4)
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = range(3)

_U8, _U16, _U32, _U64 = map(struct.Struct, ("<B", "<H", "<I", "<Q"))


def matches(head: bytes) -> bool:
    """Say whether a file that starts with `head` is one."""
    return head[4:8] == _IDENTIFIER


def spans(source: ByteSource) -> list[TensorSpan]:
    """Return the tensors whose bytes are in the file, or raise Unrecognised.

    Tensors of several subgraphs may share a buffer. One whose type has no fixed size, or whose buffer is not of its shape's
    size (sparse or compressed weights), is U8. A tensor without a name is named `buffer/<n>`; a name that
    occurs again gets a number.
    """
    walk = _Walk(source)
    names = UniqueNames()
    found = []
    for name, kind, shape, number in walk.tensors():
        begin, length = walk.buffer(number)
        if length == 0:
            continue
        dtype = _TYPES.get(kind)
        span = TensorSpan(name or f"buffer/{number}", "U8", (length,), begin, begin + length)
        if dtype is not None and DTYPES[dtype].byte_length(shape) == length:
            span = span._replace(dtype=dtype, shape=shape)
        found.append(span._replace(name=names.claim(span.name)))
    return found


class _Walk:
    """Follows the offsets of one file: a table's first number leads back to the places of its fields."""

    def __init__(self, source: ByteSource) -> None:
        self._pages = Pages(source)
        self._number = self._pages.number
        self._last = (-1, 0, 0)
        self._model = self._number(_U32, 0)
        self._buffers = self._vector(self._model, _MODEL_BUFFERS)
        self._known: dict[int, tuple[int, int]] = {}

    def tensors(self) -> Iterator[tuple[str, int, tuple[int, ...], int]]:
        """Yield name, type number, shape and number of the buffer of each tensor that has a buffer."""
        subgraphs, count = self._vector(self._model, _MODEL_SUBGRAPHS)
        if count > MAX_SUBGRAPHS:
            raise Unrecognised("absurdly many subgraphs")
        left = MAX_SPANS
        for index in range(count):
            tensors, inside = self._vector(self._at(subgraphs + 4 * index), _SUBGRAPH_TENSORS)
            left -= inside
            if left < 0:
                raise Unrecognised("too many tensors")
            for item in range(inside):
                tensor = self._at(tensors + 4 * item)
                buffer = self._field_number(tensor, _TENSOR_BUFFER, _U32)
                # Buffer 0 is empty: it is that of everything that is computed.
                if buffer:
                    kind = self._field_number(tensor, _TENSOR_TYPE, _U8)
                    yield self._name(tensor), kind, self._shape(tensor), buffer

    def buffer(self, number: int) -> tuple[int, int]:
        """Return the begin and length of a buffer's bytes."""
        known = self._known.get(number)
        if known is None:
            known = self._known[number] = self._find_buffer(number)
        return known

    def _find_buffer(self, number: int) -> tuple[int, int]:
        first, count = self._buffers
        if number >= count:
            raise Unrecognised("no such buffer")
        table = self._at(first + 4 * number)
        begin, length = self._vector(table, _BUFFER_DATA, width=1)
        if length == 0:
            # Models of over 2 GB keep buffers behind the flatbuffer. An offset of one and a size of one are placeholders.
            begin = self._field_number(table, _BUFFER_OFFSET, _U64)
            length = self._field_number(table, _BUFFER_SIZE, _U64)
            if begin <= 1 or length <= 1:
                return 0, 0
        if begin + length > self._pages.size:
            raise Unrecognised("a buffer outside the file")
        return begin, length

    def _name(self, tensor: int) -> str:
        begin, length = self._vector(tensor, _TENSOR_NAME, width=1)
        if length > MAX_NAME_BYTES:
            raise Unrecognised("an absurd name")
        try:
            return self._pages.take(begin, length).decode()
        except UnicodeDecodeError as error:
            raise Unrecognised("a name that is not UTF-8") from error

    def _shape(self, tensor: int) -> tuple[int, ...]:
        begin, count = self._vector(tensor, _TENSOR_SHAPE)
        if count > MAX_DIMS:
            raise Unrecognised("too many dimensions")
        shape = struct.unpack(f"<{count}i", self._pages.take(begin, 4 * count))
        if min(shape, default=0) < 0:
            raise Unrecognised("a negative dimension")
        return shape

    def _at(self, position: int) -> int:
        """Return where the offset at `position` leads."""
        return position + self._number(_U32, position)

    def _field(self, table: int, number: int) -> int | None:
        """Return the place of a table's field, None where the table has its default."""
        # The fields of a tensor are looked up one after the other.
        if self._last[0] != table:
            self._last = (table, *self._places(table))
        _, places, size = self._last
        slot = 4 + 2 * number
        if slot + 2 > size:
            return None
        offset = self._number(_U16, places + slot)
        return table + offset if offset else None

    def _places(self, table: int) -> tuple[int, int]:
        """Return where the list of the places of a table's fields begins, and its size in bytes."""
        back = self._number(_U32, table)
        # A signed number: tables of one form share one list, before or behind them.
        places = table - (back - (1 << 32) if back >= 1 << 31 else back)
        return places, self._number(_U16, places)

    def _field_number(self, table: int, number: int, form: struct.Struct) -> int:
        place = self._field(table, number)
        return 0 if place is None else self._number(form, place)

    def _vector(self, table: int, number: int, *, width: int = 4) -> tuple[int, int]:
        """Return where the items of a table's vector begin, and how many there are; each takes `width` bytes."""
        place = self._field(table, number)
        if place is None:
            return 0, 0
        begin = self._at(place)
        count = self._number(_U32, begin)
        if begin + 4 + count * width > self._pages.size:
            raise Unrecognised("a vector outside the file")
        return begin + 4, count
