"""What no reader takes is refused before anything is written, with the limit in the message (invariant 14)."""

from __future__ import annotations

import os

import numpy as np
import pytest
from fakes.model_files import safetensors_bytes
from fakes.stores import assert_clean, model_of, read_model, write_model

from casstore.api.store import Store
from casstore.digest import digest
from casstore.errors import ConfigError
from casstore.format import canonical, layout, manifest, record, rows
from casstore.format.manifest import EMPTY_FILE_ID
from casstore.format.rows import Kind
from casstore.objects.publishing import pack_writer as packs
from casstore.objects.publishing.pack_writer import encode_objects

SMALL = model_of(a=b"a file")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


def keys(store):
    return [entry.key for entry in store.backend.list("")]


def test_a_manifest_over_the_limit(store, monkeypatch):
    before = keys(store)
    monkeypatch.setattr(rows, "MAX_OBJECT", 20_000)
    with pytest.raises(ConfigError, match="manifest of 20001 bytes"):
        store.put_manifest("runs/big", bytes(20_001))
    assert keys(store) == before
    kept = store.put_manifest("runs/big", bytes(20_000))
    assert store.manifest_of(kept) == bytes(20_000)


def add(store, folder, metadata):
    store.add(folder, ref="models/m", metadata=metadata)


def put_small(store, _, metadata):
    store.put_manifest("runs/r", bytes(10), metadata=metadata)


def put_large(store, _, metadata):
    store.put_manifest("runs/r", bytes(20_000), metadata=metadata)


@pytest.mark.parametrize("call", [add, put_small, put_large])
def test_metadata_over_the_limit(store, tmp_path, monkeypatch, call):
    folder = write_model(SMALL, tmp_path / "m")
    before = keys(store)
    monkeypatch.setattr(record, "MAX_RECORD", 100_000)
    with pytest.raises(ConfigError, match="limit"):
        call(store, folder, {"note": "x" * 100_000})
    assert keys(store) == before


def test_a_layout_over_the_limit_loses_its_tensors_and_no_file(store, tmp_path, monkeypatch):
    """More tensors than a layout can name make a file of an unknown format."""
    data = safetensors_bytes({f"t{number}": np.zeros(2, np.float32) for number in range(300)})
    folder = write_model(model_of(m__safetensors=data), tmp_path / "m")
    os.rename(f"{folder}/m/safetensors", f"{folder}/m.safetensors")
    monkeypatch.setattr(layout, "MAX_OBJECT", 5000)
    store.add(folder, ref="models/m")
    monkeypatch.undo()
    [cut] = store.model("models/m").layouts
    assert cut.spans == ()
    with store.open_file("models/m", "m.safetensors") as file:
        assert file.read() == data
    assert_clean(store)


@pytest.mark.parametrize(
    "row",
    [
        ["../up", 0, EMPTY_FILE_ID],
        ["a", 0, digest(b"a file of no bytes has another id")],
        ["a", -1, EMPTY_FILE_ID],
    ],
)
def test_a_tree_that_nobody_could_check_out(row):
    plain = canonical.encode({"type": "tree", "version": manifest.TREE_VERSION, "entries": [row]})
    with pytest.raises(ConfigError, match="cannot be stored"):
        encode_objects(Kind.TREE, {digest(plain): plain})


@pytest.mark.parametrize("kind", [Kind.LAYOUT, Kind.MANIFEST, Kind.TREE, Kind.CHUNK])
def test_an_object_over_the_limit(monkeypatch, kind):
    monkeypatch.setattr(packs, "max_plain", lambda _: 99)
    with pytest.raises(ConfigError, match=f"{kind.name.lower()} of 100 bytes"):
        encode_objects(kind, {digest(bytes(100)): bytes(100)})


def test_a_store_after_refusals_is_whole(store, tmp_path, monkeypatch):
    """None of it is left in a segment, where it would stop later adds once segments merge."""
    for number in range(20):
        monkeypatch.setattr(rows, "MAX_OBJECT", 9_000)
        with pytest.raises(ConfigError):
            store.put_manifest("runs/big", bytes(9_001))
        monkeypatch.undo()
        content = model_of(a=b"%d" % number * 9)
        store.add(write_model(content, tmp_path / str(number)), ref=f"models/{number}")
        assert read_model(store, f"models/{number}") == content
    assert_clean(store)
