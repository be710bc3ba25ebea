"""A collector by the design's rules, and the question that every test of publishing asks: is it all there?"""

from __future__ import annotations

import contextlib
import uuid

from casstore.digest import digest
from casstore.errors import ObjectNotFound
from casstore.format import frame, marks, names, record
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format.frame import FrameHeader
from casstore.format.rows import Kind, row_ids
from casstore.objects.footers import read_footer
from casstore.objects.keys import PACK_PREFIX, pack_id_of, pack_key
from casstore.objects.object_store import ObjectStore
from casstore.objects.pack_writer import EncodedFrames


def packs_of(backend):
    """Return the ids of the packs that are listed."""
    return [pack_id_of(entry.key) for entry in backend.list(PACK_PREFIX)]


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


def bases_of(objects, packs):
    """Return what objects are deltas against, in frames of any of these packs, transitively."""
    found, left = set(), set(objects)
    while left:
        near = {
            base for frames in packs.values() for item, _, bases in frames if item in left for base in bases
        }
        left = near - found
        found |= near
    return found


def delta_frame(plain, rank, bases):
    """Return a frame that names bases, of a payload that happens to decode alone: no writer makes one yet."""
    header = FrameHeader(digest(plain), Kind.CHUNK, 0, len(plain), len(plain), rank, tuple(bases))
    return EncodedFrames([header], memoryview(frame.encode_header(header) + plain))


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


def collect_alone(backend, *, meanwhile=lambda: None):
    """Free the packs that no model needs, at once, as a collector does that holds the lock; return what went.

    Tombstones first, then the records, then a look at who may be publishing without the lock: who put his record
    after the records were read sees the tombstones when he checks again, and whose record was there is spared.
    `meanwhile` runs before each delete, when everything is decided.
    """
    with backend.publish_lock(exclusive=True, blocking=False) as alone:
        if not alone or backend.has_lockless_writers():
            return []
        live = live_objects(backend)
        doomed = [pack for pack, ids in objects_by_pack(backend).items() if not ids & live]
        condemn(backend, doomed)
        live = live_objects(backend)
        doomed = [pack for pack, ids in objects_by_pack(backend).items() if pack in doomed and not ids & live]
        if backend.has_lockless_writers():
            return []
        for pack in doomed:
            meanwhile()
            delete_packs(backend, [pack])
        return doomed


def live_objects(backend):
    """Return every object that some record needs."""
    return set().union(*(reachable(backend, item) for item in current_records(backend).values()))


def unsafe_objects(backend, name):
    """Return what the record of `name` needs and no pack holds that is listed and not condemned."""
    doomed = {pack for packs in condemned_in(backend).values() for pack in packs}
    safe = decoded(
        item for pack in packs_of(backend) if pack not in doomed for item in frames_of(backend, pack)
    )
    return reachable(backend, current_records(backend)[name]) - safe
