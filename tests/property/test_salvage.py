"""Salvage of a damaged pack: every frame that no damage touched is found, and nothing but what its id says is returned."""

from __future__ import annotations

import uuid

import pytest
from fakes.stores import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.backend import MemoryBackend
from casstore.digest import digest
from casstore.format.rows import Kind
from casstore.objects import ObjectStore, encode_objects, pack_key
from casstore.objects.reading import salvage as salvaging

SIZES = (0, 1, 60, 900, 9_000, 70_000)


def pack_of(plains):
    """Return a store in memory whose only pack has these objects, and where the frame of each lies."""
    store = ObjectStore(MemoryBackend(uuid.uuid4().hex))
    objects = {digest(plain): plain for plain in plains}
    with store.publication(lambda record: record) as publication:
        publication.write(encode_objects(Kind.CHUNK, objects))
        publication.commit_all([], lambda _: iter(()))
    located = store.find(list(objects))
    [pack] = store.packs_of(located)
    footer = store.footer(pack)
    begins = footer.rows["offset"].tolist()
    ends = [*begins[1:], footer.begin]
    ids = [row.tobytes() for row in footer.rows["id"]]
    return store, pack, objects, dict(zip(ids, zip(begins, ends, strict=True), strict=True))


def salvaged(store, pack):
    found = {}
    for frames in store.damaged_packs().salvage(pack, None, damaged=[pack]):
        found.update(store.decode(frames))
    return found


damage = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from((1, 4, 60, 3_000)), st.binary(min_size=1, max_size=8)),
    max_size=6,
)


@given(st.lists(st.sampled_from(SIZES), min_size=1, max_size=8), damage, st.floats(0.3, 1.5), st.booleans())
@settings(max_examples=60)
def test_every_frame_that_is_untouched_is_found(sizes, wounds, length, small):
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(salvaging, "_WINDOW", 10_000)
        store, pack, objects, places = pack_of([noise(at, size) for at, size in enumerate(sizes)])
        key = pack_key(pack)
        held, written = store._backend._objects[key]
        data = bytearray(held)
        touched = []
        for where, size, fill in wounds:
            begin = int(where * (len(data) - 1))
            part = (fill * size)[: min(size, len(data) - begin)]
            data[begin : begin + len(part)] = part
            touched.append((begin, begin + len(part)))
        if length < 1:
            data = data[: int(length * len(data))]
        store._backend._objects[key] = (bytes(data), written)
        found = salvaged(store, pack)
        assert found.items() <= objects.items()
        for object_id, (begin, end) in places.items():
            if end <= len(data) and all(stop <= begin or start >= end for start, stop in touched):
                assert object_id in found, (begin, end)


@given(st.binary(max_size=3_000))
def test_any_bytes_are_searched(data):
    store = ObjectStore(MemoryBackend(uuid.uuid4().hex))
    pack = digest(data)
    store._backend.put(pack_key(pack), [data])
    assert salvaged(store, pack) == {}
