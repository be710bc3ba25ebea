"""What can still be read of a damaged pack (invariant 5): frames are found by their own headers, without its footer.

Nothing that is found is believed: each frame is decoded, and its object hashed, before it is passed on (invariant 9).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from casstore.concurrency.buffers import BLOCK, new_buffer
from casstore.errors import IntegrityError
from casstore.format import frame
from casstore.format import pack as pack_format
from casstore.format.frame import FrameHeader
from casstore.format.rows import ROW_FIELDS
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.footers import read_footer
from casstore.objects.index.located import Located
from casstore.objects.keys import pack_key
from casstore.objects.publishing.pack_writer import EncodedFrames
from casstore.objects.reading.frames import verify_frames
from casstore.objects.reading.ranges import plan_ranges

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from casstore.backend.base import Backend
    from casstore.format.pack import Footer
    from casstore.objects.reading.ranges import Range

_WINDOW = 8 << 20
_PIECE = 64 << 10
"""Bytes that are read at once, and where the disk fails."""


def find_frames(backend: Backend, pack: bytes) -> Footer:
    """Return a directory of the frames of a pack, which may be damaged anywhere: made of their headers and its footer.

    A frame is in it if either is intact. Raises ObjectNotFound if the pack is gone.
    """
    key = pack_key(pack)
    size = backend.stat(key).size
    found = dict(_headers(backend, key, size))
    # Invariant 5: where the footer is damaged, the frames' own headers answer.
    with contextlib.suppress(IntegrityError):
        footer = read_footer(backend, pack, size=size)
        located = Located.of_footer(footer, 0)
        for at in range(len(footer.rows)):
            header = _header(located, at)
            found.setdefault(int(footer.rows["offset"][at]), header)
    offsets = sorted(found)
    return pack_format.footer_rows([found[at] for at in offsets], offsets)


def _headers(backend: Backend, key: str, size: int) -> Iterator[tuple[int, FrameHeader]]:
    """Yield the offset and the header of each frame whose header is intact and whose payload is in the file."""
    at = pack_format.HEADER_SIZE
    begin, window = 0, b""
    while at < size:
        if at + frame.MAX_HEADER_SIZE > begin + len(window) < size:
            begin, window = at, _read(backend, key, at)
        found = pack_format.find_frame(window, begin=at - begin, key=key)
        if found is None:
            # The last bytes of the window may be the beginning of a header.
            whole = begin + len(window) >= size
            at = size if whole else max(at + 1, begin + len(window) - frame.MAX_HEADER_SIZE)
            continue
        offset, header = begin + found[0], found[1]
        end = offset + header.size + header.stored
        if end <= size:
            yield offset, header
        at = end if end <= size else offset + 1


def _read(backend: Backend, key: str, begin: int) -> bytes:
    """Read a window; what the disk cannot read is zeros."""
    try:
        with bad_file_is_damage(backend):
            return backend.read(key, start=begin, length=_WINDOW)
    except IntegrityError:
        pass  # Invariant 4: what can be read around it is verified as everything is.
    parts = []
    for at in range(begin, begin + _WINDOW, _PIECE):
        try:
            with bad_file_is_damage(backend):
                part = backend.read(key, start=at, length=_PIECE)
        except IntegrityError:
            part = bytes(_PIECE)  # Invariant 4: zeros are no header.
        parts.append(part)
        if len(part) < _PIECE:
            break
    return b"".join(parts)


def salvage(
    backend: Backend, pack: bytes, directory: Footer, wanted: Container[bytes] | None
) -> Iterator[EncodedFrames]:
    """Yield the frames of a pack, all or those of the objects `wanted`, that decode alone to their objects.

    `directory` is what `find_frames` returned. What is damaged, or is a delta, is left out.
    """
    located = Located.of_footer(directory, 0)
    chosen: dict[bytes, list[int]] = {}
    for at in range(len(directory.rows)):
        object_id = directory.rows["id"][at].tobytes()
        if not directory.rows["rank"][at] and (wanted is None or object_id in wanted):
            chosen.setdefault(object_id, []).append(at)
    while chosen:
        # An object may have several frames here: the next one is tried where the first is damaged.
        positions = [group.pop(0) for group in chosen.values()]
        for part in plan_ranges(located, positions, max_stored=BLOCK, waste=0):
            for frames in _verified(backend, pack, located, part):
                for header in frames.headers:
                    chosen[header.object_id].clear()
                yield frames
        chosen = {object_id: group for object_id, group in chosen.items() if group}


def _verified(backend: Backend, pack: bytes, located: Located, part: Range) -> Iterator[EncodedFrames]:
    key = pack_key(pack)
    data = new_buffer(part.end - part.begin)
    alone = len(part.frames) == 1
    try:
        with bad_file_is_damage(backend):
            count = backend.read_into(key, data, start=part.begin)
        if alone and count == len(data):
            # Where the header in the file is damaged, the footer has the same; the hash decides (invariant 4).
            head = frame.encode_header(_header(located, part.frames[0]), key=key)
            data[: len(head)] = head
        if count == len(data):
            yield EncodedFrames(verify_frames(located, part, data, bases={}, key=key), data)
            return
    except IntegrityError:
        pass  # Invariant 9: one by one, so that each good frame is found; a bad one is left out.
    if not alone:
        for at in part.frames:
            for one in plan_ranges(located, [at]):
                yield from _verified(backend, pack, located, one)


def _header(located: Located, at: int) -> FrameHeader:
    object_id, _, stored, raw, _, _, kind, encoding, rank = ROW_FIELDS.unpack(located.rows[at].tobytes())
    return FrameHeader(object_id, kind, encoding, raw, stored, rank, located.bases(at))
