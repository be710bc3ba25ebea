"""Faults between casstore and real servers: throttling, lost answers, connections that end in the middle."""

from __future__ import annotations

import numpy as np
import pytest
from servers.proxy import proxied

from casstore.backend import RetryingBackend, RetryPolicy, open_backend
from casstore.backend.base import Throttled
from casstore.errors import AccessDenied, BackendUnavailable, ConfigError, ObjectExists

KEY = "packs/ab/cd"
BIG = np.random.default_rng(2).integers(0, 256, 20 << 20, dtype=np.uint8).tobytes()


@pytest.fixture(params=["s3", "azure"])
def place(request):
    server = request.getfixturevalue(f"{request.param}_server")
    if request.param == "s3":
        bucket = server.make_bucket()
        return f"s3://{bucket}/store", server
    container = server.make_container()
    return f"az://{container}/store", server


@pytest.fixture
def proxy(place):
    with proxied(place[1].port) as proxy:
        yield proxy


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def backend(place, proxy, pauses):
    url, server = place
    with open_backend(url, **server.options_at(int(proxy.url.rpartition(":")[2]))) as backend:
        policy = RetryPolicy(first_pause=0.001, longest_pause=0.001, sleep=pauses.append)
        yield RetryingBackend(backend.inner, policy)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_storm_passes(backend, proxy, status):
    backend.put(KEY, [b"x"])
    operations = (
        lambda: backend.read(KEY) == b"x",
        lambda: backend.stat(KEY).size == 1,
        lambda: [entry.key for entry in backend.list("")] == [KEY],
        lambda: backend.put("packs/ab/other", [b"y"]) is None,
        lambda: backend.delete("packs/ab/other") is None,
    )
    for operation in operations:
        proxy.storm(3, (status, {}))
        assert operation()


def test_retry_after_is_honoured(backend, proxy, pauses):
    backend.put(KEY, [b"x"])
    proxy.storm(2, (503, {"Retry-After": "7"}))
    sent = len(proxy.requests)
    with pytest.raises(Throttled) as caught:
        backend.inner.read(KEY)
    assert caught.value.retry_after == 7
    assert len(proxy.requests) == sent + 1, "the client library sends once"
    assert backend.read(KEY) == b"x"
    assert [pause for pause in pauses if pause >= 7] == [7]


def test_a_server_that_stays_busy_is_an_error(place, proxy, backend):
    backend.put(KEY, [b"x"])
    brief = RetryingBackend(backend.inner, RetryPolicy(deadline=0.2, first_pause=0.01))
    proxy.storm(10**6)
    for question in (lambda: brief.read(KEY), lambda: brief.stat(KEY), lambda: list(brief.list(""))):
        with pytest.raises(BackendUnavailable):
            question()
    with pytest.raises(BackendUnavailable):
        brief.put("other", [b"x"])


@pytest.mark.parametrize("happens", ["lose", "drop"])
def test_a_create_whose_answer_got_lost_has_won(backend, proxy, happens):
    assert backend.creates_exclusively
    proxy.once("PUT", happens, "refs")
    backend.create("refs/tags/aa/prod@1", [b"mine"])
    proxy.fault = None
    assert backend.read("refs/tags/aa/prod@1") == b"mine"
    with pytest.raises(ObjectExists):
        backend.create("refs/tags/aa/prod@1", [b"theirs"])


@pytest.mark.parametrize("happens", ["lose", "drop"])
def test_a_put_whose_answer_got_lost(backend, proxy, happens):
    proxy.once("PUT", happens)
    backend.put(KEY, [b"mine"])
    assert backend.read(KEY) == b"mine"


def test_a_body_that_ends_early_is_read_again(backend, proxy):
    with backend.open_writer() as writer:
        writer.write([BIG[: 1 << 20]])
        writer.commit(KEY)
    proxy.once("GET", "cut", "cd")
    assert backend.read(KEY) == BIG[: 1 << 20]
    proxy.once("GET", "cut", "cd")
    assert backend.read(KEY, start=5, length=500_000) == BIG[5:500_005]


def test_large_objects_go_in_parts_that_can_each_fail(backend, proxy, place):
    with backend.open_writer() as writer:
        for at in range(0, len(BIG), 1 << 20):
            writer.write([BIG[at : at + (1 << 20)]])
        seen = len(proxy.requests)
        proxy.once("PUT", "drop", "partNumber=2" if place[0].startswith("s3") else "comp=block&")
        writer.commit(KEY)
    assert max(request.size for request in proxy.requests[seen:]) <= (5 << 20) + 4096
    assert backend.read(KEY) == BIG
    if place[0].startswith("s3"):
        assert place[1].unfinished_uploads(place[0].split("/")[2]) == []


def test_a_large_object_that_cannot_be_sent_leaves_nothing(backend, proxy, place):
    brief = RetryingBackend(backend.inner, RetryPolicy(deadline=0))
    with brief.open_writer() as writer:
        writer.write([BIG])
        part = "partNumber=2" if place[0].startswith("s3") else "comp=block&"
        proxy.fault = lambda request: "drop" if part in request.path and request.method == "PUT" else None
        with pytest.raises(BackendUnavailable):
            writer.commit(KEY)
    proxy.fault = None
    assert list(backend.list("")) == []
    assert list(backend.list_temporaries()) == []
    if place[0].startswith("s3"):
        assert place[1].unfinished_uploads(place[0].split("/")[2]) == []


def test_who_may_not(backend, proxy):
    backend.put(KEY, [b"x"])
    proxy.fault = lambda request: (403, {})
    for question in (lambda: backend.read(KEY), lambda: backend.stat(KEY), lambda: list(backend.list(""))):
        with pytest.raises(AccessDenied):
            question()


def test_a_bucket_that_is_not_there(place):
    url, server = place
    for options in ({}, {"create": True}):
        with pytest.raises(ConfigError, match="does not exist"):
            open_backend(f"{url.split('://', 1)[0]}://no-such-place/store", **options, **server.options)


def test_nobody_listens(place):
    url, server = place
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("casstore.backend.OPENING", RetryPolicy(deadline=0.1))
        with pytest.raises(BackendUnavailable):
            open_backend(url, **server.options_at(1))
