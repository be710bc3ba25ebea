"""GGUF versions 2 and 3: metadata, tensor table, aligned tensor data.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Version 1 is unknown here. Version 3 may be big-endian,
tensors included: it says so only by how its version reads.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from casstore.tensors.dtypes import DTYPES
from casstore.tensors.span import MAX_DIMS, MAX_NAME_BYTES, MAX_SPANS, TensorSpan, Unrecognised
from casstore.tensors.window import Window, read_exactly

if TYPE_CHECKING:
    from casstore.tensors.span import ByteSource

__all__ = ["MAGIC", "spans"]

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 256 << 20
MAX_METADATA = 1 << 16
# Strings in metadata arrays, over all arrays: a vocabulary and its merges are under a million.
MAX_STRINGS = 4_000_000
MAX_ARRAY_DEPTH = 16
MAX_ALIGNMENT = 1 << 20

# The type numbers of ggml; gaps are types that were withdrawn.
_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
# Bytes of each metadata value type that has a fixed size; 8 is a string, 9 an array.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4


class _Forms:
    """The numbers of a header in one byte order."""

    def __init__(self, order: str) -> None:
        self.u32 = struct.Struct(f"{order}I")
        self.u64 = struct.Struct(f"{order}Q")
        self.prefix = struct.Struct(f"{order}4sIQQ")
        self.array_head = struct.Struct(f"{order}IQ")
        self.entry_tails = [struct.Struct(f"{order}{dims}QIQ") for dims in range(MAX_DIMS + 1)]


_LITTLE, _BIG = _Forms("<"), _Forms(">")


def spans(source: ByteSource) -> list[TensorSpan]:
    """Return the tensors that the table lists, or raise Unrecognised.

    Shapes are in numpy's order, the slowest dimension first. A tensor of a type that is not known here is a run of U8
    up to the next tensor. In a big-endian file every tensor is U8, unless its elements are single bytes.
    """
    big = read_exactly(source, len(MAGIC), 4) == b"\0\0\0\3"
    header = _Header(source, _BIG if big else _LITTLE)
    magic, version, tensors, metadata = header.unpack(header.forms.prefix)
    if magic != MAGIC or version not in (2, 3) or tensors > MAX_SPANS or metadata > MAX_METADATA:
        raise Unrecognised("no GGUF version that is known")
    alignment = 32
    for _ in range(metadata):
        alignment = header.metadata(alignment)
    entries = [header.tensor() for _ in range(tensors)]
    start = -(-header.position // alignment) * alignment
    found = _located(entries, start, alignment, source.size)
    return [_as_bytes(span) for span in found] if big else found


class _Header:
    """Reads the header from front to back."""

    def __init__(self, source: ByteSource, forms: _Forms) -> None:
        self.forms = forms
        self._window = Window(source)
        self._strings = 0
        self.position = 0

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self._bytes(form.size))

    def metadata(self, alignment: int) -> int:
        """Step over one key and value; return the alignment that holds from there on."""
        key = self._string()
        (kind,) = self.unpack(self.forms.u32)
        if key == b"general.alignment":
            if kind != _UINT32:
                raise Unrecognised("an alignment that is no number")
            (alignment,) = self.unpack(self.forms.u32)
            if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
                raise Unrecognised("an absurd alignment")
        else:
            self._skip_value(kind, 0)
        return alignment

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Return one entry of the table: name, type number, shape, offset."""
        try:
            name = self._string().decode()
        except UnicodeDecodeError as error:
            raise Unrecognised("a name that is not UTF-8") from error
        (count,) = self.unpack(self.forms.u32)
        if count > MAX_DIMS:
            raise Unrecognised("too many dimensions")
        *dims, kind, offset = self.unpack(self.forms.entry_tails[count])
        return name, kind, tuple(reversed(dims)), offset

    def _bytes(self, length: int) -> bytes:
        data = self._window.take(self.position, length)
        self._advance(length)
        return data

    def _advance(self, length: int) -> None:
        self.position += length
        if self.position > min(MAX_HEADER_BYTES, self._window.size):
            raise Unrecognised("an absurd header")

    def _string(self) -> bytes:
        (length,) = self.unpack(self.forms.u64)
        if length > MAX_NAME_BYTES:
            raise Unrecognised("an absurd name")
        return self._bytes(length)

    def _skip_value(self, kind: int, depth: int) -> None:
        if kind in _VALUE_BYTES:
            self._advance(_VALUE_BYTES[kind])
        elif kind == _STRING:
            self._skip_strings(1)
        elif kind == _ARRAY:
            self._skip_array(depth + 1)
        else:
            raise Unrecognised("an unknown kind of metadata")

    def _skip_array(self, depth: int) -> None:
        kind, count = self.unpack(self.forms.array_head)
        if kind in _VALUE_BYTES:
            self._advance(count * _VALUE_BYTES[kind])
        elif kind == _STRING:
            self._skip_strings(count)
        elif kind == _ARRAY and depth < MAX_ARRAY_DEPTH:
            self._count(count)
            for _ in range(count):
                self._skip_array(depth + 1)
        else:
            raise Unrecognised("an unknown kind of metadata")

    def _skip_strings(self, count: int) -> None:
        self._count(count)
        window, unpack = self._window, self.forms.u64.unpack_from
        # A vocabulary has hundreds of thousands: the inner loop makes one call for each.
        while count:
            index = window.seek(self.position, 8)
            data, last = window.data, len(window.data) - 8
            if index > last:
                raise Unrecognised("cut short")
            begin = index
            while count and index <= last:
                index += 8 + unpack(data, index)[0]
                count -= 1
            self._advance(index - begin)

    def _count(self, count: int) -> None:
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise Unrecognised("absurdly many strings")


def _as_bytes(span: TensorSpan) -> TensorSpan:
    """Return the span of a tensor whose bytes are not in the order that its type stands for."""
    known = DTYPES[span.dtype]
    if known.block_bytes == known.block_elements == 1:
        return span
    return span._replace(dtype="U8", shape=(span.end - span.begin,))


def _located(
    entries: list[tuple[str, int, tuple[int, ...], int]], start: int, alignment: int, size: int
) -> list[TensorSpan]:
    # The end of a tensor of an unknown type is the next begin; a set keeps equal offsets from making it empty.
    begins = sorted({start + offset for _, _, _, offset in entries} | {max(start, size)})
    following = dict(pairwise(begins))
    found = []
    for name, kind, shape, offset in entries:
        begin = start + offset
        if offset % alignment or begin > size:
            raise Unrecognised("a tensor that is not aligned or outside the file")
        dtype = _TYPES.get(kind)
        if dtype is None:
            end = following.get(begin, begin)
            found.append(TensorSpan(name, "U8", (end - begin,), begin, end))
            continue
        length = DTYPES[dtype].byte_length(shape)
        if length is None:
            raise Unrecognised("rows that are not whole blocks")
        found.append(TensorSpan(name, dtype, shape, begin, begin + length))
    return found
