"""Frames of deltas: encoded, decoded again and compared, with rank and bases."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casstore import codecs
from casstore.codecs import Delta, Encoding
from casstore.concurrency.buffers import scratch
from casstore.digest import digest
from casstore.errors import DigestMismatch
from casstore.format import frame
from casstore.format.frame import FrameHeader
from casstore.format.rows import MAX_BASE_BYTES, MAX_BASES, MAX_RANK, RANK_STEP, Kind
from casstore.objects.publishing.pack_writer import EncodedFrames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.codecs.delta import Piece


class Base(NamedTuple):
    """An object against which others are encoded (`ObjectStore.read_bases`).

    `rank` is that of its frame, and `below` the plain bytes of that frame's bases, with the bases of those.
    """

    object_id: bytes
    plain: bytes | memoryview
    rank: int = 0
    below: int = 0


def encode_delta(
    plain: bytes | memoryview,
    *,
    bases: Sequence[Base],
    pieces: Sequence[Piece],
    side: bytes = b"",
    object_id: bytes | None = None,
) -> EncodedFrames | None:
    """Return the frame of a chunk that is predicted from bases, verified; None if it would be no use or beyond the limits.

    `pieces` predict parts of `plain`, and name bases by their place in `bases`; the rest, and `side`, become literal bytes
    (`codecs.encode_delta`). `object_id` is the id of `plain`, if it is known. No use is one that is not smaller than `plain`. Raises ValueError for a prediction that is not exact and
    has no residual, FormatError for pieces that are malformed, DigestMismatch if the encoder is wrong.
    """
    rank = max(base.rank for base in bases) + RANK_STEP
    size = sum(len(base.plain) + base.below for base in bases)
    if rank > MAX_RANK or len(bases) > MAX_BASES or size > MAX_BASE_BYTES:
        return None
    payload = codecs.encode_delta(plain, [base.plain for base in bases], pieces, side=side)
    if len(payload) >= len(plain):
        return None
    ids = tuple(base.object_id for base in bases)
    own = digest(plain) if object_id is None else object_id
    header = FrameHeader(own, Kind.CHUNK, Encoding.DELTA, len(plain), len(payload), rank, ids)
    _verify(header, payload, bases, memoryview(plain))
    return EncodedFrames([header], memoryview(frame.encode_header(header) + payload))


def _verify(header: FrameHeader, payload: bytes, bases: Sequence[Base], plain: memoryview) -> None:
    """Decode a payload before it is published (invariant 9)."""
    decoded = scratch(header.raw)
    codecs.decode_deltas([Delta(payload, [base.plain for base in bases])], [header.raw], decoded)
    if codecs.equal(decoded, plain):
        return
    actual = digest(decoded)
    if actual != header.object_id:
        raise DigestMismatch(header.object_id.hex(), actual.hex(), "a new frame", "Nothing was added.")
