"""Nothing but a store's own files comes into its directory."""

from __future__ import annotations

import os

import fsspec
import pytest
from fakes.stores import assert_clean, model_of, write_model

from casstore import ConfigError, OliveCache, Store
from casstore.store.nesting import store_around


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        opened.add(write_model(model_of(f=b"x"), tmp_path / "m"), ref="models/m")
        yield opened


def tree_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


INSIDE = [
    "store",
    "store/out",
    "store/packs/aa",
    "store/new/er/out",
    "link",
    "link/out",
    "store/packs/../out",
]


@pytest.mark.parametrize("place", INSIDE)
@pytest.mark.parametrize("force", [False, True])
def test_no_checkout_is_made_in_a_store(store, tmp_path, place, force):
    (tmp_path / "link").symlink_to("store")
    before = tree_of(tmp_path)
    with Store("memory://elsewhere", create=True) as other:
        other.add(tmp_path / "m", ref="models/m")
        for opened in (store, other):
            with pytest.raises(ConfigError, match=r"lies in the store .*store\. Give a folder outside of it"):
                opened.get("models/m", os.path.join(tmp_path, place), force=force)
    assert tree_of(tmp_path) == before
    assert_clean(store)


@pytest.mark.parametrize(
    "place", ["store/inner", "store/packs", "store/new/er", "link/inner", "file:///{}/store/x"]
)
def test_no_store_is_made_in_a_store(store, tmp_path, place):
    (tmp_path / "link").symlink_to("store")
    before = tree_of(tmp_path)
    url = place.format(tmp_path) if "{}" in place else os.path.join(tmp_path, place)
    with pytest.raises(ConfigError, match=r"lies in the store .*store\. Make a new store outside of it"):
        Store(url, create=True)
    assert tree_of(tmp_path) == before
    Store(tmp_path / "store", create=True).close()
    Store(tmp_path / "link", create=True).close()


def test_a_file_or_folder_called_format_makes_no_store(store, tmp_path):
    for name in ("text", "folder", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "text/format").write_bytes(b"casstor")
    (tmp_path / "folder/format").mkdir()
    os.mkfifo(tmp_path / "pipe/format")
    for name in ("text", "folder", "pipe"):
        assert store_around(tmp_path / name / "below") is None
        store.get("models/m", tmp_path / name / "out")
    assert store_around(tmp_path / "store/packs/nothing/here") == os.path.realpath(tmp_path / "store")


def test_no_file_of_a_model_is_written_into_a_store_by_other_ways(store, tmp_path):
    before = tree_of(tmp_path / "store")
    files = fsspec.filesystem("cas", store=str(tmp_path / "store"), skip_instance_cache=True)
    with pytest.raises(ConfigError, match="lies in the store"):
        files.get_file("cas://models/m/f", str(tmp_path / "store/f"))
    with OliveCache(tmp_path / "pipeline/cache") as cache:
        config = {"type": "folder", "config": {"model_path": str(tmp_path / "m")}}
        cache.cache_model("m", config)
        with pytest.raises(ConfigError, match="lies in the store"):
            cache.save_model("m", tmp_path / "store/out")
    assert tree_of(tmp_path / "store") == before
