"""Frames of deltas: encoded, decoded again and compared, with rank and bases."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casstore import codecs
from casstore.codecs import Encoding
from casstore.concurrency.buffers import scratch
from casstore.digest import digest
from casstore.errors import DigestMismatch
from casstore.format import frame
from casstore.format.frame import FrameHeader
from casstore.format.rows import MAX_BASE_BYTES, MAX_BASES, MAX_RANK, RANK_STEP, Kind
from casstore.objects.publishing.pack_writer import EncodedFrames
from casstore.objects.reading.ranges import batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casstore.codecs.delta import Piece
    from casstore.codecs.delta.encoder import EncodedDelta

_AT_ONCE = 4 << 20
"""Plain bytes that are encoded and verified at once."""


class Base(NamedTuple):
    """An object against which others are encoded (`ObjectStore.read_bases`).

    `rank` is that of its frame, and `below` the plain bytes of that frame's bases, with the bases of those.
    """

    object_id: bytes
    plain: bytes | memoryview
    rank: int = 0
    below: int = 0


class DeltaChunk(NamedTuple):
    """A chunk that is to be a delta: its id, its bytes, its bases, and predictions that name those by their places.

    What no piece predicts, and `side`, become literal bytes (`codecs.DeltaInput`).
    """

    object_id: bytes
    plain: bytes | memoryview
    bases: Sequence[Base]
    pieces: Sequence[Piece]
    side: bytes = b""


def encode_delta(
    plain: bytes | memoryview, *, bases: Sequence[Base], pieces: Sequence[Piece], side: bytes = b""
) -> EncodedFrames | None:
    """Return the frame of a chunk that is predicted from bases; see `encode_deltas`."""
    return encode_deltas([DeltaChunk(digest(plain), plain, bases, pieces, side)])[0]


def encode_deltas(chunks: Sequence[DeltaChunk]) -> list[EncodedFrames | None]:
    """Return the frames of chunks that are predicted from bases, verified; None if it would be no use or beyond the limits.

    No use is one that is not smaller than its plain bytes. Those of one tensor are best given together, a few megabytes of
    them. Raises ValueError for a prediction that is not exact and has no residual, FormatError for pieces that are
    malformed, DigestMismatch if the encoder is wrong.
    """
    frames: list[EncodedFrames | None] = []
    for run in batches((len(chunk.plain) for chunk in chunks), _AT_ONCE):
        frames += _encode(chunks[run.start : run.stop])
    return frames


def _encode(chunks: Sequence[DeltaChunk]) -> Iterator[EncodedFrames | None]:
    """Yield the frames of a few chunks: they and their residuals stay in the processor's cache until all is verified."""
    tried = [chunk for chunk in chunks if _is_allowed(chunk.bases)]
    encoded = codecs.encode_deltas(
        [
            codecs.DeltaInput(chunk.plain, [base.plain for base in chunk.bases], chunk.pieces, chunk.side)
            for chunk in tried
        ],
        leads=[frame.header_size(len(chunk.bases)) for chunk in tried],
    )
    made = [
        (chunk, delta)
        for chunk, delta in zip(tried, encoded, strict=True)
        if len(delta.payload) < len(chunk.plain)
    ]
    # Invariant 9: of what is proved, the encoder has done and compared each step of a decoder.
    _verify([(chunk, delta.payload) for chunk, delta in made if not delta.is_proved])
    frames = {id(chunk): _frame(chunk, delta) for chunk, delta in made}
    return (frames.get(id(chunk)) for chunk in chunks)


def _frame(chunk: DeltaChunk, delta: EncodedDelta) -> EncodedFrames:
    ids = tuple(base.object_id for base in chunk.bases)
    raw, stored, rank = len(chunk.plain), len(delta.payload), _rank(chunk.bases)
    header = FrameHeader(chunk.object_id, Kind.CHUNK, Encoding.DELTA, raw, stored, rank, ids)
    delta.room[: header.size] = frame.encode_header(header)
    return EncodedFrames([header], delta.room)


def _rank(bases: Sequence[Base]) -> int:
    return max(base.rank for base in bases) + RANK_STEP


def _is_allowed(bases: Sequence[Base]) -> bool:
    size = sum(len(base.plain) + base.below for base in bases)
    return _rank(bases) <= MAX_RANK and len(bases) <= MAX_BASES and size <= MAX_BASE_BYTES


def _verify(made: Sequence[tuple[DeltaChunk, memoryview]]) -> None:
    """Decode payloads before they are published (invariant 9). Bytes equal to those of the chunk have its hash."""
    sizes = [len(chunk.plain) for chunk, _ in made]
    if not made:
        return
    decoded = scratch(sum(sizes))
    codecs.decode_deltas(
        [codecs.Delta(payload, [base.plain for base in chunk.bases]) for chunk, payload in made],
        sizes,
        decoded,
    )
    at = 0
    for chunk, _ in made:
        own = decoded[at : at + len(chunk.plain)]
        at += len(own)
        if not codecs.equal(own, memoryview(chunk.plain)):
            raise DigestMismatch(
                chunk.object_id.hex(), digest(own).hex(), "a new frame", "Nothing was added."
            )
