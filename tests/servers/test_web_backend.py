"""A store that a plain web server shows: what is read, what is refused, what is never taken for empty."""

from __future__ import annotations

import itertools

import pytest
from servers.web import web_server

from casstore.backend import LocalBackend, open_backend
from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    ConfigError,
    ObjectNotFound,
)

KEYS = ["format", "index/aa", "packs/0a/one", "packs/0a/two", "packs/ff/three", "refs/models/3f/bert+x@1=y"]


@pytest.fixture
def served(tmp_path):
    with LocalBackend(tmp_path / "site/store", create=True) as backend:
        for key in KEYS:
            backend.put(key, [b"0123456789" + key.encode()])
    return tmp_path / "site"


@pytest.fixture
def site(served):
    with web_server(served) as (url, seen):
        yield f"{url}/store", seen


@pytest.fixture
def backend(site):
    with open_backend(site[0], read_only=True) as backend:
        yield backend


def test_reading(backend):
    for key in KEYS:
        whole = b"0123456789" + key.encode()
        assert backend.read(key) == whole
        assert backend.stat(key).size == len(whole)
        for start, length in itertools.product([0, 1, 5, len(whole), 99], [None, 0, 1, 7, 10**12]):
            end = None if length is None else start + length
            assert backend.read(key, start=start, length=length) == whole[start:end], (start, length)


def test_listing(backend, site):
    assert [entry.key for entry in backend.list("")] == KEYS
    assert [entry.key for entry in backend.list("packs/0a/")] == KEYS[2:4]
    assert all(entry.size == len(entry.key) + 10 and entry.modified > 1e9 for entry in backend.list(""))
    for prefix in ("gc/", "gc/tombstones/", "packs/99/"):
        assert list(backend.list(prefix)) == []
        assert list(backend.list_keys(prefix)) == []


def test_names_alone_cost_one_request_for_each_directory(backend, site):
    site[1].clear()
    assert list(backend.list_keys("packs/")) == KEYS[2:5]
    first, *others = [path for _, path, _ in site[1]]
    assert (first, sorted(others)) == ("/store/packs/", ["/store/packs/0a/", "/store/packs/ff/"])


@pytest.mark.parametrize("key", ["packs/0a", "packs/ff/none", "none"])
def test_absent_objects(backend, key):
    for question in (backend.read, backend.stat):
        with pytest.raises(ObjectNotFound, match=key):
            question(key)


def test_it_is_only_read_from(site):
    with pytest.raises(ConfigError, match="read_only=True"):
        open_backend(site[0])
    with open_backend(site[0], read_only=True) as backend, pytest.raises(AccessDenied, match="read_only"):
        backend.put("x", [b"x"])


def test_a_server_that_shows_no_directories_is_refused(served):
    for refusal in ("NOT_FOUND", "FORBIDDEN"):
        with (
            web_server(served, without=("index",), refusal=refusal) as (url, _),
            pytest.raises(AccessDenied, match="does not list its directories"),
        ):
            open_backend(f"{url}/store", read_only=True)


def test_a_server_that_stops_to_show_directories_is_not_empty(served):
    with web_server(served) as (url, _), open_backend(f"{url}/store", read_only=True) as backend:
        assert list(backend.list_keys(""))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("servers.web.Handler.list_directory", lambda self, path: self.send_error(404))
            with pytest.raises(AccessDenied, match="index"):
                list(backend.list("packs/"))
            with pytest.raises(AccessDenied, match="index"):
                list(backend.list("gc/"))


def test_a_server_without_ranges_is_told(served):
    with (
        web_server(served, without=("ranges",)) as (url, _),
        open_backend(f"{url}/store", read_only=True) as backend,
    ):
        assert backend.read("format") == b"0123456789format"
        assert backend.read("format", length=100) == b"0123456789format"
        assert backend.read("format", start=100, length=1) == b""
        for start, length in ((1, 3), (0, 3), (3, None)):
            with pytest.raises(BackendError, match="range requests"):
                backend.read("format", start=start, length=length)


def test_no_store_there(site):
    with pytest.raises(ConfigError, match="format"):
        open_backend(f"{site[0]}/packs", read_only=True)


def test_an_outage_is_not_an_absence(served, monkeypatch):
    with web_server(served) as (url, _), open_backend(f"{url}/store", read_only=True) as backend:
        assert backend.stat("format").size  # it has answered: the patience with hosts that never did is over
        backend.inner._policy = type(backend.inner._policy)(deadline=0, sleep=lambda _: None)
        monkeypatch.setattr("servers.web.Handler.send_head", lambda self: self.send_error(503))
        for question in (
            lambda: backend.read("format"),
            lambda: backend.stat("packs/0a/one"),
            lambda: list(backend.list("")),
            lambda: list(backend.list_keys("refs/")),
        ):
            with pytest.raises(BackendUnavailable):
                question()
        monkeypatch.setattr("servers.web.Handler.send_head", lambda self: self.send_error(403))
        with pytest.raises(AccessDenied):
            backend.stat("packs/0a/one")
