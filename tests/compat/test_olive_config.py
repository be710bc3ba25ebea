"""CacheConfig in every form that Olive's users write, and which cache the code of a pass finds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casstore.cache.config import CacheConfig
from casstore.cache.olive.context import isolated_cache_env
from casstore.cache.olive_cache import OliveCache
from casstore.cache.settings import DEFAULT_CACHE_DIR, DEFAULT_WORKFLOW_ID
from casstore.errors import ConfigError

AZURE = "https://acct.blob.core.windows.net/box"
PUBLIC = "https://olivepublicmodels.blob.core.windows.net/olivecachemodels"


@pytest.mark.parametrize(
    ("cache_dir", "local", "url"),
    [
        ("here", "here", None),
        (Path("here"), "here", None),
        (["here"], "here", None),
        (None, DEFAULT_CACHE_DIR, None),
        ("", DEFAULT_CACHE_DIR, None),
        ([], DEFAULT_CACHE_DIR, None),
        (AZURE, DEFAULT_CACHE_DIR, AZURE),
        ([AZURE], DEFAULT_CACHE_DIR, AZURE),
        (["here", AZURE], "here", AZURE),
        ([AZURE, "here"], "here", AZURE),
        ([Path("here"), "s3://bucket/cache"], "here", "s3://bucket/cache"),
        ("s3://bucket/cache", DEFAULT_CACHE_DIR, "s3://bucket/cache"),
        (("here", "memory://shared"), "here", "memory://shared"),
        (["C:\\cache", "abfs://box/cache"], "C:\\cache", "abfs://box/cache"),
        (["here", "file:///srv/shared"], "here", "file:///srv/shared"),
    ],
)
def test_where_a_cache_lies(cache_dir, local, url):
    config = CacheConfig(cache_dir=cache_dir)
    assert config.get_local_cache_dir() == local
    assert config.get_shared_cache_url() == url
    assert config.enable_shared_cache == (url is not None)
    assert isinstance(config.cache_dir, list)


def test_an_azure_container_may_be_named_by_url_or_by_words():
    by_url = CacheConfig(cache_dir=["here", AZURE])
    assert (by_url.account_name, by_url.container_name) == ("acct", "box")
    by_words = CacheConfig(cache_dir="here", account_name="acct", container_name="box")
    assert by_words.enable_shared_cache
    assert by_words.get_shared_cache_url() == AZURE
    assert CacheConfig(cache_dir=["here", AZURE], container_name="other").container_name == "other"


def test_the_public_cache_is_used_if_sharing_is_asked_for_and_no_place_is_named():
    config = CacheConfig(cache_dir="here", enable_shared_cache=True)
    assert (config.account_name, config.container_name) == ("olivepublicmodels", "olivecachemodels")
    assert config.get_shared_cache_url() == PUBLIC
    assert CacheConfig().get_shared_cache_url() is None
    assert CacheConfig(account_name="acct").enable_shared_cache is False


@pytest.mark.parametrize("places", [[AZURE, "s3://bucket"], ["a", "b", "c"], ["a", AZURE, "memory://m"]])
def test_more_than_one_path_and_one_url_are_refused(places):
    with pytest.raises(ConfigError, match="one local path and one URL"):
        CacheConfig(cache_dir=places)


def test_of_two_paths_the_first_is_used_and_said_so(caplog):
    assert CacheConfig(cache_dir=["one", "two"]).get_local_cache_dir() == "one"
    assert "one" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_dri": "typo"},
        {"cache_dir": "here", "workflow_id": "a/b"},
        {"cache_dir": "here", "workflow_id": ".."},
        {"cache_dir": "here", "workflow_id": "store"},
        {"cache_dir": "here", "max_checkout_bytes": -1},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError):
        CacheConfig.of(settings)


def test_a_list_or_a_number_is_no_config():
    for value in (["here"], 7):
        with pytest.raises(ConfigError, match="map of settings"):
            CacheConfig.of(value)


def test_making_a_cache_changes_no_config_and_nests_nothing(tmp_path):
    config = CacheConfig(cache_dir=[str(tmp_path / "cache"), "memory://nest"])
    for _ in range(3):
        with config.create_cache("flow") as cache:
            assert cache.get_cache_dir() == (tmp_path / "cache" / "flow").resolve()
            assert cache.enable_shared_cache  # Olive forgets the URL with the second cache
    assert config.get_local_cache_dir() == str(tmp_path / "cache")


def test_the_default_is_olives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with CacheConfig().create_cache() as cache:
        assert cache.get_cache_dir() == (tmp_path / ".olive-cache" / "default_workflow").resolve()


def test_the_shared_cache_is_not_touched_before_it_is_needed(tmp_path):
    # This name resolves to nothing; whoever asked it would fail or wait.
    places = [str(tmp_path / "cache"), "https://no-such-account.blob.core.windows.net/box"]
    with CacheConfig(cache_dir=places).create_cache() as cache:
        assert cache.enable_shared_cache
        assert cache.shared_cache is not None
        cache.disable_shared_cache()
        assert cache.enable_shared_cache is False
        assert cache.shared_cache is None
        assert cache.load_model("never") is None


# Which cache the code of a pass finds


def test_the_environment_names_the_cache(tmp_path, monkeypatch):
    with OliveCache({"cache_dir": str(tmp_path / "first")}) as first:
        first.set_cache_env()
        assert os.environ["OLIVE_CACHE_DIR"] == str(first.get_cache_dir())
        with OliveCache.from_cache_env() as found:
            assert found.get_cache_dir() == first.get_cache_dir()
    monkeypatch.setenv("OLIVE_CACHE_DIR", str(tmp_path / "second"))
    with OliveCache.from_cache_env() as found:
        assert found.get_cache_dir() == (tmp_path / "second").resolve()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.setenv("OLIVE_CACHE_DIR", "x")  # so that what a test sets is taken back
    monkeypatch.delenv("OLIVE_CACHE_DIR")


def test_without_an_environment_the_default_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with OliveCache.from_cache_env() as cache:
        assert cache.get_cache_dir() == (tmp_path / DEFAULT_CACHE_DIR / DEFAULT_WORKFLOW_ID).resolve()


def test_what_a_pass_finds_is_the_workflow_that_set_it(tmp_path):
    with CacheConfig(cache_dir=tmp_path / "cache").create_cache("flow") as cache:
        cache.cache_model("model", {"type": "HfModel", "config": {"model_path": "hub/name"}})
        cache.set_cache_env()
        with OliveCache.from_cache_env() as found:
            assert found.get_cache_dir() == cache.get_cache_dir()
            assert found.dirs.store == cache.dirs.store
            assert found.load_model("model")["config"]["model_path"] == "hub/name"


def test_a_child_process_finds_the_cache(tmp_path):
    with CacheConfig(cache_dir=tmp_path / "cache").create_cache() as cache:
        cache.set_cache_env()
        program = "from casstore.cache.olive_cache import OliveCache; print(OliveCache.from_cache_env().get_cache_dir())"
        told = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
        )
        assert told.stdout.strip() == str(cache.get_cache_dir())


def test_threads_may_each_have_a_cache_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OLIVE_CACHE_DIR", str(tmp_path / "process"))
    both = threading.Barrier(2, timeout=30)

    def work(folder):
        with isolated_cache_env(folder), OliveCache({"cache_dir": str(folder)}) as cache:
            cache.set_cache_env()
            both.wait()
            with OliveCache.from_cache_env() as found:
                return found.get_cache_dir(), os.environ["OLIVE_CACHE_DIR"]

    folders = [tmp_path / "first", tmp_path / "second"]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, folders))
    assert [item[0] for item in found] == [folder.resolve() for folder in folders]
    assert {item[1] for item in found} == {str(tmp_path / "process")}
    with OliveCache.from_cache_env() as cache:
        assert cache.get_cache_dir() == (tmp_path / "process").resolve()


def test_an_isolated_cache_ends_with_its_block(tmp_path, monkeypatch):
    monkeypatch.setenv("OLIVE_CACHE_DIR", str(tmp_path / "process"))
    with contextlib.suppress(ZeroDivisionError), isolated_cache_env(tmp_path / "mine"):
        with isolated_cache_env(tmp_path / "inner"), OliveCache.from_cache_env() as cache:
            assert cache.get_cache_dir() == (tmp_path / "inner").resolve()
        with OliveCache.from_cache_env() as cache:
            assert cache.get_cache_dir() == (tmp_path / "mine").resolve()
        raise ZeroDivisionError
    with OliveCache.from_cache_env() as cache:
        assert cache.get_cache_dir() == (tmp_path / "process").resolve()
