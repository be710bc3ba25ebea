"""What a collector does to a store, step by step, and the question that every test of publishing asks: is it all there?"""

from __future__ import annotations

import contextlib
import itertools
import uuid

from casstore.backend import BackendWrapper
from casstore.codecs import Encoding
from casstore.codecs.delta import Extent, Order, Residual, encode_delta, same
from casstore.digest import digest
from casstore.errors import ObjectNotFound
from casstore.format import frame, marks, names, record
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format.frame import FrameHeader
from casstore.format.rows import Kind, row_ids
from casstore.machine.state import MachineState
from casstore.objects.footers import read_footer
from casstore.objects.keys import PACK_PREFIX, pack_id_of, pack_key
from casstore.objects.object_store import ObjectStore
from casstore.objects.publishing.pack_writer import EncodedFrames
from casstore.ops.gc import GcPolicy, execute_gc, plan_gc
from casstore.store.model_store import ModelStore


def packs_of(backend):
    """Return the ids of the packs that are listed."""
    return [pack_id_of(entry.key) for entry in backend.list(PACK_PREFIX)]


def write_frames(store, *frames):
    """Publish frames in a pack of their own, of which no record is written; return its id."""
    before = set(packs_of(store.backend))
    with store.publication() as publication:
        for item in frames:
            publication.write(item)
        publication.commit_all([], lambda _: iter(()))
    [pack] = set(packs_of(store.backend)) - before
    return pack


def condemn(backend, packs, *, name=None):
    """Write a tombstone; return its key."""
    key = f"{marks.TOMBSTONE_PREFIX}{name or uuid.uuid4()}"
    backend.put(key, [marks.encode_tombstone(marks.Tombstone(tuple(packs), 0))])
    return key


def condemned_in(backend):
    """Return tombstone key → packs that it names."""
    found = {}
    for entry in backend.list(marks.TOMBSTONE_PREFIX):
        with contextlib.suppress(ObjectNotFound):
            found[entry.key] = marks.decode_tombstone(backend.read(entry.key), key=entry.key).packs
    return found


def delete_packs(backend, packs):
    for pack in packs:
        backend.delete(pack_key(pack))


def objects_by_pack(backend):
    """Return pack id → object ids, from the packs' own footers."""
    return {pack: set(row_ids(read_footer(backend, pack).rows)) for pack in packs_of(backend)}


def frames_of(backend, pack):
    """Return (object id, rank, ids of bases) of each frame of a pack."""
    footer = read_footer(backend, pack)
    return [
        (object_id, int(row["rank"]), footer.bases.get(int(row["bases"])))
        for object_id, row in zip(row_ids(footer.rows), footer.rows, strict=True)
    ]


def decoded(frames):
    """Return the objects of which one of these frames decodes: found by trying until nothing is new."""
    frames, ranks = list(frames), {}
    while True:
        fresh = {
            object_id: rank
            for object_id, rank, bases in frames
            if rank < ranks.get(object_id, 99) and all(ranks.get(base, 99) < rank for base in bases)
        }
        if not fresh:
            return set(ranks)
        ranks.update(fresh)


def delta_frame(plain, rank, bases):
    """Return the frame of a delta of this rank against these bytes, each of which predicts a part of it."""
    edges = [len(plain) * at // len(bases) for at in range(len(bases) + 1)]
    pieces = []
    for at, (begin, end) in enumerate(itertools.pairwise(edges)):
        size = min(end - begin, len(bases[at]))
        pieces.append(same(begin, [Extent(at, 0, size)], Residual(Order.INTEGER, 1)))
    payload = encode_delta(plain, bases, pieces)
    ids = tuple(map(digest, bases))
    header = FrameHeader(digest(plain), Kind.CHUNK, Encoding.DELTA, len(plain), len(payload), rank, ids)
    return EncodedFrames([header], memoryview(frame.encode_header(header) + payload))


def current_records(backend):
    """Return ref name → its newest record, without any cache."""
    newest = {}
    for entry in backend.list(names.PREFIX):
        with contextlib.suppress(ObjectNotFound):
            item = record.decode(backend.read(entry.key), key=entry.key)
            if item.name not in newest or newest[item.name].order < item.order:
                newest[item.name] = item
    return {name: item for name, item in newest.items() if item.target is not None}


def reachable(backend, item):
    """Return every object that a model's record needs."""
    reader = ObjectStore(backend)
    manifest = manifest_format.decode_model(reader.read(item.manifest))
    needed = {item.manifest, manifest.model_id, *manifest.layouts}
    for layout_id in manifest.layouts:
        needed.update(layout_format.decode(reader.read(layout_id)).chunk_ids())
    return needed


class _Watched(BackendWrapper):
    """Calls `meanwhile` before each pack is deleted, when everything is decided."""

    def __init__(self, inner, meanwhile):
        super().__init__(inner)
        self._meanwhile = meanwhile

    def delete(self, key):
        if key.startswith(PACK_PREFIX):
            self._meanwhile()
        super().delete(key)


def collect_alone(backend, *, meanwhile=lambda: None):
    """Free the packs that no model needs, as casstore does; return what went. `meanwhile` runs before each delete."""
    before = packs_of(backend)
    store = ModelStore(_Watched(backend, meanwhile), store_id=bytes(16), machine=MachineState(None))
    execute_gc(store, plan_gc(store, GcPolicy(orphans_now=True, superseded=0)), wait=0)
    return [pack for pack in before if pack not in packs_of(backend)]


def unsafe_objects(backend, name):
    """Return what the record of `name` needs and no pack holds that is listed and not condemned."""
    doomed = {pack for packs in condemned_in(backend).values() for pack in packs}
    safe = decoded(
        item for pack in packs_of(backend) if pack not in doomed for item in frames_of(backend, pack)
    )
    return reachable(backend, current_records(backend)[name]) - safe
