"""The central directory of a zip archive, zip64 included, read without trusting it.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3. Only what torch writes is accepted: one disk, and
offsets that count from the start of the file.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from casstore.tensors.span import MAX_NAME_BYTES, MAX_SPANS, Unrecognised
from casstore.tensors.window import read_exactly

if TYPE_CHECKING:
    from casstore.tensors.span import ByteSource

__all__ = ["ZipEntry", "data_offset", "stored_entries"]

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


def stored_entries(source: ByteSource) -> list[ZipEntry]:
    """Return the stored entries in the directory's order; compressed and encrypted ones are left out.

    Raises Unrecognised if the directory is broken, or if two stored entries have one name.
    """
    begin, length, count = _directory_place(source)
    if length > MAX_DIRECTORY_BYTES or count > MAX_SPANS or count * _CENTRAL.size > length:
        raise Unrecognised("an absurd directory")
    directory = read_exactly(source, begin, length)
    entries = []
    position = 0
    for _ in range(count):
        entry, position = _entry(directory, position)
        if entry is not None:
            entries.append(entry)
    if len({entry.name for entry in entries}) != len(entries):
        raise Unrecognised("two entries of one name")
    return entries


def data_offset(source: ByteSource, entry: ZipEntry) -> int:
    """Return where the entry's bytes begin; raise Unrecognised unless its local header agrees with the directory.

    Whether the entry ends inside the file is for the caller to check.
    """
    name = entry.name.encode()
    head = read_exactly(source, entry.header, _LOCAL.size + len(name))
    fields = _LOCAL.unpack_from(head)
    magic, flags, method, name_length, extra_length = fields[0], fields[2], fields[3], fields[9], fields[10]
    if magic != b"PK\x03\x04" or method != _STORED or flags & _ENCRYPTED:
        raise Unrecognised("a local header that differs")
    if name_length != len(name) or head[_LOCAL.size :] != name:
        raise Unrecognised("a local header of another entry")
    return entry.header + len(head) + int(extra_length)


def _directory_place(source: ByteSource) -> tuple[int, int, int]:
    """Return the directory's offset, length and number of entries."""
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


def _entry(directory: bytes, position: int) -> tuple[ZipEntry | None, int]:
    """Return the entry at `position`, None if it is not stored, and the next position."""
    if position + _CENTRAL.size > len(directory):
        raise Unrecognised("a directory cut short")
    fields = _CENTRAL.unpack_from(directory, position)
    magic, flags, method = fields[0], fields[3], fields[4]
    packed, plain, name_length, extra_length, comment_length = fields[8:13]
    header = fields[16]
    begin = position + _CENTRAL.size
    extra = begin + name_length
    following = extra + extra_length + comment_length
    if magic != b"PK\x01\x02" or following > len(directory):
        raise Unrecognised("a broken directory")
    if method != _STORED or flags & _ENCRYPTED:
        return None, following
    if 0xFFFFFFFF in (packed, plain, header):
        packed, plain, header = _zip64(directory[extra : extra + extra_length], packed, plain, header)
    if packed != plain or name_length > MAX_NAME_BYTES:
        raise Unrecognised("a stored entry of two sizes or an absurd name")
    try:
        name = directory[begin:extra].decode()
    except UnicodeDecodeError as error:
        raise Unrecognised("a name that is not UTF-8") from error
    return ZipEntry(name, header, plain), following


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
