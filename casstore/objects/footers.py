"""Reading the footers of packs, and joining them into the bytes of one index segment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.format import index as index_format
from casstore.format import pack as pack_format
from casstore.format.rows import merge_base_lists
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.keys import pack_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.backend.base import Backend
    from casstore.format.pack import Footer
    from casstore.format.rows import BaseLists, Rows

FOOTER_GUESS = 64 << 10
"""Bytes that are read from a pack's end at first: nearly every footer is in them."""


def read_footer(backend: Backend, pack_id: bytes, *, size: int | None = None) -> Footer:
    """Read and check a pack's footer with one or two range reads from its end.

    `size` is the pack's, where a listing has just said it. Raises ObjectNotFound if the pack is gone,
    FormatError if it is damaged.
    """
    key = pack_key(pack_id)
    with bad_file_is_damage(backend):
        if size is None:
            size = backend.stat(key).size
        begin = max(0, size - FOOTER_GUESS)
        tail = memoryview(backend.read(key, start=begin, length=size - begin))
        trailer = pack_format.decode_trailer(tail, pack_size=size, key=key)
        if trailer.begin < begin:
            body = backend.read(key, start=trailer.begin, length=trailer.size)
        else:
            body = bytes(tail[trailer.begin - begin : trailer.begin - begin + trailer.size])
    return pack_format.decode_footer(body, trailer, key=key)


def join_footers(packs: Sequence[tuple[bytes, Footer]]) -> bytes:
    """Return the bytes of an index segment over packs, given by id and footer."""
    parts: list[tuple[Rows, BaseLists]] = []
    for position, (_, footer) in enumerate(packs):
        rows = footer.rows.copy()
        rows["pack"] = position
        parts.append((rows, footer.bases))
    rows, bases = merge_base_lists(parts)
    return index_format.encode(rows, bases, {pack_id: footer.pack_size for pack_id, footer in packs})
