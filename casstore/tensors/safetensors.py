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

_INTEGERS = frozenset({int})
_LONG_NUMBER = re.compile(rb"[0-9]{21}")
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
    found = []
    for name, entry in header.items():
        if type(entry) is not tuple:
            raise Unrecognised("an entry that is none")
        dtype, shape, begin, end = entry
        found.append(TensorSpan(name, dtype, shape, start + begin, start + end))
    return found


def _header_length(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


_Entry = tuple[str, tuple[int, ...], int, int]
"""What the header says of one tensor: type, shape, begin, end. A million such take a fifth of a million maps."""


def _parse(raw: bytes) -> dict[str, Any]:
    """Return the header, with an _Entry in place of each map that describes a tensor; JSON has no tuples."""
    if sum(map(raw.count, (b"{", b"[", b","))) > MAX_MARKS:
        raise Unrecognised("an absurd header")
    kinds: dict[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...]]] = {}

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Entry:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise Unrecognised("a key twice")
        return _entry(values, kinds) or values

    try:
        header = json.loads(
            raw.decode(),
            object_pairs_hook=make,
            parse_int=_integer if _LONG_NUMBER.search(raw) else None,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        # Bad UTF-8 and bad JSON are ValueErrors, an attack by depth is a RecursionError.
        raise Unrecognised("a header that is not JSON") from error
    if type(header) is not dict:
        raise Unrecognised("a header that is no object")
    return header


def _entry(
    values: dict[str, Any], kinds: dict[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...]]]
) -> _Entry | None:
    """Return a map as the entry of a tensor, None if it is none; `kinds` keeps each type and shape once."""
    dtype, shape, offsets = values.get("dtype"), values.get("shape"), values.get("data_offsets")
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        return None
    # bool is an int to isinstance, and `true` is no size.
    if not _INTEGERS.issuperset(map(type, shape)) or not _INTEGERS.issuperset(map(type, offsets)):
        return None
    kind = (dtype, tuple(shape))
    known = kinds.get(kind)
    if known is None:
        if _DTYPE.fullmatch(dtype) is None:
            return None
        known = kinds[kind] = kind
    begin, end = offsets
    return (*known, begin, end) if begin >= 0 else None


def _integer(digits: str) -> int:
    # int() takes quadratic time on long digit strings where the interpreter does not limit them.
    if len(digits) > 20:
        raise Unrecognised("an absurd number")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise Unrecognised(f"{name} in the header")
