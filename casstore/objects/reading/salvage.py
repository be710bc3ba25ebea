"""What can still be read of a damaged pack (invariant 5): frames are found by their own headers, without its footer.

Nothing that is found is believed: each frame is decoded, and its object hashed, before it is passed on (invariant 9).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from casstore.concurrency.buffers import BLOCK, new_buffer
from casstore.errors import ConfigError, FormatError, IntegrityError, ObjectNotFound
from casstore.format import frame
from casstore.format import pack as pack_format
from casstore.format.frame import FrameHeader
from casstore.format.rows import ROW_FIELDS, Kind
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.footers import read_footer
from casstore.objects.index.index import Index
from casstore.objects.index.located import Located
from casstore.objects.keys import pack_key
from casstore.objects.publishing.pack_writer import EncodedFrames, encode_objects
from casstore.objects.reading.frames import decode_frames, verify_frames
from casstore.objects.reading.ranges import plan_ranges
from casstore.objects.reading.reader import ObjectReader

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

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


class DamagedPacks:
    """What can still be read of the damaged packs of one store. For one thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._directories: dict[bytes, Footer | None] = {}
        self._reader: ObjectReader | None = None
        self._known: set[bytes] = set()

    def directory(self, pack: bytes) -> Footer | None:
        """Return the frames that may be read of a pack, None for nothing."""
        if pack not in self._directories:
            try:
                self._directories[pack] = find_frames(self._backend, pack)
            except (ObjectNotFound, IntegrityError):
                self._directories[pack] = None  # Invariant 5: it is gone, or nothing in it can be read.
        return self._directories[pack]

    def salvage(
        self, pack: bytes, wanted: Container[bytes] | None, *, damaged: Sequence[bytes]
    ) -> Iterator[EncodedFrames]:
        """Yield verified frames, which need no bases, of the objects of a pack: of all, or those that are `wanted`.

        Deltas are encoded anew; their bases may be in any pack of the store, also in those that are `damaged`. What is
        damaged, or is a delta that lacks a base, is left out.
        """
        directory = self.directory(pack)
        if directory is None:
            return
        located = Located.of_footer(directory, 0)
        chosen: dict[bytes, list[int]] = {}
        for at in range(len(directory.rows)):
            object_id = directory.rows["id"][at].tobytes()
            if wanted is None or object_id in wanted:
                chosen.setdefault(object_id, []).append(at)
        for group in chosen.values():
            group.sort(key=directory.rows["rank"].__getitem__)
        while chosen:
            # An object may have several frames here: the next one is tried where the first is damaged.
            positions = [group.pop(0) for group in chosen.values()]
            plain = [at for at in positions if not directory.rows["rank"][at]]
            for part in plan_ranges(located, plain, max_stored=BLOCK, waste=0):
                for frames in _verified(self._backend, pack, located, part):
                    for header in frames.headers:
                        chosen[header.object_id].clear()
                    yield frames
            for at in sorted(set(positions).difference(plain)):
                delta = self._decoded(pack, located, at, damaged)
                if delta is not None:
                    chosen[delta.headers[0].object_id].clear()
                    yield delta
            chosen = {object_id: group for object_id, group in chosen.items() if group}

    def _decoded(
        self, pack: bytes, located: Located, at: int, damaged: Sequence[bytes]
    ) -> EncodedFrames | None:
        """Decode a delta, and encode it alone; None if that is impossible."""
        [part] = plan_ranges(located, [at])
        raw = int(located.rows["raw"][at])
        out, key = new_buffer(raw), pack_key(pack)
        try:
            data = _fetch(self._backend, located, part, key=key)
            if data is None:
                return None
            bases = self._reader_of(damaged).bases_of(located, [at])
            decode_frames(
                located, part, data, out=out, places={at: (0, raw)}, bases=bases, key=key, verify=True
            )
            kind = Kind(int(located.rows["kind"][at]))
            return encode_objects(kind, {located.ids([at])[0]: bytes(out)})
        except (IntegrityError, ConfigError, ObjectNotFound):
            return None  # Invariant 9: it is damaged, or is no copy without its bases (invariant 7).

    def _reader_of(self, damaged: Sequence[bytes]) -> ObjectReader:
        """Return a reader that finds objects in damaged packs, too.

        It has an index of its own: nobody else may take what is in them for copies.
        """
        if self._reader is None or not self._known.issuperset(damaged):
            index = Index(self._backend)
            index.refresh()
            self._known = set(damaged)
            found = [(item, self.directory(item)) for item in damaged]
            index.keep_footers(
                [(item, footer) for item, footer in found if footer is not None and len(footer.rows)]
            )
            # Segments may lack whole packs, too.
            with contextlib.suppress(FormatError):
                index.read_uncovered()
            for item in damaged:
                index.avoid_pack(index.number_of(item))
            self._reader = ObjectReader(self._backend, index)
        return self._reader


def _verified(backend: Backend, pack: bytes, located: Located, part: Range) -> Iterator[EncodedFrames]:
    key = pack_key(pack)
    try:
        data = _fetch(backend, located, part, key=key)
        if data is not None:
            yield EncodedFrames(verify_frames(located, part, data, bases={}, key=key), data)
            return
    except IntegrityError:
        pass  # Invariant 9: one by one, so that each good frame is found; a bad one is left out.
    if len(part.frames) > 1:
        for at in part.frames:
            for one in plan_ranges(located, [at]):
                yield from _verified(backend, pack, located, one)


def _fetch(backend: Backend, located: Located, part: Range, *, key: str) -> memoryview | None:
    """Read a range of a pack, None if the pack ends before."""
    data = new_buffer(part.end - part.begin)
    with bad_file_is_damage(backend):
        if backend.read_into(key, data, start=part.begin) != len(data):
            return None
    if len(part.frames) == 1:
        # Where the header in the file is damaged, the footer has the same; the hash decides (invariant 4).
        head = frame.encode_header(_header(located, part.frames[0]), key=key)
        data[: len(head)] = head
    return data


def _header(located: Located, at: int) -> FrameHeader:
    object_id, _, stored, raw, _, _, kind, encoding, rank = ROW_FIELDS.unpack(located.rows[at].tobytes())
    return FrameHeader(object_id, kind, encoding, raw, stored, rank, located.bases(at))
