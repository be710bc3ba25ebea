"""Reads every byte of a pack once: its hash, its form and its frames."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from casstore.concurrency.buffers import new_buffer
from casstore.digest import Hasher
from casstore.errors import FormatError, IntegrityError
from casstore.objects.checking import check_pack
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.index.located import Located
from casstore.objects.keys import pack_key
from casstore.objects.reading.reader import ObjectReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.backend.base import Backend
    from casstore.format.pack import Footer
    from casstore.objects.index.index import Index

_WINDOW = 8 << 20
_KEPT = 2
"""Windows that are kept: what is verified at once lies in them."""


def read_whole(
    backend: Backend, index: Index, pack: bytes, *, size: int, pace: Callable[[int], None]
) -> Footer:
    """Check the hash of a pack of `size` bytes, its form, and that each frame decodes to its object; return its footer.

    Deltas of which a base cannot be read are left out. `pace` is told how many bytes are read next, and may wait. Takes
    16 MiB of memory beside what decoding takes. Raises ObjectNotFound if the pack is gone, an IntegrityError if it is damaged.
    """
    hashed = _HashedReads(backend, pack, size, pace)
    reader = ObjectReader(backend, index, read_into=hashed.read_into)
    try:
        footer = check_pack(backend, pack, size=size)
        located = Located.of_footer(footer, index.number_of(pack))
        reader.verify(located, range(len(footer.rows)))
    except IntegrityError:
        # A damaged version number must not pass for a newer one: the hash decides (invariant 4).
        hashed.finish()
        raise
    hashed.finish()
    return footer


class _HashedReads:
    """Reads one pack from its beginning to its end, and hashes it on the way; what was read last is kept for others."""

    def __init__(self, backend: Backend, pack: bytes, size: int, pace: Callable[[int], None]) -> None:
        self._backend = backend
        self._pack = pack
        self._key = pack_key(pack)
        self._size = size
        self._pace = pace
        self._hasher = Hasher()
        self._windows: deque[memoryview] = deque()
        self._begin = self._end = 0

    def read_into(self, key: str, buffer: memoryview, *, start: int = 0) -> int:
        """Read as a backend does: from what is kept, if it is there or comes next."""
        stop = start + len(buffer)
        if key != self._key or stop > self._size:
            return self._backend.read_into(key, buffer, start=start)
        while self._end < stop:
            self._advance()
        if start < self._begin:
            return self._backend.read_into(key, buffer, start=start)
        at = self._begin
        for window in self._windows:
            begin, end = max(start, at), min(stop, at + len(window))
            if begin < end:
                buffer[begin - start : end - start] = window[begin - at : end - at]
            at += len(window)
        return len(buffer)

    def finish(self) -> None:
        """Read the rest; raise FormatError if the pack does not have the hash that names it."""
        while self._end < self._size:
            self._advance()
        if self._hasher.digest() != self._pack:
            raise FormatError(f"{self._key} does not have the hash that names it: some byte in it changed.")

    def _advance(self) -> None:
        wanted = min(_WINDOW, self._size - self._end)
        self._pace(wanted)
        if len(self._windows) == _KEPT:
            self._begin += len(self._windows.popleft())
        window = new_buffer(wanted)
        done = 0
        while done < wanted:
            with bad_file_is_damage(self._backend):
                count = self._backend.read_into(self._key, window[done:], start=self._end + done)
            if count == 0:
                raise FormatError(f"{self._key} became shorter while it was read.")
            done += count  # A server may stop early without an error: ask for the rest again.
        self._hasher.update(window)
        self._windows.append(window)
        self._end += wanted
