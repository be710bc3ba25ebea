"""npy: one numpy array in a file, versions 1 to 3.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. The header is a Python literal; it is
matched by a pattern, never evaluated.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from casstore.tensors.dtypes import DTYPES
from casstore.tensors.span import MAX_DIMS, TensorSpan, Unrecognised
from casstore.tensors.window import read_exactly

if TYPE_CHECKING:
    from casstore.tensors.span import ByteSource

__all__ = ["MAGIC", "NAME", "spans"]

MAGIC = b"\x93NUMPY"
NAME = "array"
MAX_HEADER_BYTES = 64 << 10

_ENTRY = re.compile(
    rb"\s*'(?:(?P<key_descr>descr)'\s*:\s*'(?P<descr>[<>|][a-zA-Z][0-9]{1,8}(?:\[[0-9a-zA-Z]{1,8}\])?)'"
    rb"|(?P<key_order>fortran_order)'\s*:\s*(?P<order>True|False)"
    rb"|(?P<key_shape>shape)'\s*:\s*\((?P<shape>[0-9, L]*)\))\s*(?:,|(?=\}))"
)
_BRACES = re.compile(rb"\{(?P<body>.*)\}[ \n]*", re.DOTALL)
_SIZE = re.compile(r"[<>|][a-zA-Z]([0-9]+)")
# Only types that numpy itself means: what others store as raw integers is integers here.
_NUMPY_TYPES = (
    "F64",
    "F32",
    "F16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U64",
    "U32",
    "U16",
    "U8",
    "BOOL",
    "C128",
    "C64",
)
_BY_DESCR = {DTYPES[name].numpy: name for name in _NUMPY_TYPES}


def spans(source: ByteSource) -> list[TensorSpan]:
    """Return the one array of the file, or raise Unrecognised.

    It is named `array`. An array in Fortran order lies in the file as its transpose does in C order: that
    is recorded, as `array.T` with the dimensions reversed, so that reading it gives what the name says. Types
    without a tensor type here (big-endian numbers, text, dates) become a run of U8.
    """
    version, body = _header(source)
    descr, fortran, shape = _fields(body)
    start = version + len(body)
    size = _SIZE.match(descr)
    if size is None or descr[1] == "O":
        raise Unrecognised("an array of objects")
    # A unicode array counts characters, four bytes each.
    width = int(size[1]) * (4 if descr[1] == "U" else 1)
    length = math.prod(shape) * width
    dtype = _BY_DESCR.get(descr)
    if dtype is None:
        return [TensorSpan(NAME, "U8", (length,), start, start + length)]
    if fortran and len(shape) > 1:
        return [TensorSpan(f"{NAME}.T", dtype, shape[::-1], start, start + length)]
    return [TensorSpan(NAME, dtype, shape, start, start + length)]


def _header(source: ByteSource) -> tuple[int, bytes]:
    head = read_exactly(source, 0, 10)
    if head[:6] != MAGIC or head[6] not in (1, 2, 3) or head[7] != 0:
        raise Unrecognised("no npy version that is known")
    begin = 10 if head[6] == 1 else 12
    length = int.from_bytes(read_exactly(source, 8, begin - 8), "little")
    if length > MAX_HEADER_BYTES:
        raise Unrecognised("an absurd header")
    return begin, read_exactly(source, begin, length)


def _fields(header: bytes) -> tuple[str, bool, tuple[int, ...]]:
    braces = _BRACES.fullmatch(header)
    if braces is None:
        raise Unrecognised("a header that is no dict")
    found: dict[str, bytes] = {}
    position, end = braces.span("body")
    while header[position:end].strip():
        entry = _ENTRY.match(header, position, end + 1)
        if entry is None or entry.lastgroup is None:
            raise Unrecognised("a header with other keys")
        for key in ("descr", "order", "shape"):
            if entry[f"key_{key}"] is not None:
                if key in found:
                    raise Unrecognised("a key twice")
                found[key] = entry[key]
        position = entry.end()
    if len(found) != 3:
        raise Unrecognised("a header without a type, order or shape")
    dims = [part.strip(b" L") for part in found["shape"].split(b",")]
    if dims[-1] == b"":
        dims.pop()
    if len(dims) > MAX_DIMS or not all(part.isdigit() and len(part) <= 20 for part in dims):
        raise Unrecognised("an absurd shape")
    return found["descr"].decode(), found["order"] == b"True", tuple(map(int, dims))
