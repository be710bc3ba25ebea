"""Bases are kept where several chunks of a block need them, and otherwise read for one block only."""

from __future__ import annotations

import pytest
from fakes.stores import noise

from casstore import Store
from casstore.store.adding.bases.files.base_chunks import BaseChunks
from casstore.store.adding.bases.files.own_files import OwnChunks


class Counting:
    """The objects of a store; `asked` are those that were read."""

    def __init__(self, objects):
        self.objects, self.asked = objects, []

    def read_bases(self, ids, *, lent):
        self.asked += ids
        return self.objects.read_bases(ids, lent=lent)


@pytest.fixture
def stored(tmp_path):
    """A store's objects, and chunks of it by id."""
    plain = noise(1, 3 << 20)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_bytes(plain)
    with Store(tmp_path / "store", create=True, durability="none") as store:
        store.add(tmp_path / "model", ref="models/m")
        (layout,) = store.model("models/m").layouts
        edges = layout.offsets().tolist()
        yield (
            Counting(store.objects),
            {chunk: plain[edges[at] : edges[at + 1]] for at, chunk in enumerate(layout.chunk_ids())},
        )


@pytest.mark.parametrize("again", [False, True])
def test_only_what_several_chunks_need_is_kept(stored, again):
    objects, plain = stored
    chunks = BaseChunks(objects, own=OwnChunks())
    once, often, *others = plain
    for _ in range(2):
        found = chunks.read([once, often, often, *others], again=again)
        assert {chunk: bytes(base.plain) for chunk, base in found.items()} == plain
    assert [objects.asked.count(chunk) for chunk in (once, often)] == [1 if again else 2, 1]


def test_what_is_kept_has_a_limit(stored):
    objects, plain = stored
    first, second, *_ = plain
    chunks = BaseChunks(objects, own=OwnChunks(), kept=len(plain[second]))
    for chunk in (first, second, second, first):
        assert bytes(chunks.read([chunk], again=True)[chunk].plain) == plain[chunk]
    assert objects.asked == [first, second, first]
