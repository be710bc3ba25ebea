"""The central directory of a zip archive, zip64 included, read without trusting it.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3. Only what torch and numpy write is accepted: one disk, and
offsets that count from the start of the file.
"""

from __future__ import annotations

import struct
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from casstore.tensors.span import MAX_NAME_BYTES, MAX_SPANS, Unrecognised
from casstore.tensors.window import Window, read_exactly

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from casstore.tensors.span import ByteSource

__all__ = ["MAGIC", "Entries", "ZipEntry", "locate", "stored_entries"]

MAGIC = b"PK\x03\x04"
MAX_DIRECTORY_BYTES = 256 << 20
_STORED = 0
_ENCRYPTED = 0x1

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_COMMENT = 0xFFFF


class ZipEntry(NamedTuple):
    """One entry that is stored without compression; `header` is the offset of its local header."""

    name: str
    header: int
    length: int


Entries: TypeAlias = "Mapping[str, ZipEntry]"
"""The stored entries of an archive by name, in its directory's order."""

_HEADER = attrgetter("header")


def stored_entries(source: ByteSource) -> dict[str, ZipEntry]:
    """Return the stored entries by name, in the directory's order; compressed and encrypted ones are left out.

    Raises Unrecognised if the directory is broken, or if two stored entries have one name.
    """
    begin, length, count = _directory_place(source)
    if length > MAX_DIRECTORY_BYTES or count > MAX_SPANS or count * _CENTRAL.size > length:
        raise Unrecognised("an absurd directory")
    entries = _entries(read_exactly(source, begin, length), count)
    by_name = {entry.name: entry for entry in entries}
    if len(by_name) != len(entries):
        raise Unrecognised("two entries of one name")
    return by_name


def locate(window: Window, entries: Iterable[ZipEntry]) -> Iterator[tuple[ZipEntry, int]]:
    """Yield each entry, in the file's order, and where its bytes begin.

    Headers that lie near one another are read together. Raises Unrecognised if a local header differs, if an entry does not
    end inside the file, or if two share bytes: work on each would not be bounded by the size of the file.
    """
    behind = 0
    unpack = _LOCAL.unpack_from
    data, base = window.data, window.base
    for entry in sorted(entries, key=_HEADER):
        raw = entry.name.encode()
        length = _LOCAL.size + len(raw)
        if entry.header < behind or entry.header + length > window.size:
            raise Unrecognised("a local header outside the file or inside another entry")
        index = entry.header - base
        if not 0 <= index <= len(data) - length:
            index = window.seek(entry.header, length)
            data, base = window.data, window.base
            if index + length > len(data):
                raise Unrecognised("cut short")
        magic, _, flags, method, _, _, _, _, _, name_length, extra_length = unpack(data, index)
        if magic != MAGIC or method != _STORED or flags & _ENCRYPTED:
            raise Unrecognised("a local header that differs")
        if name_length != len(raw) or not data.startswith(raw, index + _LOCAL.size):
            raise Unrecognised("a local header of another entry")
        begin = entry.header + length + int(extra_length)
        behind = begin + entry.length
        if behind > window.size:
            raise Unrecognised("an entry outside the file")
        yield entry, begin


def _directory_place(source: ByteSource) -> tuple[int, int, int]:
    """Return the directory's offset, length and number of entries."""
    span = min(source.size, _END.size)
    tail = read_exactly(source, source.size - span, span)
    if not tail.startswith(b"PK\x05\x06"):
        span = min(source.size, _END.size + _MAX_COMMENT)
        tail = read_exactly(source, source.size - span, span)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise Unrecognised("a zip without an end")
    _, disk, first_disk, here, count, length, begin, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail) or disk != first_disk or here != count:
        raise Unrecognised("a zip in parts or with bytes behind it")
    end = source.size - span + at
    if 0xFFFF in (disk, count) or 0xFFFFFFFF in (length, begin):
        return _directory_place64(source, end)
    if disk != 0 or begin + length > end:
        raise Unrecognised("a directory outside the file")
    return begin, length, count


def _directory_place64(source: ByteSource, end: int) -> tuple[int, int, int]:
    magic, disk, at, disks = _END64_LOCATOR.unpack(
        read_exactly(source, end - _END64_LOCATOR.size, _END64_LOCATOR.size)
    )
    if magic != b"PK\x06\x07" or disk != 0 or disks > 1:
        raise Unrecognised("a zip64 without its locator")
    fields = _END64.unpack(read_exactly(source, at, _END64.size))
    magic, disk, first_disk, here, count, length, begin = fields[0], *fields[4:]
    if magic != b"PK\x06\x06" or disk or first_disk or here != count or begin + length > at:
        raise Unrecognised("a zip64 that is broken")
    return begin, length, count


def _entries(directory: bytes, count: int) -> list[ZipEntry]:
    """Return the stored ones of `count` entries."""
    entries = []
    position, size, unpack = 0, _CENTRAL.size, _CENTRAL.unpack_from
    for _ in range(count):
        begin = position + size
        if begin > len(directory):
            raise Unrecognised("a directory cut short")
        fields = unpack(directory, position)
        flags, method = fields[3:5]
        packed, plain, name_length, extra_length, comment_length = fields[8:13]
        header = fields[16]
        extra = begin + name_length
        position = extra + extra_length + comment_length
        if fields[0] != b"PK\x01\x02" or position > len(directory):
            raise Unrecognised("a broken directory")
        if method != _STORED or flags & _ENCRYPTED:
            continue
        if 0xFFFFFFFF in (packed, plain, header):
            packed, plain, header = _zip64(directory[extra : extra + extra_length], packed, plain, header)
        if packed != plain or name_length > MAX_NAME_BYTES:
            raise Unrecognised("a stored entry of two sizes or an absurd name")
        try:
            name = directory[begin:extra].decode()
        except UnicodeDecodeError as error:
            raise Unrecognised("a name that is not UTF-8") from error
        entries.append(ZipEntry(name, header, plain))
    return entries


def _zip64(extra: bytes, packed: int, plain: int, header: int) -> tuple[int, int, int]:
    """Replace each value that is all ones by the next value of the zip64 extra field."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind != 1:
            position += length
            continue
        values = iter(struct.unpack_from(f"<{min(length, len(extra) - position) // 8}Q", extra, position))
        # The order in the extra field is plain size, packed size, header offset.
        plain, packed, header = (
            next(values, value) if value == 0xFFFFFFFF else value for value in (plain, packed, header)
        )
        return packed, plain, header
    raise Unrecognised("a zip64 entry without its sizes")
