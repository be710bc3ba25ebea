"""Objects of a store: where they lie, how they are read, verified and published. Knows nothing of models or refs.

ObjectStore is the entry point; other packages import from here, never from the modules below (pyproject.toml).
"""

from __future__ import annotations

from casstore.format.pack import Footer
from casstore.objects.bases import decodable
from casstore.objects.collection.packs import ListedPacks, pack_overhead
from casstore.objects.collection.table import FrameTable, id_keys
from casstore.objects.damage import Damage, DamageLog, is_bad_file, is_refused
from casstore.objects.index.located import Located
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX, pack_id_of, pack_key
from casstore.objects.object_store import ObjectStore
from casstore.objects.publishing.delta_writer import Base, DeltaChunk, encode_delta, encode_deltas
from casstore.objects.publishing.dependencies import MAX_HINTS
from casstore.objects.publishing.pack_writer import (
    PACK_TARGET,
    EncodedFrames,
    check_object,
    encode_frames,
    encode_object,
    encode_objects,
    pack_target,
)
from casstore.objects.publishing.publication import Publication
from casstore.objects.reading.base_cache import BaseCache
from casstore.objects.reading.chunk_cache import CHUNK_CACHE, ChunkCache, Piece
from casstore.objects.reading.ranges import MAX_FETCH, MAX_GAP, Range, batches, frame_sizes, plan_ranges
from casstore.objects.reading.read_through import OtherCopies, ReadThrough

__all__ = [
    "CHUNK_CACHE",
    "INDEX_PREFIX",
    "MAX_FETCH",
    "MAX_GAP",
    "MAX_HINTS",
    "PACK_PREFIX",
    "PACK_TARGET",
    "Base",
    "BaseCache",
    "ChunkCache",
    "Damage",
    "DamageLog",
    "DeltaChunk",
    "EncodedFrames",
    "Footer",
    "FrameTable",
    "ListedPacks",
    "Located",
    "ObjectStore",
    "OtherCopies",
    "Piece",
    "Publication",
    "Range",
    "ReadThrough",
    "batches",
    "check_object",
    "decodable",
    "encode_delta",
    "encode_deltas",
    "encode_frames",
    "encode_object",
    "encode_objects",
    "frame_sizes",
    "id_keys",
    "is_bad_file",
    "is_refused",
    "pack_id_of",
    "pack_key",
    "pack_overhead",
    "pack_target",
    "plan_ranges",
]
