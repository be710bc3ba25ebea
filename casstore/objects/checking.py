"""Checks packs and index segments: their bytes, their form, and that they agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import digest
from casstore.errors import FormatError, ObjectNotFound
from casstore.format import index as index_format
from casstore.format import pack as pack_format
from casstore.format.rows import ROW, check_rows
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.footers import read_footer
from casstore.objects.keys import index_id_of, pack_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casstore.backend.base import Backend
    from casstore.format.pack import Footer


def check_pack(backend: Backend, pack_id: bytes, *, size: int) -> Footer:
    """Check a pack of `size` bytes apart from its frames and its hash; return its footer.

    Raises ObjectNotFound if it is gone, FormatError if it is damaged.
    """
    key = pack_key(pack_id)
    with bad_file_is_damage(backend):
        head = backend.read(key, start=0, length=pack_format.HEADER_SIZE)
    pack_format.check_header(head, key=key)
    return read_footer(backend, pack_id, size=size)


def check_segment(backend: Backend, key: str, footers: Mapping[bytes, Footer]) -> None:
    """Check a segment's bytes, and that each row agrees with the pack's own footer; raise FormatError if not."""
    segment_id = index_id_of(key)
    try:
        data = memoryview(backend.read(key))
    except ObjectNotFound:
        return  # Invariant 5: it was merged into another one since the listing; a missing hint is not a problem.
    if digest(data) != segment_id:
        raise _damaged(f"{key} does not have the hash that names it")
    shape = index_format.decode_shape(data, key=key)
    if shape.size != len(data):
        raise _damaged(f"{key} has the wrong length")
    head = index_format.decode_head(data, shape, key=key)
    bases = index_format.decode_bases(data[shape.bases_begin :], head, key=key)
    rows = np.frombuffer(data[shape.rows_begin : shape.bases_begin], ROW)
    check_rows(rows, lists=len(bases), packs=len(head.packs), key=key)
    if index_format.encode(rows, bases, dict(zip(head.packs, head.sizes, strict=True))) != data:
        raise _damaged(f"{key} is not in order")
    fields = ["id", "offset", "stored", "raw", "kind", "encoding", "rank"]
    for position, pack_id in enumerate(head.packs):
        footer = footers.get(pack_id)
        if footer is None:
            continue  # Invariant 5: rows whose pack is gone mean nothing; a damaged pack is reported itself.
        mine = np.sort(rows[rows["pack"] == position][fields], order="offset")
        theirs = np.sort(footer.rows[fields], order="offset")
        if footer.pack_size != head.sizes[position] or not np.array_equal(mine, theirs):
            raise _damaged(f"{key} disagrees with {pack_key(pack_id)}")


def _damaged(what: str) -> FormatError:
    return FormatError(f"{what}. Remove that file; it is rebuilt from the packs.")
