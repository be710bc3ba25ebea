"""Where tensors lie in a file, and the one check that every parser's answer passes.

File headers are untrusted: whatever they say is checked here before anyone cuts or reads by it.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from casstore.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MAX_DIMS",
    "MAX_NAME_BYTES",
    "MAX_SPANS",
    "ByteSource",
    "TensorSpan",
    "UniqueNames",
    "Unrecognised",
    "checked_spans",
]

MAX_SPANS = 1_000_000
MAX_NAME_BYTES = 4096
MAX_DTYPE_BYTES = 32
MAX_DIMS = 16
# Products of dimensions stay below what numpy and msgpack count with, empty tensors included.
MAX_ELEMENTS = 1 << 56


class ByteSource(Protocol):
    """Random access to a file's plain bytes."""

    @property
    def size(self) -> int:
        """The file's length in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`, or fewer at the end of the file."""


class TensorSpan(NamedTuple):
    """One tensor: its name, element type (see dtypes.py), shape, and byte range [begin, end) in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Unrecognised(Exception):
    """The bytes are not what a parser expects: the file's format is unknown. Never leaves this package."""


class UniqueNames:
    """Gives each tensor of a file its own name: a second `x` becomes `x#2`, so that a name finds one tensor."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def claim(self, name: str) -> str:
        """Return `name`, or `name#n` with the lowest free n."""
        if name not in self._taken:
            self._taken.add(name)
            return name
        count = self._next.get(name, 2)
        while (unique := f"{name}#{count}") in self._taken:
            count += 1
        self._next[name] = count + 1
        self._taken.add(unique)
        return unique


_POSITION = attrgetter("begin", "end", "name")


def checked_spans(spans: Iterable[TensorSpan], size: int) -> tuple[TensorSpan, ...]:
    """Return the spans sorted by (begin, end, name), or raise Unrecognised.

    What is returned holds: every span lies in [0, size); two spans that are not empty either have the same range (tied
    weights) or share no byte, and an empty one lies in none of them; names differ; a known
    element type and the shape account for every byte.
    """
    ordered = sorted(spans, key=_POSITION)
    if len(ordered) > MAX_SPANS:
        raise Unrecognised("too many tensors")
    if len({span.name for span in ordered}) != len(ordered):
        raise Unrecognised("two tensors of one name")
    begin, end = 0, 0
    lengths: dict[tuple[str, tuple[int, ...]], int | None] = {}
    for name, dtype, shape, first, last in ordered:
        if len(name) > MAX_NAME_BYTES or not name.isascii():
            _check_name(name)
        # Most tensors of a file have one of few types and shapes.
        kind = (dtype, shape)
        if kind not in lengths:
            lengths[kind] = _byte_length(dtype, shape)
        length = lengths[kind]
        if length is not None and length != last - first:
            raise Unrecognised("a tensor whose size is not that of its shape")
        if not 0 <= first <= last <= size:
            raise Unrecognised("a tensor outside the file")
        if first < end and (first, last) != (begin, end):
            raise Unrecognised("overlapping tensors")
        if last > end:
            begin, end = first, last
    return tuple(ordered)


def _check_name(name: str) -> None:
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        # Lone surrogates come out of JSON escapes, and nothing downstream can write them.
        raise Unrecognised("a name that is not Unicode") from error
    if len(encoded) > MAX_NAME_BYTES:
        raise Unrecognised("an absurd name")


def _byte_length(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Return the bytes that a tensor takes, None if its type is unknown; raise Unrecognised for absurd ones."""
    if len(dtype) > MAX_DTYPE_BYTES or len(shape) > MAX_DIMS:
        raise Unrecognised("an absurd type or number of dimensions")
    if min(shape, default=0) < 0 or math.prod(d or 1 for d in shape) > MAX_ELEMENTS:
        raise Unrecognised("an absurd shape")
    known = DTYPES.get(dtype)
    if known is None:
        return None
    length = known.byte_length(shape)
    return -1 if length is None else length
