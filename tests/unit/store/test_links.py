"""Links in what is added: followed, refused where they are not, never followed in circles."""

from __future__ import annotations

import pytest
from fakes.folders import tree_of, write_tree
from fakes.stores import assert_nothing_added, noise

from casstore import (
    ConfigError,
)


def test_a_hugging_face_snapshot_is_kept_as_its_files(store, tmp_path):
    cache = tmp_path / "models--org--name"
    weights = noise(7, 200_000)
    write_tree(cache, {"blobs/aaa": b"{}", "blobs/bbb": weights, "refs/main": b"123"})
    for name, blob in {"config.json": "../../blobs/aaa", "onnx/model.bin": "../../../blobs/bbb"}.items():
        link = cache / "snapshots/123" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    result = store.add(cache / "snapshots/123", ref="models/hf")
    assert (result.files, result.bytes_total) == (2, 200_002)
    store.get("models/hf", tmp_path / "out")
    assert tree_of(tmp_path / "out") == {"config.json": b"{}", "onnx": None, "onnx/model.bin": weights}
    assert not (tmp_path / "out/config.json").is_symlink()
    plain = tmp_path / "plain"
    write_tree(plain, {"config.json": b"{}", "onnx/model.bin": weights})
    assert store.add(plain).model_id == result.model_id


def test_links_are_refused_where_they_are_not_followed(store, tmp_path):
    write_tree(tmp_path / "m", {"real.bin": b"x", "folder/y.bin": b"y"})
    store.add(tmp_path / "m", follow_links=False, ref="models/no-links")
    store.rm("models/no-links")
    (tmp_path / "top").symlink_to("m")
    (tmp_path / "file").symlink_to("m/real.bin")
    for name in ("top", "file"):
        with pytest.raises(ConfigError, match=rf"{name} is a link, and following links is switched off"):
            store.add(tmp_path / name, follow_links=False)
    for name, target in {"to-file": "real.bin", "to-folder": "folder", "broken": "nothing"}.items():
        link = tmp_path / "m" / name
        link.symlink_to(target)
        with pytest.raises(ConfigError, match=rf"{name} is a link, and following links is switched off"):
            store.add(tmp_path / "m", follow_links=False)
        link.unlink()
    assert store.refs() == {}


@pytest.mark.parametrize("target", ["nothing", "/nothing/at/all", "../gone"])
def test_a_broken_link_is_refused_by_name(store, model, target):
    (model / "sub/broken").symlink_to(target)
    with pytest.raises(ConfigError, match=rf"sub/broken is a link to {target}, which does not exist"):
        store.add(model)
    with pytest.raises(ConfigError, match="broken"):
        store.add(model / "sub/broken")
    assert_nothing_added(store)


@pytest.mark.parametrize("target", ["..", ".", "../..", "ABSOLUTE"])
def test_a_folder_that_links_to_one_above_it(store, model, target):
    (model / "sub/loop").symlink_to(model if target == "ABSOLUTE" else target)
    with pytest.raises(ConfigError, match=r"loop.*links to a folder that it lies in|is the store itself"):
        store.add(model)
    assert_nothing_added(store)


def test_a_cycle_through_two_links(store, tmp_path):
    for here, there in (("a", "b"), ("b", "a")):
        (tmp_path / "m" / here).mkdir(parents=True)
        (tmp_path / "m" / here / "to").symlink_to(f"../{there}")
    with pytest.raises(ConfigError, match=r"m/a/to/to links to a folder that it lies in"):
        store.add(tmp_path / "m")
    assert_nothing_added(store)


@pytest.mark.parametrize("links", [{"self": "self"}, {"ping": "pong", "pong": "ping"}])
def test_a_link_to_itself(store, model, links):
    for name, target in links.items():
        (model / name).symlink_to(target)
    with pytest.raises(ConfigError, match=min(links)):
        store.add(model)
    with pytest.raises(ConfigError, match=min(links)):
        store.add(model / min(links))
    assert_nothing_added(store)


def test_two_links_to_one_folder_are_no_cycle(store, tmp_path):
    write_tree(tmp_path / "m", {"shared/x.bin": b"x"})
    for name in ("one", "two"):
        (tmp_path / "m" / name).symlink_to("shared")
    store.add(tmp_path / "m", ref="models/m")
    paths = [entry.path for entry in store.model("models/m").tree.entries]
    assert paths == ["one/x.bin", "shared/x.bin", "two/x.bin"]
