"""Reads objects: look up, fetch frames in coalesced ranges, decode, verify, and only then return.

No byte leaves this module before its object was hashed and compared with the id (invariant 4).
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore import codecs
from casstore.concurrency.buffers import BLOCK, BLOCK_BUFFER, new_buffer, scratch
from casstore.concurrency.fan_out import ask_all
from casstore.digest import DIGEST_SIZE, digest
from casstore.errors import (
    DigestMismatch,
    FormatError,
    IntegrityError,
    MissingObject,
    ObjectNotFound,
    UnsupportedVersion,
)
from casstore.format import frame
from casstore.format.frame import FrameHeader
from casstore.format.rows import ROW_FIELDS
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.index.index import NOT_FOUND, Located
from casstore.objects.keys import pack_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casstore.backend.base import Backend
    from casstore.objects.index.index import Index

MAX_FETCH = 8 << 20
"""Stored bytes that one read of a pack takes, at most, unless one frame is larger."""

MAX_GAP = 64 << 10
"""Unwanted bytes between two frames that are read along to save a second read."""

_MAX_MISSES = 3
"""Times that a pack may be listed and yet be absent when it is read: it may be on its way back from a backup."""

_ADVICE = (
    "Restore that file from another copy; or run `casstore quarantine REF`, then add the model again, or push it here "
    "with --overwrite from a store that has it. `casstore check --read-data` shows all that is damaged."
)


class ObjectReader:
    """Reads objects of one store; safe in threads and after a fork."""

    def __init__(self, backend: Backend, index: Index) -> None:
        self._backend = backend
        self._is_far = backend.is_remote
        self._index = index

    def read(self, object_id: bytes) -> bytes:
        """Return the verified plain bytes of one object; raises MissingObject or another IntegrityError."""
        return self.read_many([object_id])[0]

    def read_many(self, ids: Sequence[bytes]) -> list[bytes]:
        """Return the verified plain bytes of several objects, in order."""
        located = self.locate(ids)
        if not self._is_far:
            return self._read_group(located, list(range(len(ids))))
        groups = list(fetch_groups(located, list(range(len(ids)))))
        parts = ask_all(lambda group: self._read_group(located, group), groups)
        plain = dict(zip(chain.from_iterable(groups), chain.from_iterable(parts), strict=True))
        return [plain[at] for at in range(len(ids))]

    def _read_group(self, located: Located, group: list[int]) -> list[bytes]:
        edges = [0, *accumulate(located.rows["raw"][group].tolist())]
        buffer = new_buffer(edges[-1])
        self.fill(located, group, buffer, edges)
        return [bytes(buffer[begin:end]) for begin, end in pairwise(edges)]

    def locate(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find every object, looking harder as needed; raise MissingObject for one that no pack holds."""
        located = self._index.glance(ids)
        if located.found.all():
            return located
        self._index.refresh()
        located = self._index.locate(ids)
        while not located.found.all():
            joined = ids if isinstance(ids, bytes) else b"".join(ids)
            missing = [
                joined[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE]
                for at in np.flatnonzero(~located.found).tolist()
            ]
            if not (self._index.recheck(missing) or self._index.read_uncovered()):
                raise MissingObject(
                    f"No pack holds the object {missing[0].hex()}. "
                    "Add the model again, or copy it from a store that has it."
                )
            located = self._index.locate(ids)
        return located

    def fill(
        self,
        located: Located,
        wanted: Sequence[int],
        buffer: memoryview,
        edges: Sequence[int],
        *,
        elsewhere: bool = True,
        verify: bool = True,
    ) -> None:
        """Decode the objects at positions `wanted` of `located` into `buffer`, verified, in that order.

        `edges`, one more than there are objects, say where each begins and ends; that must be exactly its raw
        length. The buffer is the caller's, and holds unspecified bytes if this raises. What is damaged is
        read from another pack that holds it, if there is one and `elsewhere` is set. With `verify` off, only
        what does not decode counts as damaged: the caller must prove the bytes by another hash that covers
        them before anyone sees them (invariant 4).
        """
        pending = dict(zip(wanted, pairwise(edges), strict=True))
        misses: Counter[int] = Counter()
        while pending:
            absent: frozenset[int] = frozenset()
            for group in fetch_groups(located, list(pending)):
                number = int(located.rows["pack"][group[0]])
                if number in absent:
                    continue
                try:
                    key = pack_key(self._index.pack_id(number))
                    self._fill_group(located, group, pending, buffer, key=key, verify=verify)
                except ObjectNotFound:
                    # Invariant 5: an entry whose pack is gone does not exist.
                    misses[number] += 1
                    if misses[number] > _MAX_MISSES:
                        raise
                    self._index.forget_pack(number)
                    absent = self._index.gone_packs()
                except IntegrityError as error:
                    # Invariant 4: damage is raised, unless another pack has the same object whole.
                    if not elsewhere or not self._is_elsewhere(located, group, number, error):
                        raise
                else:
                    for at in group:
                        del pending[at]
            if pending:
                left = list(pending)
                again = self.locate([_row_id(located, at) for at in left])
                located.rows[left] = again.rows
                located.sources[left] = again.sources + len(located.lists)
                located = Located(located.rows, located.sources, located.lists + again.lists)

    def _is_elsewhere(self, located: Located, group: list[int], number: int, error: IntegrityError) -> bool:
        """Avoid a damaged pack from now on; say whether other packs hold everything that `group` needs."""
        if isinstance(error, UnsupportedVersion):
            return False
        self._index.avoid_pack(number)
        again = self._index.locate([_row_id(located, at) for at in group])
        return bool((again.found & (again.rows["pack"] != number)).all())

    def _fill_group(
        self,
        located: Located,
        group: list[int],
        places: dict[int, tuple[int, int]],
        buffer: memoryview,
        *,
        key: str,
        verify: bool,
    ) -> None:
        """Fetch the frames of `group`, neighbours in one pack, and put their objects where `places` say."""
        offsets = located.rows["offset"][group].tolist()
        fetched = scratch(offsets[-1] + frame_size(located, group[-1]) - offsets[0])
        with bad_file_is_damage(self._backend, _ADVICE):
            count = self._backend.read_into(key, fetched, start=offsets[0])
        if count != len(fetched):
            raise FormatError(f"{key} is truncated. {_ADVICE}")
        frames = []
        for at, offset in zip(group, offsets, strict=True):
            begin, end = places[at]
            framed = fetched[offset - offsets[0] :]
            header = _check_header(located, at, framed, end - begin, key=key)
            payload = framed[header.size : header.size + header.stored]
            frames.append(_Frame(header.object_id, header.encoding, payload, begin, end))
        for run in _adjacent(frames):
            _decode(run, buffer, key=key)
        if verify:
            _check_ids(frames, buffer, key=key)


class _Frame(NamedTuple):
    """A fetched frame, and where its plain bytes belong."""

    object_id: bytes
    encoding: int
    payload: memoryview
    begin: int
    end: int


def verify_frames(
    located: Located, group: Sequence[int], fetched: memoryview, *, begin: int, key: str
) -> list[FrameHeader]:
    """Prove that each frame of `group` decodes to its object (invariant 9); return their headers.

    `fetched` are bytes of the pack `key` from byte `begin` on; the caller keeps them. Raises an IntegrityError
    that names the pack.
    """
    headers: list[FrameHeader] = []
    run: list[_Frame] = []
    size = 0
    for at in group:
        offset = int(located.rows["offset"][at]) - begin
        framed = fetched[offset : offset + frame_size(located, at)]
        raw = int(located.rows["raw"][at])
        header = _check_header(located, at, framed, raw, key=key)
        headers.append(header)
        if run and size + raw > BLOCK:
            _verify_run(run, size, key=key)
            run, size = [], 0
        run.append(_Frame(header.object_id, header.encoding, framed[header.size :], size, size + raw))
        size += raw
    if run:
        _verify_run(run, size, key=key)
    return headers


def _verify_run(run: list[_Frame], size: int, *, key: str) -> None:
    # A thread keeps its scratch memory; anything larger than a block is rare and is freed.
    plain = scratch(size) if size <= BLOCK_BUFFER else new_buffer(size)
    _decode(run, plain, key=key)
    _check_ids(run, plain, key=key)


def _check_ids(frames: list[_Frame], plain: memoryview, *, key: str) -> None:
    for item in frames:
        actual = digest(plain[item.begin : item.end])
        if actual != item.object_id:
            raise DigestMismatch(item.object_id.hex(), actual.hex(), key, _ADVICE)


def _check_header(located: Located, at: int, framed: memoryview, raw: int, *, key: str) -> FrameHeader:
    """Return the header that the index describes, after checking that the fetched frame begins with it."""
    object_id, _, stored, _, _, _, kind, encoding, rank = ROW_FIELDS.unpack(located.rows[at].tobytes())
    header = FrameHeader(object_id, kind, encoding, raw, stored, rank, located.bases(at))
    if framed[: header.size] != frame.encode_header(header, key=key):
        try:
            frame.decode_header(framed, key=key)
        except FormatError as error:
            # Invariant 4: damage is reported, with the way back.
            raise FormatError(f"{error} {_ADVICE}") from error
        raise FormatError(f"{key} does not hold the frame that its index lists there. {_ADVICE}")
    return header


def _adjacent(frames: list[_Frame]) -> Iterator[list[_Frame]]:
    """Divide frames into runs whose plain bytes adjoin, which are decoded together."""
    run: list[_Frame] = []
    for item in frames:
        if run and run[-1].end != item.begin:
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _decode(run: list[_Frame], buffer: memoryview, *, key: str) -> None:
    try:
        codecs.decode_batch(
            [(item.encoding, item.payload) for item in run],
            [item.end - item.begin for item in run],
            buffer[run[0].begin : run[-1].end],
        )
    except FormatError as error:
        if len(run) > 1:
            for item in run:
                _decode([item], buffer, key=key)
        # Invariant 4: the error names the file and the object, so that a person can mend it.
        raise type(error)(f"{key}, object {run[0].object_id.hex()}: {error} {_ADVICE}") from error


def _row_id(located: Located, at: int) -> bytes:
    found: bytes = located.rows["id"][at].tobytes()
    return found


def frame_size(located: Located, at: int) -> int:
    """Return the bytes that the frame of a located row takes in its pack."""
    return frame.header_size(len(located.bases(at))) + int(located.rows["stored"][at])


def fetch_groups(
    located: Located, wanted: list[int], *, max_stored: int = MAX_FETCH, max_plain: int | None = None
) -> Iterator[list[int]]:
    """Split positions into groups that one read serves, each in the order of the pack.

    A group has at most `max_stored` bytes in the pack and `max_plain` decoded, or one frame.
    """
    if not wanted:
        return
    rows = located.rows[wanted]
    order = np.lexsort((rows["offset"], rows["pack"])).tolist()
    packs, offsets, lengths = rows["pack"].tolist(), rows["offset"].tolist(), rows["raw"].tolist()
    assert NOT_FOUND not in packs
    group: list[int] = []
    group_pack = begin = end = -1
    plain = 0
    for position in order:
        at = wanted[position]
        pack, offset = packs[position], offsets[position]
        stop = offset + frame_size(located, at)
        plain += lengths[position]
        if group and (
            pack != group_pack
            or offset > end + MAX_GAP
            or stop - begin > max_stored
            or (max_plain is not None and plain > max_plain)
        ):
            yield group
            group = []
        if not group:
            group_pack, begin, end = pack, offset, stop
            plain = lengths[position]
        group.append(at)
        end = max(end, stop)
    if group:
        yield group
