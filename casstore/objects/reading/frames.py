"""Checks and decodes frames that were fetched: nothing is passed on unless it is the object that it must be."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casstore import codecs
from casstore.codecs import Encoding
from casstore.concurrency.buffers import BLOCK, BLOCK_BUFFER, new_buffer, scratch
from casstore.digest import digest
from casstore.errors import DigestMismatch, FormatError, UnsupportedVersion
from casstore.format import frame
from casstore.format.frame import FrameHeader
from casstore.format.rows import ROW_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from casstore.codecs import Delta
    from casstore.objects.index.located import Located
    from casstore.objects.reading.ranges import Range

ADVICE = (
    "Restore that file from another copy, or run `casstore repair`, which looks for other copies. Where there are none, run "
    "`casstore quarantine REF`, then add the model again. `casstore check --read-data` shows all that is damaged."
)


class _Frame(NamedTuple):
    """A fetched frame, and where its plain bytes belong."""

    object_id: bytes
    encoding: int
    payload: memoryview
    bases: tuple[bytes, ...]
    begin: int
    end: int


class _Fetched(NamedTuple):
    """A fetched frame, of which the header was checked."""

    object_id: bytes
    kind: int
    encoding: int
    rank: int
    bases: tuple[bytes, ...]
    payload: memoryview


def decode_frames(
    located: Located,
    read: Range,
    fetched: memoryview,
    *,
    out: memoryview,
    places: Mapping[int, tuple[int, int]],
    bases: Mapping[bytes, memoryview],
    key: str,
    verify: bool,
) -> None:
    """Decode the frames of a range of the pack `key` to where `places` say in `out`, by position.

    `fetched` are the bytes of the range, `bases` plain bytes by id, all that deltas in it need. Raises an IntegrityError
    that names the pack. Unless `verify` is set, objects are not hashed.
    """
    lengths = [places[at][1] - places[at][0] for at in read.frames]
    frames = [
        _Frame(item.object_id, item.encoding, item.payload, item.bases, *places[at])
        for at, item in zip(read.frames, _split(located, read, fetched, lengths, key=key), strict=True)
    ]
    for run in _adjacent(frames):
        _decode(run, out, bases, key=key)
    if verify:
        _check_ids(frames, out, key=key)


def verify_frames(
    located: Located, read: Range, fetched: memoryview, *, bases: Mapping[bytes, memoryview], key: str
) -> list[FrameHeader]:
    """Prove that each frame of a range decodes to its object (invariant 9); return their headers.

    `fetched` are the range's bytes of the pack `key`; the caller keeps them, and `bases`, as in `decode_frames`.
    Raises an IntegrityError that names the pack.
    """
    headers: list[FrameHeader] = []
    run: list[_Frame] = []
    size = 0
    lengths = located.rows["raw"][list(read.frames)].tolist()
    for item, raw in zip(_split(located, read, fetched, lengths, key=key), lengths, strict=True):
        headers.append(
            FrameHeader(
                item.object_id, item.kind, item.encoding, raw, len(item.payload), item.rank, item.bases
            )
        )
        if run and size + raw > BLOCK:
            _verify_run(run, size, bases, key=key)
            run, size = [], 0
        run.append(_Frame(item.object_id, item.encoding, item.payload, item.bases, size, size + raw))
        size += raw
    if run:
        _verify_run(run, size, bases, key=key)
    return headers


def decode_encoded(headers: Sequence[FrameHeader], data: memoryview) -> dict[bytes, bytes]:
    """Return the plain bytes, by id, of frames that were verified and need no bases; `data` is all of them, joined."""
    plain: dict[bytes, bytes] = {}
    at = 0
    for header in headers:
        begin = at + header.size
        at = begin + header.stored
        out = bytearray(header.raw)
        codecs.decode_batch([(header.encoding, data[begin:at])], [header.raw], out)
        plain[header.object_id] = bytes(out)
    return plain


def _split(
    located: Located, read: Range, fetched: memoryview, lengths: Sequence[int], *, key: str
) -> Iterator[_Fetched]:
    """Yield the frames of a range, after checking that each has the header that the index describes.

    `lengths` are those of their plain bytes.
    """
    rows = located.rows[list(read.frames)].tobytes()
    for at, raw, row in zip(read.frames, lengths, ROW_FIELDS.iter_unpack(rows), strict=True):
        object_id, offset, stored, _, _, some, kind, encoding, rank = row
        bases = located.bases(at) if some else ()
        header = frame.encode_fields(object_id, kind, encoding, raw, stored, rank=rank, bases=bases, key=key)
        begin = offset - read.begin
        payload = begin + len(header)
        if fetched[begin:payload] != header:
            try:
                frame.decode_header(fetched[begin:], key=key)
            except FormatError as error:
                # Invariant 4: damage is reported, with the way back.
                raise FormatError(f"{error} {ADVICE}") from error
            raise FormatError(f"{key} does not hold the frame that its index lists there. {ADVICE}")
        yield _Fetched(object_id, kind, encoding, rank, bases, fetched[payload : payload + stored])


def _verify_run(run: list[_Frame], size: int, bases: Mapping[bytes, memoryview], *, key: str) -> None:
    # A thread keeps its scratch memory; anything larger than a block is rare and is freed.
    plain = scratch(size) if size <= BLOCK_BUFFER else new_buffer(size)
    for part in _adjacent(run):
        _decode(part, plain, bases, key=key)
    _check_ids(run, plain, key=key)


def _check_ids(frames: list[_Frame], plain: memoryview, *, key: str) -> None:
    for item in frames:
        actual = digest(plain[item.begin : item.end])
        if actual != item.object_id:
            raise DigestMismatch(item.object_id.hex(), actual.hex(), key, ADVICE)


def _adjacent(frames: list[_Frame]) -> Iterator[list[_Frame]]:
    """Divide frames into runs whose plain bytes adjoin, which are decoded together; deltas are in runs of their own."""
    run: list[_Frame] = []
    for item in frames:
        if run and (run[-1].end != item.begin or bool(run[-1].bases) != bool(item.bases)):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _decode(run: list[_Frame], buffer: memoryview, bases: Mapping[bytes, memoryview], *, key: str) -> None:
    lengths = [item.end - item.begin for item in run]
    out = buffer[run[0].begin : run[-1].end]
    try:
        if run[0].bases:
            codecs.decode_deltas([_delta(item, bases) for item in run], lengths, out)
        else:
            codecs.decode_batch([(item.encoding, item.payload) for item in run], lengths, out)
    except FormatError as error:
        if len(run) > 1:
            for item in run:
                _decode([item], buffer, bases, key=key)
        # Invariant 4: the error names the file and the object, so that a person can repair it.
        raise type(error)(f"{key}, object {run[0].object_id.hex()}: {error} {ADVICE}") from error


def _delta(item: _Frame, bases: Mapping[bytes, memoryview]) -> Delta:
    if item.encoding < Encoding.DELTA:
        raise FormatError(f"A frame with bases has encoding {item.encoding}, which needs none.")
    if item.encoding > Encoding.DELTA:
        raise UnsupportedVersion(
            f"This chunk has encoding {item.encoding}, of a newer casstore. Upgrade to read it."
        )
    return codecs.Delta(item.payload, [bases[base] for base in item.bases])
