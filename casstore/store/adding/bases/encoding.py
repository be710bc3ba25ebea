"""Encodes chunks by their plans, on worker threads, and keeps a delta only where it is worth it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.codecs import share_of_plain
from casstore.concurrency.buffers import BLOCK, BLOCK_BUFFER, new_buffer, take_block
from casstore.errors import FormatError
from casstore.format.rows import Kind
from casstore.objects import DeltaChunk, EncodedFrames, encode_deltas, encode_frames

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casstore.codecs import ElementHint
    from casstore.store.adding.bases.files.base_chunks import BaseChunks
    from casstore.store.adding.bases.planning.chunk_plan import ChunkPlan
    from casstore.store.adding.bases.policy import DeltaPolicy

_SURE = 0.95
"""Of the estimate for a plain encoding, times what a delta must save: up to that a delta is kept without trying the other."""

_TINY = 1 / 64
"""The share of a chunk up to which a delta is kept whatever a plain encoding might leave."""

_SMALL = 64 << 10
"""Frames of fewer bytes get memory of their own: a borrowed block would be mostly unused."""


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """A chunk of a block that is to be a delta if that is worth it: its id, its bytes, and their element width."""

    object_id: bytes
    begin: int
    end: int
    hint: ElementHint | None
    plan: ChunkPlan


def encode_planned(
    block: memoryview, planned: Mapping[int, PlannedChunk], chunks: BaseChunks, policy: DeltaPolicy
) -> dict[int, EncodedFrames]:
    """Return the frames of planned chunks, by their keys, deltas or not; those without bases that can be read are left out.

    `block` is only read. Each frame was decoded and compared (invariant 9).
    """
    bases = chunks.read(base for item in planned.values() for base in item.plan.bases)
    items: dict[int, DeltaChunk] = {}
    for key, item in planned.items():
        own = [bases.get(base) for base in item.plan.bases]
        there = [base for base in own if base is not None]
        if len(there) == len(own):
            plain = block[item.begin : item.end]
            items[key] = DeltaChunk(item.object_id, plain, there, item.plan.pieces, item.plan.side)
    deltas = dict(zip(items, _encode(list(items.values())), strict=True))
    stretches = _stretches(block, planned)
    return {
        key: _chosen(block, planned[key], delta, policy, stretches[key])
        for key, delta in deltas.items()
        if delta
    }


class _Stretch:
    """Adjoining chunks of like elements: one look at them says about what a plain encoding leaves of each, as it chooses for all."""

    def __init__(self, block: memoryview, item: PlannedChunk) -> None:
        self._block = block
        self._first = item
        self._end = item.end
        self._share: float | None = None

    def take(self, item: PlannedChunk) -> bool:
        """Say whether a chunk belongs to it, and is part of it from now on."""
        first, hint, other = self._first, self._first.hint, item.hint
        if (
            hint is None
            or other is None
            or item.begin != self._end
            or item.end - first.begin > BLOCK
            or hint.width != other.width
            or hint.width <= 0
            or (hint.phase - other.phase - (item.begin - first.begin)) % hint.width
        ):
            return False
        self._end = item.end
        return True

    @property
    def share(self) -> float:
        """The share of its bytes that a plain encoding leaves, about."""
        if self._share is None:
            self._share = share_of_plain(self._block[self._first.begin : self._end], self._first.hint)
        return self._share


def _stretches(block: memoryview, planned: Mapping[int, PlannedChunk]) -> dict[int, _Stretch]:
    """Return the stretches to which planned chunks belong."""
    found: dict[int, _Stretch] = {}
    last: _Stretch | None = None
    for key, item in planned.items():
        if last is None or not last.take(item):
            last = _Stretch(block, item)
        found[key] = last
    return found


def joined(frames: Sequence[EncodedFrames]) -> EncodedFrames | None:
    """Return frames as one piece of a pack, None if there are none; they are not used afterwards."""
    if len(frames) <= 1:
        return frames[0] if frames else None
    headers = [header for item in frames for header in item.headers]
    size = sum(len(item.data) for item in frames)
    block = take_block() if _SMALL < size <= BLOCK_BUFFER else None
    data = new_buffer(size) if block is None else block[:size]
    at = 0
    for item in frames:
        data[at : at + len(item.data)] = item.data
        at += len(item.data)
        item.release()
    return EncodedFrames(headers, data, block)


def _encode(items: Sequence[DeltaChunk]) -> list[EncodedFrames | None]:
    try:
        return encode_deltas(items)
    except FormatError:
        # Invariant 14: the layout that a plan rests on may be wrong about the lengths of its chunks.
        if len(items) == 1:
            return [None]
    return [frames for item in items for frames in _encode([item])]


def _chosen(
    block: memoryview, item: PlannedChunk, delta: EncodedFrames, policy: DeltaPolicy, stretch: _Stretch
) -> EncodedFrames:
    """Return the delta if it is worth it, else the frame without bases."""
    size, length = len(delta.data), item.end - item.begin
    if size <= _TINY * length:
        return delta
    plain = stretch.share * length if item.plan.plain is None else item.plan.plain
    if size <= _SURE * policy.keep * plain:
        return delta
    cut = item.begin, length
    alone = encode_frames(Kind.CHUNK, [item.object_id], block, [cut], [item.hint])
    if size <= policy.keep * len(alone.data):
        alone.release()
        return delta
    return alone
