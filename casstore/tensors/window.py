"""Small parts of a file, for parsers that walk a header, or follow offsets, and jump over what they do not need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.tensors.span import Unrecognised

if TYPE_CHECKING:
    import struct

    from casstore.tensors.span import ByteSource

__all__ = ["Pages", "Section", "Window", "read_exactly"]

_FIRST = 4 << 10
_LARGEST = 256 << 10
# Reading on over so many bytes that are not needed costs less than a read of its own.
_GAP = 32 << 10

_PAGE = 16 << 10
_KEPT_PAGES = 64
# A walk that jumps to and fro reads pages again and again: past 4 GiB the file is absurd.
MAX_PAGES = 1 << 18


def read_exactly(source: ByteSource, offset: int, length: int) -> bytes:
    """Return `length` bytes at `offset`; raise Unrecognised where the file is shorter, before anything is read."""
    if offset < 0 or length < 0 or offset + length > source.size:
        raise Unrecognised("cut short")
    data = source.read(offset, length)
    if len(data) != length:
        raise Unrecognised("cut short")
    return data


class Window:
    """The bytes `data` of a file from `base` on.

    A read after a jump is small, reads in sequence or at short distances grow to 256 KiB: a walk over many payloads
    stays cheap, a walk over a long header or over many small payloads takes few reads. Memory stays at one window.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._step = _FIRST
        self.size = source.size
        self.base = 0
        self.data = b""

    def seek(self, position: int, length: int) -> int:
        """Return the index in `data` of the file's byte `position`.

        `length` bytes follow there, or fewer at the end of the file.
        """
        index = position - self.base
        held = len(self.data)
        if index >= 0 and (index + length <= held or self.base + held >= self.size):
            return index
        self._step = min(2 * self._step, _LARGEST) if 0 <= index <= held + _GAP else _FIRST
        self.data = self._source.read(position, min(max(self._step, length), max(0, self.size - position)))
        self.base = position
        return 0

    def take(self, position: int, length: int) -> bytes:
        """Return exactly `length` bytes at `position`, or raise Unrecognised."""
        index = self.seek(position, length)
        data = self.data[index : index + length]
        if len(data) != length:
            raise Unrecognised("cut short")
        return data


class Section:
    """A part of a file as a ByteSource, read through the window of whoever walks the file.

    The part lies inside the file; the window raises Unrecognised where the file has become shorter.
    """

    def __init__(self, window: Window, begin: int, size: int) -> None:
        self._window = window
        self._begin = begin
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer at the end of the part."""
        return self._window.take(self._begin + offset, min(length, max(0, self.size - offset)))


class Pages:
    """The bytes of a file in any order: pages of 16 KiB, of which 1 MiB is kept."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._kept: dict[int, bytes] = {}
        self._left = MAX_PAGES
        self.size = source.size

    def take(self, position: int, length: int) -> bytes:
        """Return exactly `length` bytes at `position`, or raise Unrecognised."""
        if position < 0 or position + length > self.size:
            raise Unrecognised("outside the file")
        first, offset = divmod(position, _PAGE)
        data = self._kept.get(first) or self._load(first)
        while len(data) < offset + length:
            first += 1
            data += self._kept.get(first) or self._load(first)
        return data[offset : offset + length]

    def number(self, form: struct.Struct, position: int) -> int:
        """Return the integer of this form at `position`, or raise Unrecognised."""
        page, offset = divmod(position, _PAGE)
        data = self._kept.get(page, b"")
        # Nearly all lie within a page that is kept.
        if offset + form.size <= len(data):
            value: int = form.unpack_from(data, offset)[0]
        else:
            (value,) = form.unpack(self.take(position, form.size))
        return value

    def _load(self, number: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise Unrecognised("a walk without an end")
        begin = number * _PAGE
        data = read_exactly(self._source, begin, min(_PAGE, self.size - begin))
        if len(self._kept) >= _KEPT_PAGES:
            # The page that was read first goes.
            del self._kept[next(iter(self._kept))]
        self._kept[number] = data
        return data
