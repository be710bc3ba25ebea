"""Encodes chunks by their plans, on worker threads, and keeps a delta only where it is worth it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.codecs import share_of_plain
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
    return {key: _chosen(block, planned[key], delta, policy) for key, delta in deltas.items() if delta}


def joined(frames: Sequence[EncodedFrames]) -> EncodedFrames | None:
    """Return frames as one piece of a pack, None if there are none."""
    if not frames:
        return None
    headers = [header for item in frames for header in item.headers]
    data = memoryview(b"".join(item.data for item in frames))
    for item in frames:
        item.release()
    return EncodedFrames(headers, data)


def _encode(items: Sequence[DeltaChunk]) -> list[EncodedFrames | None]:
    try:
        return encode_deltas(items)
    except FormatError:
        # Invariant 14: the layout that a plan rests on may be wrong about the lengths of its chunks.
        if len(items) == 1:
            return [None]
    return [frames for item in items for frames in _encode([item])]


def _chosen(
    block: memoryview, item: PlannedChunk, delta: EncodedFrames, policy: DeltaPolicy
) -> EncodedFrames:
    """Return the delta if it is worth it, else the frame without bases."""
    size, length = len(delta.data), item.end - item.begin
    if size <= _TINY * length or size <= _SURE * policy.keep * _plain_size(block, item):
        return delta
    cut = item.begin, length
    alone = encode_frames(Kind.CHUNK, [item.object_id], block, [cut], [item.hint])
    if size <= policy.keep * len(alone.data):
        alone.release()
        return delta
    return alone


def _plain_size(block: memoryview, item: PlannedChunk) -> float:
    """Estimate the bytes that a chunk takes without bases: as its plan says, else by a look at some of its bytes."""
    if item.plan.plain is not None:
        return item.plan.plain
    chunk = block[item.begin : item.end]
    return share_of_plain(chunk, item.hint) * len(chunk)
