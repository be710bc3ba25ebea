"""safetensors: eight bytes of header length, a JSON header, the tensors.

Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from casstore.tensors.span import MAX_SPANS, TensorSpan, Unrecognised
from casstore.tensors.window import read_exactly

if TYPE_CHECKING:
    from casstore.tensors.span import ByteSource

__all__ = ["matches", "spans"]

# The format's own limit; readers refuse longer headers.
MAX_HEADER_BYTES = 100_000_000
# Braces, brackets and commas bound the number of values, and so the memory, before the JSON is parsed.
# An entry has about nine; the floor leaves room for names and metadata that contain some.
MAX_MARKS = 12 * MAX_SPANS

_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,31}")


def matches(head: bytes, size: int) -> bool:
    """Say whether a file of `size` bytes that starts with `head` can be a safetensors file."""
    return (
        len(head) > 8 and head[8:9] == b"{" and 2 <= _header_length(head) <= min(MAX_HEADER_BYTES, size - 8)
    )


def spans(source: ByteSource) -> list[TensorSpan]:
    """Return the tensors that the header lists, or raise Unrecognised."""
    length = _header_length(read_exactly(source, 0, 8))
    if length > MAX_HEADER_BYTES:
        raise Unrecognised("an absurd header")
    header = _parse(read_exactly(source, 8, length))
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict:
        raise Unrecognised("metadata that is no object")
    if len(header) > MAX_SPANS:
        raise Unrecognised("too many tensors")
    start = 8 + length
    return [_span(name, entry, start) for name, entry in header.items()]


def _header_length(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


def _parse(raw: bytes) -> dict[str, Any]:
    if sum(map(raw.count, (b"{", b"[", b","))) > MAX_MARKS:
        raise Unrecognised("an absurd header")
    try:
        header = json.loads(
            raw.decode(), object_pairs_hook=_object, parse_int=_integer, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        # Bad UTF-8 and bad JSON are ValueErrors, an attack by depth is a RecursionError.
        raise Unrecognised("a header that is not JSON") from error
    if type(header) is not dict:
        raise Unrecognised("a header that is no object")
    return header


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Unrecognised("a key twice")
    return values


def _integer(digits: str) -> int:
    # int() takes quadratic time on long digit strings where the interpreter does not limit them.
    if len(digits) > 20:
        raise Unrecognised("an absurd number")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise Unrecognised(f"{name} in the header")


def _span(name: str, entry: object, start: int) -> TensorSpan:
    if type(entry) is not dict:
        raise Unrecognised("an entry that is no object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if type(dtype) is not str or _DTYPE.fullmatch(dtype) is None:
        raise Unrecognised("an entry without a type")
    if type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise Unrecognised("an entry without a shape or place")
    # bool is an int to isinstance, and `true` is no size.
    if any(type(number) is not int for number in (*shape, *offsets)) or offsets[0] < 0:
        raise Unrecognised("an entry whose shape or place is not made of integers")
    return TensorSpan(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])
