"""Plain files on this machine: bounded, the least recently used go first, nothing in use and nothing foreign goes."""

import os
import subprocess
import sys

import pytest

from casstore import OliveCache


def cache_models(cache, names, size=1000):
    for name in names:
        folder = cache.get_model_cache_path(name)
        (folder / "model.bin").write_bytes(os.urandom(size))
        cache.cache_model(name, {"type": "folder", "config": {"model_path": str(folder)}})


def files(cache):
    return sorted(path.parent.parent.name for path in cache.dirs.runs.glob("*/models/model.bin"))


def test_nothing_in_use_goes_whatever_the_bound(tmp_path):
    with OliveCache({"cache_dir": str(tmp_path / "cache"), "max_checkout_bytes": 0}) as cache:
        cache_models(cache, ["a", "b"])
        assert files(cache) == ["a", "b"]
    assert files(cache) == []


def test_the_least_recently_used_go_first(tmp_path):
    config = {"cache_dir": str(tmp_path / "cache"), "max_checkout_bytes": 100_000}
    with OliveCache(config) as cache:
        cache_models(cache, ["a", "b", "c"])
    with OliveCache(config) as cache:
        cache.load_model("a")
    with OliveCache({**config, "max_checkout_bytes": 1500}) as cache:
        pass
    assert files(cache) == ["a"]


def test_what_went_comes_back_from_the_store(tmp_path):
    config = {"cache_dir": str(tmp_path / "cache"), "max_checkout_bytes": 0}
    with OliveCache(config) as cache:
        cache_models(cache, ["a"])
        wanted = (cache.get_model_cache_path("a") / "model.bin").read_bytes()
    with OliveCache(config) as cache:
        path = cache.load_model("a")["config"]["model_path"]
        with open(os.path.join(path, "model.bin"), "rb") as file:
            assert file.read() == wanted
        assert oct(os.stat(os.path.join(path, "model.bin")).st_mode & 0o777) == "0o444"


@pytest.mark.parametrize("change", ["edit", "add"])
def test_what_is_not_what_the_store_holds_never_goes(tmp_path, change):
    config = {"cache_dir": str(tmp_path / "cache"), "max_checkout_bytes": 0}
    with OliveCache(config) as cache:
        cache_models(cache, ["a"])
        folder = cache.get_model_cache_path("a")
        (folder / ("model.bin" if change == "edit" else "notes.txt")).write_bytes(b"mine")
    assert (folder / ("model.bin" if change == "edit" else "notes.txt")).read_bytes() == b"mine"


def test_a_model_outside_the_cache_is_taken_in_and_left_where_it_is(tmp_path):
    (tmp_path / "mine.bin").write_bytes(b"weights")
    with OliveCache({"cache_dir": str(tmp_path / "cache"), "max_checkout_bytes": 0}) as cache:
        cache.cache_model("a", {"type": "file", "config": {"model_path": str(tmp_path / "mine.bin")}})
    assert (tmp_path / "mine.bin").read_bytes() == b"weights"
    with OliveCache(tmp_path / "cache") as cache:
        assert cache.load_model("a")["config"]["model_path"] == str(tmp_path / "mine.bin")
    (tmp_path / "mine.bin").write_bytes(b"changed")
    with (
        OliveCache(tmp_path / "cache") as cache,
        open(cache.load_model("a")["config"]["model_path"], "rb") as file,
    ):
        assert file.read() == b"weights"


def test_a_checkout_that_was_never_finished_goes(tmp_path):
    with OliveCache(tmp_path / "cache") as cache:
        left = cache.dirs.checkouts / "making-0123"
        left.mkdir()
        (left / "half").write_bytes(b"x")
        mine = cache.placements.scratch()
        cache.placements.trim()
        assert mine.exists()
        assert not left.exists()


HOLD = """
import sys
from casstore import OliveCache
cache = OliveCache({"cache_dir": sys.argv[1], "max_checkout_bytes": 0})
print(cache.load_model("a")["config"]["model_path"], flush=True)
sys.stdin.read()
"""


def test_what_another_process_uses_stays_until_that_process_ends(tmp_path):
    config = {"cache_dir": str(tmp_path / "cache"), "max_checkout_bytes": 100_000}
    with OliveCache(config) as cache:
        cache_models(cache, ["a", "b"])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "cache")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline().strip()
        with OliveCache({**config, "max_checkout_bytes": 0}) as cache:
            pass
        assert files(cache) == ["a"]
        other.kill()
        other.communicate()
    with OliveCache({**config, "max_checkout_bytes": 0}) as cache:
        pass
    assert files(cache) == []
