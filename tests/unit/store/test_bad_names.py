"""Names and metadata that cannot be kept as they are: refused before anything is read."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from fakes.folders import Meanwhile, write_tree
from fakes.model_files import safetensors_bytes
from fakes.stores import assert_clean, assert_nothing_added

from casstore import (
    ConfigError,
    PathNotFound,
    RefNotFound,
    Store,
    TensorNotFound,
)
from casstore.digest import digest
from casstore.format.manifest import TreeEntry, encode_tree, make_tree

# ---- refs


INVALID_NAMES = [
    "",
    "models",
    "models/",
    "models//x",
    "models/../x",
    "models/./x",
    "/models/x",
    "models/x/",
    "other/x",
    "MODELS/x",
    "models/a@1",
    "models/a\nb",
    "models/a\0",
    "models/a\x85",
    "models/" + "x" * 201,
    "models/" + "é" * 40,
    "models/\udcff",
]


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_an_invalid_ref_name_is_refused_before_anything_is_read(store, model, name):
    reached = []
    with pytest.raises(ConfigError):
        store.add(model, ref=name, callback=Meanwhile(1, lambda: reached.append(1)))
    assert not reached
    # With "models/" before it, it could be the name of a ref, which is not there.
    could_be = name in ("other/x", "MODELS/x")
    with pytest.raises(RefNotFound if could_be else ConfigError):
        store.rm(name)
    for use in (store.model, store.resolve):
        with pytest.raises(RefNotFound):
            use(name)
    assert_nothing_added(store)


GOOD_NAMES = [
    "run 2024-05-05T12:00:00",
    "con",
    "con.v1",
    "AUX.x/nul",
    "a.",
    "a ",
    ".hidden",
    "a\\b",
    'what? <"a|b*">',
    "100%41",
    "x=3d",
    "\u65e5\u672c",
    "x" * 200,
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_ref_names_that_are_safe_once_they_are_escaped(store, model, tmp_path, name):
    """What the key is made of is safe everywhere, whatever the name holds."""
    ref = f"models/{name}"
    added = store.add(model, ref=ref)
    assert store.tag(name, ref) == f"tags/{name}"
    with Store(store.backend.url) as again:
        assert set(again.refs()) == {ref, f"tags/{name}"}
        assert again.resolve(name).ref == ref
        assert [row.name for row in again.find(target=added.model_id)] == [f"tags/{name}", ref]
        again.get(ref, tmp_path / "out")
        again.rm(ref)
    assert list(store.refs()) == [f"tags/{name}"]
    assert_clean(store)


@pytest.mark.parametrize("name", ["", "a@b", "a/../b", "a\n", "a\0", "\udcff"])
def test_an_invalid_tag_name(store, model, name):
    store.add(model, ref="models/m")
    with pytest.raises(ConfigError):
        store.tag(name, "models/m")
    assert list(store.refs()) == ["models/m"]


@pytest.mark.parametrize("name", ["models/no", "no", "tags/no", "ab", "abcd", "0" * 64, "f" * 63])
def test_a_ref_that_is_not_there(store, model, tmp_path, name):
    result = store.add(model, ref="models/m")
    assert not result.model_id.startswith("abcd")
    uses = [
        lambda: store.model(name),
        lambda: store.get(name, tmp_path / "out"),
        lambda: store.open_file(name, "config.json"),
        lambda: store.read_tensor(name, "w", file="config.json"),
        lambda: store.tag("t", name),
        lambda: store.add(model, base=name),
    ]
    for use in uses:
        with pytest.raises(RefNotFound, match=name):
            use()
    assert not (tmp_path / "out").exists()
    assert list(store.refs()) == ["models/m"]


def test_deleting_a_ref_that_is_not_there(store, model):
    with pytest.raises(RefNotFound, match="models/no"):
        store.rm("models/no")
    store.add(model, ref="models/m")
    store.rm("models/m")
    for use in (store.rm, store.model):
        with pytest.raises(RefNotFound, match="models/m"):
            use("models/m")


def test_a_file_or_tensor_that_a_model_lacks(store, tmp_path):
    data = safetensors_bytes({"w": np.zeros(100, np.float32)})
    write_tree(tmp_path / "m", {"m.safetensors": data, "notes.txt": b"text"})
    store.add(tmp_path / "m", ref="models/m")
    with pytest.raises(PathNotFound, match=r"no\.bin.*m\.safetensors"):
        store.open_file("models/m", "no.bin")
    with pytest.raises(TensorNotFound, match=r"no tensor 'v'.*w"):
        store.read_tensor("models/m", "v", file="m.safetensors")
    with pytest.raises(TensorNotFound, match=r"notes\.txt has no tensors"):
        store.read_tensor("models/m", "w", file="notes.txt")


def _model_id(path, data):
    return digest(encode_tree(make_tree([TreeEntry(path, len(data), digest(data))]))).hex()


def test_an_ambiguous_prefix(store, tmp_path):
    seen = {}
    for number in itertools.count():
        data = b"%d" % number
        model_id = _model_id("f", data)
        if model_id[:4] in seen:
            break
        seen[model_id[:4]] = data
    for folder, content in (("a", seen[model_id[:4]]), ("b", data)):
        write_tree(tmp_path / folder, {"f": content})
    ids = [store.add(tmp_path / "a", ref="models/a").model_id, store.add(tmp_path / "b").model_id]
    assert ids[0][:4] == ids[1][:4] == model_id[:4]
    assert ids[1] == model_id
    with pytest.raises(RefNotFound, match=rf"'{model_id[:4]}' is ambiguous.*2 model ids"):
        store.resolve(model_id[:4])
    longer = next(at for at in range(64) if ids[0][at] != ids[1][at]) + 1
    for found in ids:
        assert store.resolve(found[:longer]).model_id == found
        assert store.resolve(found).model_id == found
    store.tag("again", "models/a")
    assert store.resolve(ids[0][:longer]).model_id == ids[0]


def test_a_model_id_never_means_another_model(store, tmp_path):
    """A ref may be called anything, also like the id of a model that it does not name."""
    for folder in ("a", "b"):
        write_tree(tmp_path / folder, {"f": folder.encode()})
    first = store.add(tmp_path / "a", ref="models/a").model_id
    store.add(tmp_path / "b", ref=f"models/{first}")
    assert store.resolve(first).model_id == first
    with store.open_file(first, "f") as file:
        assert file.read() == b"a"


# ---- metadata


@pytest.mark.parametrize(
    "metadata",
    [
        {1: "x"},
        {"x": object()},
        {"x": 1 << 70},
        {"x": {1, 2}},
        {"x": "\udcff"},
        {"x": np.float32(1)},
        {"a": {"b": {3: 4}}},
    ],
)
def test_metadata_that_cannot_be_kept_is_refused_before_anything_is_read(store, model, metadata):
    reached = []
    with pytest.raises(ConfigError):
        store.add(model, metadata=metadata, callback=Meanwhile(1, lambda: reached.append(1)))
    assert not reached
    assert_nothing_added(store)


def test_metadata_deeper_than_the_format_allows(store, model):
    deep = {}
    for _ in range(40):
        deep = {"x": deep}
    with pytest.raises(ConfigError, match="deep"):
        store.add(model, metadata=deep)
    assert_nothing_added(store)


def test_metadata_as_pipelines_have_it(store, model):
    """Tuples, and losses that are not numbers, are everyday values."""
    metadata = {"loss": math.nan, "best": math.inf, "shape": (2, 3), "steps": [{"lr": 0.1}], "none": None}
    store.add(model, ref="models/m", metadata=metadata)
    kept = store.refs()["models/m"].metadata
    assert math.isnan(kept.pop("loss"))
    assert kept == {"best": math.inf, "shape": [2, 3], "steps": [{"lr": 0.1}], "none": None}
    assert store.tag("t", "models/m") == "tags/t"
    store.add(model, ref="models/m", metadata=metadata)
    assert math.isnan(store.refs()["models/m"].metadata["loss"])
    assert len(store.history("models/m")) == 1
    for number, flag in enumerate((1, True, 1.0), start=2):
        store.add(model, ref="models/m", metadata={"flag": flag})
        assert (len(store.history("models/m")), type(store.record("models/m").metadata["flag"])) == (
            number,
            type(flag),
        )
