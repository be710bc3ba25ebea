"""Work for many small files grows with their number, not with its square: counted, not timed."""

from collections import Counter

import pytest
from fakes.fresh_files import trust_fresh_files

from casstore import Store
from casstore.format import layout as layout_format
from casstore.integrations.fsspec.model_paths import ModelPaths
from casstore.machine.stat_identity import StatIdentity
from casstore.machine.state import MachineState
from casstore.objects.object_store import ObjectStore
from casstore.objects.publishing.publication import Publication

COUNT = 400


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        trust_fresh_files(opened)
        yield opened


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    for number in range(COUNT):
        (tmp_path / "model" / f"{number:04}.txt").write_text(f"file {number}", encoding="utf-8")
    return tmp_path / "model"


@pytest.fixture
def calls(monkeypatch):
    counted = Counter()

    def count(owner, name):
        real = getattr(owner, name)

        def counting(*arguments, **options):
            counted[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    count(StatIdentity, "packed")
    count(Publication, "known")
    count(ObjectStore, "locate")
    count(MachineState, "run")
    count(layout_format, "decode")
    return counted


def test_adding_and_adding_again(store, folder, calls):
    store.add(folder, ref="models/m")
    assert calls["packed"] <= 2 * COUNT
    assert calls["known"] < 20
    calls.clear()
    result = store.add(folder, ref="models/m")
    assert (result.files, result.chunks_new) == (COUNT, 0)
    assert calls["packed"] <= 2 * COUNT
    assert calls["decode"] <= COUNT
    assert calls["known"] < 20
    assert calls["locate"] < 20
    assert calls["run"] < 20
    calls.clear()
    store.content_id(str(folder))
    assert calls["run"] < 20


def test_one_file_of_many(store, folder, calls):
    store.add(folder, ref="models/m")
    with Store(store.backend.url) as again:
        calls.clear()
        with again.open_file("models/m", "0007.txt") as file:
            assert file.read() == b"file 7"
        assert calls["decode"] == 1
        assert again.model("models/m").layout("0008.txt").size == len("file 8")
        assert calls["decode"] == 2
        assert ModelPaths(again, ref_seconds=60).info("models/m/0009.txt")["size"] == len("file 9")
        assert calls["decode"] == 2
        model = again.model("models/m")
        assert [layout.size for layout in model.layouts] == [entry.size for entry in model.tree.files]
        assert calls["decode"] == COUNT
        assert calls["locate"] < 20


def test_what_the_stat_cache_knows_of_many_may_be_gone_in_part(store, folder, monkeypatch):
    """One damaged layout costs reading its file, not the rest."""
    first = store.add(folder, ref="models/m")
    damaged = store.model("models/m").layout_ids[COUNT // 2]
    real = ObjectStore.read_many
    reads = []

    def read_many(self, ids):
        reads.append(len(ids))
        if damaged in ids:
            raise layout_format.FormatError("damaged")
        return real(self, ids)

    monkeypatch.setattr(ObjectStore, "read_many", read_many)
    assert store.add(folder, ref="models/again").model_id == first.model_id
    assert len(reads) < 40
