"""Values and tombstones that an attacker wrote: too many, too deep or none at all."""

from __future__ import annotations

import tracemalloc

import pytest
import zstandard
from fakes.forge import GOOD, assert_refused
from fakes.stores import assert_clean, model_of, noise, write_model

from casstore import ConfigError
from casstore.codecs import Encoding
from casstore.digest import digest
from casstore.errors import CasstoreError, FormatError
from casstore.format import canonical, envelope, marks
from casstore.format.manifest import ModelManifest, encode_model
from casstore.format.rows import Kind
from casstore.objects.keys import pack_key
from casstore.ops.check import check

MIB = 1 << 20

# ---- size


def test_deep_paths_take_memory_in_proportion(forge, outside):
    """Two hundred paths of two thousand folders each are a tree of less than a megabyte."""
    rows = [[f"{number:03}/" + "d/" * 2000 + "f", 1, digest(b"x")] for number in range(200)]
    ref = forge.model(rows, [forge.layout_of(b"x")] * 200)
    with forge.opened() as store:
        tracemalloc.start()
        try:
            store.model(ref)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 200 * MIB


def test_a_tree_of_many_files(forge):
    rows = [[f"folder-{number % 50:02}/file-{number:06}", 1, digest(b"x")] for number in range(20_000)]
    rows.sort(key=lambda row: row[0].encode())
    cut = forge.layout_of(b"x")
    ref = forge.model(rows, [cut] * len(rows))
    with forge.opened() as store:
        assert len(store.model(ref).tree.files) == 20_000


BLOWN_UP = [
    (b"\x90", 1),
    (b"\x80", 1),
    (b"\xc0", 1),
    (b"\x91" * 31 + b"\xc0", 32),
    (b"\x81\xa0\xc0", 3),
    (b"\xdc\x10\x00" + b"\x05" * 4096, 4099),
]


@pytest.mark.parametrize(("item", "size"), BLOWN_UP)
@pytest.mark.parametrize("kind", [Kind.TREE, Kind.LAYOUT])
def test_values_of_too_many_items(forge, monkeypatch, kind, item, size):
    """Stored in a few bytes, each item of one byte would take a hundred in memory."""
    monkeypatch.setattr(canonical, "MAX_ITEMS", 1 << 16)
    count = (8 << 20) // size
    plain = b"\xdd" + count.to_bytes(4, "big") + item * count
    compressed = zstandard.compress(plain)
    assert len(compressed) < 10_000
    object_id = forge.frame(kind, plain, encoding=Encoding.ZSTD, payload=compressed)
    tree = object_id
    manifest = encode_model(ModelManifest(tree, ()))
    if kind == Kind.LAYOUT:
        tree = forge.frame(Kind.TREE, canonical.encode({"type": "tree", "version": 1, "entries": [GOOD]}))
        manifest = encode_model(ModelManifest(tree, (object_id,)))
    manifest_id = forge.frame(Kind.MANIFEST, manifest)
    forge.flush()
    forge.record("models/bomb", target=tree, manifest=manifest_id)
    with forge.opened() as store:
        tracemalloc.start()
        try:
            with pytest.raises(FormatError, match=r"canonical|items"):
                _ = store.model("models/bomb").layouts
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 60 << 20


def test_what_could_not_be_read_is_not_written(forge, tmp_path, monkeypatch):
    monkeypatch.setattr(canonical, "MAX_ITEMS", 1000)
    path = write_model(model_of(f=b"x"), tmp_path / "m")
    with forge.opened() as store:
        with pytest.raises(ConfigError, match="items"):
            store.add(path, metadata={"losses": [0.5] * 1000})
        store.add(path, metadata={"losses": [0.5] * 900})
        assert_clean(store)


def test_values_nested_deeper_than_allowed(forge, outside):
    for depth in (33, 500, 5000):
        deep = b"\x91" * depth + b"\xc0"
        body = b"\x83\xa7entries" + deep + b"\xa4type\xa4tree\xa7version\x01"
        model_id = forge.frame(Kind.TREE, body)
        manifest = forge.frame(Kind.MANIFEST, encode_model(ModelManifest(model_id, ())))
        forge.flush()
        forge.record(f"models/deep{depth}", target=model_id, manifest=manifest)
        assert_refused(forge, f"models/deep{depth}", outside / "out", error=FormatError)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
)
def test_values_that_promise_more_than_there_is(forge, outside, body):
    manifest = forge.frame(Kind.MANIFEST, body or b"\x00")
    forge.flush()
    forge.record("models/short", target=digest(b"x"), manifest=manifest)
    assert_refused(forge, "models/short", outside / "out", error=FormatError)


def test_a_record_with_much_metadata(forge, tmp_path):
    """Large is no crime: it is kept, and other refs are read as before."""
    metadata = {f"key{number}": "x" * 1000 for number in range(4000)}
    path = write_model(model_of(f=b"x"), tmp_path / "m")
    with forge.opened() as store:
        store.add(path, ref="models/big", metadata=metadata)
        store.add(path, ref="models/small")
        assert store.refs()["models/big"].metadata == metadata
        assert_clean(store)


def test_a_ref_whose_numbers_are_used_up(forge, tmp_path):
    """Nobody can be newer than the newest number: said plainly, and other refs go on."""
    ref = forge.file(b"harmless")
    record = forge.store.refs()[ref]
    forge.record(ref, seq=(1 << 64) - 1, target=record.target, manifest=record.manifest)
    path = write_model(model_of(f=b"x"), tmp_path / "m")
    with forge.opened() as store:
        with pytest.raises(CasstoreError, match=ref):
            store.add(path, ref=ref)
        with pytest.raises(CasstoreError, match=ref):
            store.rm(ref)
        assert store.model(ref).model_id == record.target.hex()
        store.add(path, ref="models/other")


# ---- tombstones


EVIL = "gc/tombstones/00000000-0000-4000-8000-00000000e711"


def test_tombstones_that_are_none_stop_writers_by_name(forge, tmp_path):
    path = write_model(model_of(f=b"x"), tmp_path / "m")
    bodies = [
        b"",
        b"rubbish" * 20,
        envelope.seal(
            b"casstomb", canonical.encode({"type": "tombstone", "version": 2, "packs": b"", "time": 1})
        ),
        envelope.seal(
            b"casstomb", canonical.encode({"type": "tombstone", "version": 1, "packs": b"odd", "time": 1})
        ),
        envelope.seal(b"casstomb", canonical.encode({"type": "store", "version": 1})),
    ]
    for body in bodies:
        forge.store.backend.put(EVIL, [body])
        with forge.opened() as store:
            with pytest.raises(FormatError, match=EVIL):
                store.add(path)
            assert {problem.key for problem in check(store).problems} == {EVIL}
        forge.store.backend.delete(EVIL)


def test_a_tombstone_over_everything_only_costs_a_copy(forge, tmp_path):
    path = write_model(model_of(f=noise(1, 3000)), tmp_path / "m")
    with forge.opened() as store:
        store.add(path, ref="models/m")
        doomed = [bytes.fromhex(entry.key[-64:]) for entry in store.backend.list("packs/")]
        store.backend.put("gc/tombstones/all", [marks.encode_tombstone(marks.Tombstone(tuple(doomed), 1))])
        assert store.add(path, ref="models/again").chunks_new == 1
        assert store.tag("kept", "models/m") == "tags/kept"
        for pack_id in doomed:
            store.backend.delete(pack_key(pack_id))
        assert_clean(store)
    with forge.opened() as store, store.open_file("tags/kept", "f") as file:
        assert file.read() == noise(1, 3000)
