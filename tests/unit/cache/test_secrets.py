"""Users and secrets in URLs are refused wherever a URL is taken, and shown nowhere; those in options neither."""

from __future__ import annotations

import json
import logging
import os
import traceback

import pytest
from click.testing import CliRunner
from fakes.machines import Machines

from casstore import CacheConfig, SharedCache, Store
from casstore.backend import RetryPolicy
from casstore.cli import app
from casstore.errors import CasstoreError, ConfigError
from casstore.machine.remotes import Remotes

SECRET = "SeCrEtSeCrEt"
URLS = [
    f"s3://AKIA:{SECRET}@bucket/cache",
    f"sftp://{SECRET}@host/cache",
    f"https://acct.blob.core.windows.net/box?sv=2024&sig={SECRET}",
    f"az://box/cache?sig={SECRET}",
    f"https://user:{SECRET}@acct.blob.core.windows.net/box",
]
TAKEN_BY = {
    "Store": Store,
    "a readonly store": lambda url: Store(url, read_only=True),
    "SharedCache": SharedCache,
    "CacheConfig": lambda url: CacheConfig(cache_dir=url),
    "CacheConfig's list": lambda url: CacheConfig(cache_dir=["/tmp/x", url]),
    "a map of settings": lambda url: CacheConfig.of({"cache_dir": [url]}),
    "Remotes": lambda url: Remotes("00").add("hub", url),
}
COMMANDS = [
    ("push", "{url}"),
    ("pull", "{url}"),
    ("sync", "{url}", "{store}"),
    ("sync", "{store}", "{url}"),
    ("push", "{url}", "--dry-run", "--json"),
    ("remote", "add", "hub", "{url}"),
    ("ls", "--store", "{url}"),
    ("init", "--store", "{url}", "--json"),
    ("check", "--store", "{url}", "--debug"),
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("taker", TAKEN_BY)
def test_what_takes_a_url_refuses_it(taker, url, caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError) as caught:
        TAKEN_BY[taker](url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caplog.text


@pytest.mark.parametrize("url", URLS)
def test_commands_refuse_it_too(url, tmp_path, own_home, caplog, monkeypatch):
    store = str(tmp_path / "store")
    Store(store, create=True, durability="none").close()
    monkeypatch.setenv("CASSTORE_STORE", store)
    for command in COMMANDS:
        result = CliRunner().invoke(app, [part.format(url=url, store=store) for part in command])
        assert result.exit_code == 1, command
        assert SECRET not in result.stdout + result.stderr, command
    monkeypatch.setenv("CASSTORE_STORE", url)
    result = CliRunner().invoke(app, ["ls"])
    assert result.exit_code == 1
    assert SECRET not in result.stdout + result.stderr + caplog.text
    assert_not_written(own_home, tmp_path)


def test_an_account_that_is_none_is_not_repeated():
    for account, container in ((f"acct:{SECRET}@x", "box"), ("acct", f"box?sig={SECRET}")):
        with pytest.raises(ConfigError) as caught:
            SharedCache(account, container)
        assert SECRET not in str(caught.value)


OPTIONS = {
    "s3": {"key": "AKIA", "secret": SECRET, "endpoint_url": "http://127.0.0.1:1"},
    "az": {
        "connection_string": f"BlobEndpoint=http://127.0.0.1:1/acct;SharedAccessSignature=sv=1&sig={SECRET}"
    },
    "sftp": {"username": "x", "password": SECRET, "known_hosts": None, "port": 1, "host": "127.0.0.1"},
}
PLACES = {"s3": "s3://bucket/cache", "az": "az://box/cache", "sftp": "sftp://127.0.0.1:1/cache"}


@pytest.mark.parametrize("kind", OPTIONS)
def test_secret_options_are_shown_nowhere(kind, tmp_path, own_home, caplog, monkeypatch):
    """In what a store, a cache or its settings print of themselves, in errors, in logs, on the disk."""
    monkeypatch.setattr("casstore.backend.OPENING", RetryPolicy(deadline=0.1))
    options = OPTIONS[kind]
    config = CacheConfig(cache_dir=[str(tmp_path / "here"), PLACES[kind]], storage_options=options)
    assert SECRET not in repr(config)
    shared = SharedCache(PLACES[kind], **options)
    assert SECRET not in repr(shared)
    with caplog.at_level(logging.DEBUG, "casstore"):
        with pytest.raises(CasstoreError) as caught:
            shared.exists("models/x")
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        machines = Machines(tmp_path / "machines", shared=PLACES[kind], settings={"storage_options": options})
        cache = machines.open()
        assert cache.load_model("none") is None
        machines.close()
    assert "could not" in caplog.text
    assert SECRET not in caplog.text
    assert_not_written(own_home, tmp_path)


def assert_not_written(*folders):
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                with open(os.path.join(place, name), "rb") as file:
                    assert SECRET.encode() not in file.read(), (place, name)


def test_a_store_elsewhere_says_only_where_it_is(s3_server):
    url = f"s3://{s3_server.make_bucket()}/team"
    options = s3_server.options
    with Store(url, create=True, **options) as store:
        said = [
            repr(store),
            repr(store.backend),
            str(store.backend),
            store.backend.url,
            json.dumps(store.backend.url),
        ]
        with pytest.raises(CasstoreError) as caught:
            store.model("models/none")
    for text in (*said, "".join(traceback.format_exception(caught.value))):
        assert options["secret"] not in text
