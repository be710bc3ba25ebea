"""Reading objects: look up, fetch frames in coalesced ranges, decode, verify, only then hand out.

Every byte that leaves this module hashed to its id first (invariant 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore import codecs
from casstore.digest import DIGEST_SIZE, digest
from casstore.errors import DigestMismatch, FormatError, MissingObject, ObjectNotFound
from casstore.format import frame
from casstore.store.buffers import new_buffer
from casstore.store.index import NOT_FOUND, Located
from casstore.store.keys import pack_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casstore.backend.base import Backend
    from casstore.store.index import Index

MAX_FETCH = 8 << 20
"""Stored bytes that one read of a pack takes, at most, unless one frame is larger."""

MAX_GAP = 64 << 10
"""Unwanted bytes between two wanted frames that are read along rather than costing a second read."""

_ADVICE = "Run `casstore check --read-data` to see what is damaged, and restore that file from another copy."


class ObjectReader:
    """Reads objects of one store; safe in threads and after a fork."""

    def __init__(self, backend: Backend, index: Index) -> None:
        self._backend = backend
        self._index = index

    def read(self, object_id: bytes) -> bytes:
        """Return the verified plain bytes of one object; raises MissingObject or another IntegrityError."""
        return self.read_many([object_id])[0]

    def read_many(self, ids: Sequence[bytes]) -> list[bytes]:
        """Return the verified plain bytes of several objects, in order."""
        located = self.locate(ids)
        buffers = [bytearray(size) for size in located.rows["raw"].tolist()]
        self.fill(located, range(len(buffers)), [memoryview(buffer) for buffer in buffers])
        return [bytes(buffer) for buffer in buffers]

    def locate(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find every object, looking harder as needed; raise MissingObject for one that no pack holds."""
        located = self._index.locate(ids)
        if located.found.all():
            return located
        self._index.refresh()
        located = self._index.locate(ids)
        while not located.found.all() and self._index.read_uncovered():
            located = self._index.locate(ids)
        if not located.found.all():
            at = int(np.argmin(located.found))
            joined = ids if isinstance(ids, bytes) else b"".join(ids)
            missing = joined[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE]
            raise MissingObject(
                f"No pack holds the object {missing.hex()}. Add the model again, or copy it from a store that has it."
            )
        return located

    def fill(self, located: Located, wanted: Sequence[int], outs: Sequence[memoryview]) -> None:
        """Decode the objects at positions `wanted` of `located` into `outs`, verified.

        Each out must have exactly its object's raw length; it is owned by the caller and holds
        unspecified bytes if this raises.
        """
        pending = dict(zip(wanted, outs, strict=True))
        while pending:
            gone: int | None = None
            for group in _fetch_groups(located, list(pending)):
                number = int(located.rows["pack"][group[0]])
                try:
                    self._fill_group(located, group, pending, pack_key(self._index.pack_id(number)))
                except ObjectNotFound:
                    gone = number  # Invariant 5: an entry whose pack is gone does not exist.
                    break
                for at in group:
                    del pending[at]
            if gone is not None:
                self._index.forget_pack(gone)
                left = list(pending)
                again = self.locate([_row_id(located, at) for at in left])
                located.rows[left] = again.rows
                located.sources[left] = again.sources + len(located.lists)
                located = Located(located.rows, located.sources, located.lists + again.lists)

    def _fill_group(self, located: Located, group: list[int], outs: dict[int, memoryview], key: str) -> None:
        rows = located.rows
        begin = int(rows["offset"][group[0]])
        last = group[-1]
        end = int(rows["offset"][last]) + _frame_size(located, last)
        buffer = new_buffer(end - begin)
        if self._backend.read_into(key, buffer, start=begin) != len(buffer):
            raise FormatError(f"{key} is cut short. {_ADVICE}")
        for at in group:
            offset = int(rows["offset"][at]) - begin
            object_id = _row_id(located, at)
            header = frame.decode_header(buffer[offset : offset + _frame_size(located, at)], key=key)
            out = outs[at]
            if (
                header.object_id != object_id
                or header.raw != len(out)
                or header.stored != rows["stored"][at]
                or header.kind != rows["kind"][at]
                or header.encoding != rows["encoding"][at]
                or header.rank != rows["rank"][at]
            ):
                raise FormatError(f"{key} holds another frame than its index says. {_ADVICE}")
            start = offset + header.size
            try:
                codecs.decode_into(header.encoding, buffer[start : start + header.stored], out)
            except FormatError as error:
                # Invariant 4: the error names the file, so that a person can mend it.
                raise type(error)(f"{key}, object {object_id.hex()}: {error} {_ADVICE}") from error
            actual = digest(out)
            if actual != object_id:
                raise DigestMismatch(object_id.hex(), actual.hex(), key, _ADVICE)


def _row_id(located: Located, at: int) -> bytes:
    found: bytes = located.rows["id"][at].tobytes()
    return found


def _frame_size(located: Located, at: int) -> int:
    return frame.header_size(len(located.bases(at))) + int(located.rows["stored"][at])


def _fetch_groups(located: Located, wanted: list[int]) -> Iterator[list[int]]:
    """Split positions into groups that one read serves, each in the order of the pack."""
    rows = located.rows[wanted]
    assert not np.any(rows["pack"] == NOT_FOUND)
    order = np.lexsort((rows["offset"], rows["pack"])).tolist()
    packs, offsets = rows["pack"].tolist(), rows["offset"].tolist()
    group: list[int] = []
    group_pack = begin = end = -1
    for position in order:
        at = wanted[position]
        pack, offset = packs[position], offsets[position]
        stop = offset + _frame_size(located, at)
        if group and (pack != group_pack or offset > end + MAX_GAP or stop - begin > MAX_FETCH):
            yield group
            group = []
        if not group:
            group_pack, begin, end = pack, offset, stop
        group.append(at)
        end = max(end, stop)
    if group:
        yield group
