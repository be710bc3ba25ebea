"""Manifests of runs and evaluations: inside their record while small, in a pack beyond, and checked like all else."""

import os

import pytest

from casstore import ConfigError, RefNotFound, Store
from casstore.errors import FormatError
from casstore.format import record as record_format
from casstore.ops.check import check


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as store:
        yield store


@pytest.mark.parametrize("size", [0, 1, record_format.MAX_INLINE, record_format.MAX_INLINE + 1, 3 << 20])
def test_a_manifest_comes_back_from_another_process(store, tmp_path, size):
    manifest = os.urandom(size)
    record = store.put_manifest("runs/one", manifest, metadata={"status": "done"})
    assert (record.inline is None) == (size > record_format.MAX_INLINE)
    with Store(tmp_path / "store") as other:
        found = other.record("runs/one")
        assert other.manifest_of(found) == manifest
        assert found.metadata == {"status": "done"}
        assert len(other.objects_of(found)) == (0 if record.inline is not None else 1)
    assert check(store, read_data=True).ok


def test_saying_the_same_again_writes_nothing(store):
    first = store.put_manifest("runs/one", b"value")
    assert store.put_manifest("runs/one", b"value") == first
    second = store.put_manifest("runs/one", b"another")
    assert second.seq == first.seq + 1
    assert store.manifest_of(store.record("runs/one")) == b"another"


def test_a_run_is_no_model_and_a_model_is_no_run(store, tmp_path):
    record = store.put_manifest("runs/one", b"value")
    (tmp_path / "file").write_bytes(b"weights")
    added = store.add(tmp_path / "file", ref="models/one")
    with pytest.raises(ConfigError):
        store.put_manifest("models/two", b"value")
    with pytest.raises(ConfigError):
        store.manifest_of(store.record("models/one"))
    with pytest.raises(ConfigError):
        store.model_of(record)
    with pytest.raises(RefNotFound):
        store.resolve(record.target.hex())
    with pytest.raises(RefNotFound):
        store.resolve("runs/one")
    assert store.resolve(added.model_id[:8]).ref == "models/one"
    assert store.stats().models == 1
    assert store.stats().refs == 2


def test_a_manifest_that_is_not_what_its_record_names_is_damage(store):
    record = store.put_manifest("runs/one", b"value")
    lying = store._refs.draft("runs/one", target=record.target, inline=b"other")
    store._refs.put(lying)
    with pytest.raises(FormatError):
        store.manifest_of(store.record("runs/one"))
    assert [problem.message for problem in check(store).problems] == [
        "The manifest inside runs/one is not the one that it names."
    ]


def test_a_manifest_whose_pack_is_gone_is_found(store):
    record = store.put_manifest("evaluations/one", os.urandom(20_000))
    for entry in list(store.backend.list("packs/")):
        store.backend.delete(entry.key)
    [problem] = check(store).problems
    assert record.manifest.hex() in problem.message


def test_a_deleted_run_is_gone(store):
    store.put_manifest("runs/one", b"value")
    store.rm("runs/one")
    assert store.record("runs/one") is None
    assert check(store).ok


def test_a_model_cannot_be_called_a_run(store, tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    with pytest.raises(ConfigError, match="models/…"):
        store.add(tmp_path / "file", ref="runs/one")
    assert store.refs() == {}
