"""A mirror of another hub. The other hub is a server of the same kind, or a small one that lies as it is told."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.server
import json
import os
import threading
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from fakes.hub_server import hub_server, raw, write_model
from fakes.model_files import safetensors_bytes
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

import casstore
from casstore.errors import ConfigError
from casstore.integrations.hub.mirror.upstream import UpstreamHub

REPO = "org/minilm"
CONFIG = f"/{REPO}/resolve/main/config.json"


@pytest.fixture
def mirror(tmp_path):
    """Return a function that starts the mirror of a URL, on a store that stays."""
    with (
        casstore.open(tmp_path / "mirror", create=True, durability="none") as store,
        contextlib.ExitStack() as stack,
    ):

        def start(url):
            return stack.enter_context(hub_server(store, upstream=url))

        yield start


def snapshot(app, place, repo=REPO, **options):
    return Path(
        snapshot_download(
            repo, endpoint=app.url, cache_dir=place, token=options.pop("token", False), **options
        )
    )


def test_what_is_fetched_is_served_as_it_was(served, mirror, tmp_path, folder):
    app = mirror(served.url)
    direct, mirrored = snapshot(served, tmp_path / "a"), snapshot(app, tmp_path / "b")
    assert direct.name == mirrored.name
    for path in folder.rglob("*"):
        if path.is_file():
            assert (mirrored / path.relative_to(folder)).read_bytes() == path.read_bytes()
    # Blobs are named by ETags, and both hubs give the same.
    blobs = [
        sorted(item.name for item in (place.parents[1] / "blobs").iterdir()) for place in (direct, mirrored)
    ]
    assert blobs[0] == blobs[1]
    assert app.context.store.ls("models/")[0].metadata["mirror_of"]["commit"] == direct.name
    # Not one hash was computed again.
    assert app.context.hashes.misses == 0


def test_pinned_commits_and_tags(served, mirror, tmp_path, store):
    app = mirror(served.url)
    newest, older = (item.model_id[:40] for item in store.log(f"models/{REPO}"))
    for revision, commit in {
        older: older,
        "v1": older,
        "release/1.0": older,
        newest: newest,
        "main": newest,
    }.items():
        assert snapshot(app, tmp_path / "cache", revision=revision).name == commit
    names = sorted(row.name for row in app.context.store.ls())
    assert names == [f"models/{REPO}", f"tags/{REPO}/{older}"]
    refs = HfApi(endpoint=app.url, token=False).list_repo_refs(REPO)
    assert [item.name for item in refs.tags] == ["release/1.0", "v1"]


def test_when_the_other_hub_is_away(store, mirror, tmp_path):
    with hub_server(store) as upstream:
        app = mirror(upstream.url)
        commit = snapshot(app, tmp_path / "a").name
    app.context.mirror._answers.clear()
    assert snapshot(app, tmp_path / "b").name == commit
    assert snapshot(app, tmp_path / "c", revision=commit).name == commit
    assert raw(app, "GET", "/minilm/resolve/main/config.json").status == 503


def test_a_name_of_the_store_is_never_asked_for(served, mirror, tmp_path):
    app = mirror(served.url)
    app.context.store.add(write_model(tmp_path / "own", seed=9, rows=4), ref=f"models/{REPO}")
    assert json.loads(raw(app, "GET", CONFIG).body)["seed"] == 9
    assert raw(app, "GET", f"/{REPO}/resolve/v1/config.json").status == 404
    assert raw(app, "GET", f"/api/models/{REPO}/refs").status == 200


def test_only_what_is_missing_moves(tmp_path, mirror):
    """A model that differs in one layer costs that layer, from one casstore to another."""
    rng = np.random.default_rng(5)
    layers = {f"layer.{at}": rng.standard_normal((512, 512)).astype("<f4") for at in range(6)}
    with casstore.open(tmp_path / "theirs", create=True, durability="none") as theirs:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_bytes(safetensors_bytes(layers))
            theirs.add(tmp_path / name, ref=f"models/{name}")
            layers["layer.3"] = layers["layer.3"] + 1
        with hub_server(theirs) as upstream:
            app = mirror(upstream.url)
            moved = []
            for name in ("a", "b"):
                pending = json.loads(raw(app, "GET", f"/api/models/{name}").body)
                assert pending["sha"] == theirs.resolve(f"models/{name}").model_id[:40]
                [job] = app.context.mirror._jobs.values()
                assert (
                    raw(app, "GET", f"/{name}/resolve/main/model.safetensors").body
                    == (tmp_path / name / "model.safetensors").read_bytes()
                )
                moved.append(job.fetch.moved)
    assert moved[0] >= 6 << 20
    assert 1 << 20 <= moved[1] < 2 << 20


class Liar(http.server.BaseHTTPRequestHandler):
    """A hub with one model. What it says of it, and who may read it, is set by the tests."""

    protocol_version = "HTTP/1.1"
    sha = "a1" * 20
    files: ClassVar = {}
    tree = None
    info: ClassVar = {}
    tokens = None
    cuts = 0
    slow = 0.0
    asked: ClassVar = []
    status = 200

    def do_GET(self):
        kind = type(self)
        kind.asked.append((self.path, self.headers.get("Authorization")))
        if kind.status != 200:
            return self.answer(kind.status, b"")
        if (
            kind.tokens is not None
            and self.headers.get("Authorization", "")[7:] not in kind.tokens
            and "revision" not in self.path
        ):
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask for access."})
        if "/revision/" in self.path:
            return self.answer(200, json.dumps({"id": REPO, "sha": kind.sha, **kind.info}).encode())
        if self.path.endswith("/auth-check"):
            return self.answer(200, b"{}")
        if "/tree/" in self.path:
            listed = kind.tree or [
                {"type": "file", "path": path, "size": len(data), "oid": git_hash(data), "xetHash": "x"}
                for path, data in kind.files.items()
            ]
            return self.answer(200, json.dumps(listed).encode())
        data = kind.files.get(self.path.partition(f"/{kind.sha}/")[2])
        if data is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        time.sleep(kind.slow)
        begin = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        length = len(data) - begin
        if kind.cuts:
            kind.cuts -= 1
            data = data[: begin + length // 2]
        self.answer(206 if begin else 200, data[begin:], length=length)
        return None

    def answer(self, status, data, headers=None, length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        if length is not None and length != len(data):
            self.close_connection = True

    def log_message(self, *_):
        pass


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def liar():
    kind = type("Hub", (Liar,), {"files": {"config.json": b"{}"}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    kind.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield kind
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("tree", "files"),
    [
        ([{"type": "file", "path": "../x", "size": 2, "oid": git_hash(b"{}")}], {"../x": b"{}"}),
        ([{"type": "file", "path": "/etc/x", "size": 2, "oid": git_hash(b"{}")}], {"/etc/x": b"{}"}),
        ([{"type": "file", "path": "a", "size": 2, "oid": git_hash(b"{}")}] * 2, {"a": b"{}"}),
        ([{"type": "file", "path": "config.json", "size": 2, "oid": git_hash(b"[]")}], {"config.json": b"{}"}),
        ([{"type": "file", "path": "config.json", "size": 1, "oid": git_hash(b"{}")}], {"config.json": b"{}"}),
        ([{"type": "file", "path": "config.json", "size": 2, "oid": "0"}], {"config.json": b"{}"}),
        ([{"type": "file", "path": "config.json", "size": -2, "oid": git_hash(b"{}")}], {"config.json": b"{}"}),
        ([{"type": "file", "path": "config.json", "size": 2, "oid": "x", "lfs": {"oid": "0" * 64, "size": 2}}], {"config.json": b"{}"}),
    ],
)  # fmt: skip
def test_a_hub_that_lies(liar, mirror, monkeypatch, tree, files):
    monkeypatch.setattr("casstore.integrations.hub.mirror.fetching._PAUSE", 0.0)
    liar.tree, liar.files = tree, files
    app = mirror(liar.url)
    answer = raw(app, "GET", CONFIG)
    assert answer.status in (404, 500, 502, 503), answer
    assert app.context.store.ls() == []
    assert list(Path(app.context.mirror._folder).glob("*")) == []


def test_a_connection_that_is_cut(liar, mirror, monkeypatch):
    monkeypatch.setattr("casstore.integrations.hub.mirror.fetching._PAUSE", 0.0)
    data = np.random.default_rng(3).bytes(3 << 20)
    liar.files, liar.cuts = {"big.bin": data, "config.json": b"{}"}, 3
    app = mirror(liar.url)
    assert raw(app, "GET", f"/{REPO}/resolve/main/big.bin").body == data
    assert "xetHash" not in raw(app, "GET", f"/api/models/{REPO}/tree/main").body.decode()


def test_a_commit_that_takes_long(liar, mirror, monkeypatch, tmp_path):
    """Clients are told when to come again, and huggingface_hub does."""
    monkeypatch.setattr("casstore.integrations.hub.mirror.mirror._PATIENCE", 0.05)
    liar.slow = 0.7
    app = mirror(liar.url)
    head = raw(app, "HEAD", CONFIG)
    assert (head.status, head.headers["Content-Length"]) == (200, "2")
    assert head.headers["ETag"] == f'"{git_hash(b"{}")}"'
    answer = raw(app, "GET", CONFIG)
    assert answer.status == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 3
    path = hf_hub_download(REPO, "config.json", endpoint=app.url, cache_dir=tmp_path, token=False)
    assert Path(path).read_bytes() == b"{}"


def test_what_a_killed_server_leaves_is_removed(liar, mirror, tmp_path):
    with (
        casstore.open(tmp_path / "mirror", create=True, durability="none") as store,
        hub_server(store, upstream=liar.url) as first,
    ):
        place = Path(first.context.mirror._folder)
    for name in ("left", "held"):
        (place / name / "inner").mkdir(parents=True)
    held = os.open(place / "held", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    mirror(liar.url)
    assert [item.name for item in place.iterdir()] == ["held"]
    os.close(held)


def test_all_who_ask_wait_for_one_fetch(liar, mirror):
    liar.slow = 0.2
    app = mirror(liar.url)
    threads = [threading.Thread(target=raw, args=(app, "GET", CONFIG)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([path for path, _ in liar.asked if "/resolve/" in path]) == 1


@pytest.mark.parametrize("said", [{"gated": "auto"}, {"private": True}])
def test_a_gated_model_is_only_for_those_who_may(liar, mirror, tmp_path, said):
    liar.info, liar.tokens = said, {"good-token-1", "good-token-2"}
    app = mirror(liar.url)
    api = HfApi(endpoint=app.url)
    for token in (False, "bad-token"):
        with pytest.raises(GatedRepoError):
            hf_hub_download(REPO, "config.json", endpoint=app.url, cache_dir=tmp_path / "no", token=token)
    hf_hub_download(REPO, "config.json", endpoint=app.url, cache_dir=tmp_path / "yes", token="good-token-1")
    # It is in the store by now, and still nobody else gets it: not by name, not by commit, not on a page.
    for path in (
        CONFIG,
        f"/{REPO}/resolve/{liar.sha}/config.json",
        f"/api/models/{REPO}/tree/main",
        f"/api/models/{REPO}",
    ):
        assert raw(app, "GET", path).status == 403
        assert raw(app, "GET", path, headers={"Authorization": "Bearer bad-token"}).status == 403
        assert raw(app, "GET", path, headers={"Authorization": "Bearer good-token-2"}).status == 200
    model_id = app.context.store.ls("models/")[0].model_id
    for path in (
        f"/models/{REPO}",
        f"/models/{REPO}?tensors=",
        f"/{REPO}",
        f"/compare?a={model_id}&b={model_id}",
        f"/compare?a={REPO}&b={REPO}",
    ):
        assert raw(app, "GET", path).status == 404
    for path in ("/", "/usage", "/api/models", "/compare"):
        app.context.repositories.forget()
        assert REPO.encode() not in raw(app, "GET", path).body
    assert list(api.list_models(token="good-token-1")) == []
    # Without the other hub nobody can be asked, so nobody gets it.
    liar.status = 500
    app.context.mirror._answers.clear()
    for token in ("good-token-1", "bad-token"):
        answer = raw(
            app,
            "GET",
            f"/{REPO}/resolve/{liar.sha}/config.json",
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status == 503
    with hub_server(app.context.store) as alone, pytest.raises(RepositoryNotFoundError):
        hf_hub_download(
            REPO, "config.json", endpoint=alone.url, cache_dir=tmp_path / "x", token="good-token-1"
        )


def test_tokens_go_to_the_other_hub_alone_and_never_the_servers_own(liar, tmp_path):
    elsewhere = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            elsewhere.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    class Redirecting(liar):
        def do_GET(self):  # noqa: N802 - http.server's name
            if "/resolve/" in self.path:
                liar.asked.append((self.path, self.headers.get("Authorization")))
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{other.server_port}/blob")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            super().do_GET()

    hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = f"http://127.0.0.1:{hub.server_port}"
    try:
        with (
            casstore.open(tmp_path / "s", create=True, durability="none") as store,
            hub_server(store, upstream=url) as app,
        ):
            headers = {"Authorization": "Bearer callers-own-token"}
            assert raw(app, "GET", CONFIG, headers=headers).body == b"{}"
            assert {token for _, token in liar.asked} == {"Bearer callers-own-token"}
            liar.asked.clear()
            assert raw(app, "GET", CONFIG).body == b"{}"
            assert {token for _, token in liar.asked} == {None}  # nobody else's
        assert elsewhere == [None]
        liar.asked.clear()
        own = b"the-servers-own-token"
        tokens = (casstore.digest.digest(own),)
        with (
            casstore.open(tmp_path / "t", create=True, durability="none") as store,
            hub_server(store, upstream=url, tokens=tokens) as app,
        ):
            headers = {"Authorization": f"Bearer {own.decode()}"}
            assert raw(app, "GET", CONFIG, headers=headers).body == b"{}"
        assert {token for _, token in liar.asked} == {None}
    finally:
        for server in (hub, other):
            server.shutdown()
            server.server_close()


def test_a_hub_that_refuses_and_one_that_is_none(liar, mirror, tmp_path):
    app = mirror(liar.url)
    liar.status = 404
    answer = raw(app, "GET", CONFIG)
    assert answer.status == 404
    liar.status = 500
    app.context.mirror._answers.clear()
    assert raw(app, "GET", CONFIG).status == 503
    api = HfApi(endpoint=app.url, token=False)
    with pytest.raises(HfHubHTTPError):
        api.model_info(REPO)
    for url in ("ftp://x", "huggingface.co", "https://user:secret@huggingface.co", "https://h.co/?a=b"):
        with pytest.raises(ConfigError) as caught:
            UpstreamHub(url)
        assert "secret" not in str(caught.value)


def test_a_page_elsewhere_cannot_make_it_fetch(liar, mirror):
    app = mirror(liar.url)
    assert raw(app, "GET", CONFIG, headers={"Sec-Fetch-Site": "cross-site"}).status == 404
    assert liar.asked == []
    assert raw(app, "GET", CONFIG, headers={"Sec-Fetch-Site": "none"}).status == 200


def test_a_server_that_is_stopped_does_not_wait_for_what_it_fetches(liar, tmp_path):
    liar.slow = 1.5
    with casstore.open(tmp_path / "s", create=True, durability="none") as store:
        with hub_server(store, upstream=liar.url) as app:
            assert raw(app, "HEAD", CONFIG).status == 200
            [job] = app.context.mirror._jobs.values()
        assert job.task.cancelled() or job.task.exception() is not None
        assert store.ls() == []
