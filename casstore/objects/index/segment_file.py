"""The bytes of an index segment: held in memory, or read from its file as they are needed.

Nothing is mapped: if someone truncated the file meanwhile, touching it would kill the process.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from casstore.backend.oserrors import from_os_error
from casstore.concurrency.buffers import new_buffer
from casstore.errors import FormatError
from casstore.format import index as index_format

if TYPE_CHECKING:
    from casstore.backend.base import Backend
    from casstore.errors import BackendError

HELD = 1 << 20
"""Segments of at most this many bytes are held in memory."""

DAMAGED = "Remove that file; it is rebuilt from the packs."

_MANY = 64
_ASKED = 16


class SegmentFile:
    """Reads a segment by position; safe in threads and after a fork."""

    def __init__(
        self, key: str, data: memoryview, descriptor: int | None = None, *, size: int | None = None
    ) -> None:
        """`data` is the whole file, or its head; then `descriptor`, which becomes this object's, is a file of `size` bytes."""
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor)
        self.key = key
        self.data = data
        self.size = len(data) if size is None else size
        self._descriptor = descriptor

    @property
    def is_held(self) -> bool:
        """Whether all of it is in memory."""
        return self._descriptor is None

    def view(self, begin: int, end: int) -> memoryview:
        """Return the bytes from `begin` to `end`, not copied if they are in memory."""
        if self._descriptor is None:
            return self.data[begin:end]
        out = new_buffer(end - begin)
        self._read(self._descriptor, out, begin)
        return out

    def read_places(self, memory: memoryview, places: list[tuple[int, int, int]]) -> None:
        """Read for each place (offset, begin, end) what lies at `offset` into the bytes from `begin` to `end`."""
        descriptor = self._descriptor
        if descriptor is None:
            for offset, begin, end in places:
                memory[begin:end] = self.data[offset : offset + end - begin]
            return
        if len(places) > _MANY:
            _fetch_ahead(descriptor, places)
        try:
            for offset, begin, end in places:
                # There may be thousands, so `_read` is called only where one call of the system is not enough.
                if os.preadv(descriptor, [memory[begin:end]], offset) != end - begin:
                    self._read(descriptor, memory[begin:end], offset)
        except OSError as error:
            raise self._unreadable(error) from error  # design §12

    def _read(self, descriptor: int, out: memoryview, offset: int) -> None:
        try:
            done = 0
            while done < len(out):
                count = os.preadv(descriptor, [out[done:]], offset + done)
                if count == 0:
                    raise FormatError(f"{self.key} became shorter while it was read. {DAMAGED}")
                done += count
        except OSError as error:
            raise self._unreadable(error) from error  # design §12

    def _unreadable(self, error: OSError) -> BackendError:
        return from_os_error(error, f"read {self.key}", retryable=False)


def _fetch_ahead(descriptor: int, places: list[tuple[int, int, int]]) -> None:
    """Let a cold disk work on all places (offset, begin, end) at once; a few of them show whether it is cold."""
    if not hasattr(os, "RWF_NOWAIT"):
        return
    try:
        for offset, _, _ in places[:: len(places) // _ASKED]:
            os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except OSError:
        # Not in memory, or unknown. This is only read-ahead: the reads that follow verify (invariant 4).
        for offset, begin, end in places:
            os.posix_fadvise(descriptor, offset, end - begin, os.POSIX_FADV_WILLNEED)


def open_segment(key: str, backend: Backend) -> SegmentFile:
    """Open a segment in its store; raises ObjectNotFound if it is gone, FormatError if it is damaged."""
    path = backend.local_path(key)
    if path is None:
        return SegmentFile(key, memoryview(backend.read(key)))
    try:
        # Without O_NONBLOCK, opening a pipe that someone put there would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise from_os_error(error, f"read {key} in {backend.url}", retryable=False) from error  # design §12
    try:
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, size if size <= HELD else index_format.HEADER_SIZE, 0)
        if size > HELD:
            shape = index_format.decode_shape(data, key=key)
            data = os.pread(descriptor, min(shape.head_size, size), 0)
    except OSError as error:
        os.close(descriptor)
        raise from_os_error(error, f"read {key} in {backend.url}", retryable=False) from error  # design §12
    except FormatError:
        os.close(descriptor)
        raise
    if size <= HELD:
        os.close(descriptor)
        return SegmentFile(key, memoryview(data))
    return SegmentFile(key, memoryview(data), descriptor, size=size)
