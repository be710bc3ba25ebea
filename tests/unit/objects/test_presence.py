"""Which packs are there, and what asking costs."""

from __future__ import annotations

import uuid

import pytest

from casstore.backend import BackendWrapper, MemoryBackend
from casstore.digest import digest
from casstore.errors import BackendUnavailable
from casstore.format.rows import Kind
from casstore.machine.state import MachineState
from casstore.objects.keys import PACK_PREFIX, pack_id_of, pack_key
from casstore.objects.publishing import presence
from casstore.objects.publishing.presence import PresentPacks, has_pack, have_packs
from casstore.store.identity import create_format
from casstore.store.model_store import ModelStore


class Far(BackendWrapper):
    """A bucket by its URL; counts what is asked."""

    def __init__(self, inner, scheme):
        super().__init__(inner)
        self.url = f"{scheme}://bucket"
        self.is_remote, self.lists_flat = scheme != "file", scheme == "s3"
        self.stats = self.lists = 0
        self.fails = False

    def stat(self, key):
        self.stats += 1
        return self.inner.stat(key)

    def list(self, prefix):
        self.lists += 1
        if self.fails:
            raise BackendUnavailable("out of reach")
        return self.inner.list(prefix)


@pytest.fixture
def store():
    backend = MemoryBackend(uuid.uuid4().hex)
    opened = ModelStore(backend, store_id=create_format(backend).store_id, machine=MachineState(None))
    for number in range(40):
        with opened.publication() as publication:
            plain = b"%d" % number * 50
            publication.write_objects(Kind.CHUNK, {digest(plain): plain})
            publication.commit_all([], lambda _: iter(()))
    return opened


@pytest.fixture
def ids(store):
    return [pack_id_of(entry.key) for entry in store.backend.list(PACK_PREFIX)]


def replace(store, pack, change):
    data = store.backend.read(pack_key(pack))
    store.backend.delete(pack_key(pack))
    store.backend.put(pack_key(pack), [change(data)])


@pytest.mark.parametrize("scheme", ["file", "s3", "sftp"])
@pytest.mark.parametrize("asked_at_once", [True, False])
def test_only_what_is_whole_counts(store, ids, scheme, asked_at_once, monkeypatch):
    monkeypatch.setattr(presence, "ASKERS", 1 if asked_at_once else 1_000)
    backend = Far(store.backend, scheme)
    many = 10  # more questions than a store has folders of packs
    assert all(have_packs(backend, store.objects._index, ids * many))
    replace(store, ids[0], lambda data: data[:-1])
    replace(store, ids[1], lambda data: data + b"\0")
    replace(store, ids[2], lambda _: b"")
    store.backend.delete(pack_key(ids[3]))
    expected = [False] * 4 + [True] * (len(ids) - 4)
    assert have_packs(backend, store.objects._index, ids * many) == expected * many
    assert [has_pack(backend, store.objects._index, pack) for pack in ids] == expected
    assert not has_pack(backend, store.objects._index, digest(b"a pack that nobody knows"))
    assert bool(backend.lists) == (asked_at_once and scheme != "file")


def test_one_listing_is_cheaper_than_many_questions(store, ids):
    assert not presence._is_listing_cheaper(30, 100, flat=True)
    assert presence._is_listing_cheaper(1_000, 5_000, flat=True)
    assert not presence._is_listing_cheaper(1_000, 1_000_000, flat=True)
    assert not presence._is_listing_cheaper(1_000, 5_000, flat=False)
    assert presence._is_listing_cheaper(10_000, 10_000, flat=False)
    backend = Far(store.backend, "s3")
    have_packs(backend, store.objects._index, ids * 10)
    assert (backend.lists, backend.stats) == (1, 0)


def test_a_listing_that_fails_is_no_absence(store, ids):
    backend = Far(store.backend, "s3")
    backend.fails = True
    with pytest.raises(BackendUnavailable):
        have_packs(backend, store.objects._index, ids * 10)


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_each_pack_is_asked_for_once(store, ids, scheme):
    backend = Far(store.backend, scheme)
    objects = [digest(b"%d" % number * 50) for number in range(40)]
    present = PresentPacks(
        backend,
        store.objects._index,
        condemned=lambda number: store.objects._index.pack_id(number) in ids[:5],
    )
    for _ in range(3):
        assert present.locate(objects).found.sum() == 35
    assert backend.stats + backend.lists <= 40
