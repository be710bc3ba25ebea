"""The Hub's API, asked as any client may ask it."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from fakes.hub_server import hub_server, raw, write_model

import casstore
from casstore.integrations.hub.hashes import FileHashes

WEIGHTS = "/org/minilm/resolve/main/model.safetensors"


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def file_id(store):
    [found] = [item.file_id for item in store.files("models/org/minilm") if item.path == "model.safetensors"]
    return found


@pytest.fixture(scope="module")
def client(served):
    with httpx2.Client(base_url=served.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_head_has_the_true_length_and_no_body(client, weights, store):
    answer = client.head(WEIGHTS)
    assert answer.status_code == 200
    assert answer.headers["content-length"] == str(len(weights))
    assert answer.headers["etag"] == f'"{hashlib.sha256(weights).hexdigest()}"'
    assert answer.headers["x-repo-commit"] == store.resolve("models/org/minilm").model_id[:40]
    assert answer.headers["accept-ranges"] == "bytes"
    assert "content-encoding" not in answer.headers
    assert not [name for name in answer.headers if "xet" in name]
    assert answer.content == b""


def test_every_version_of_a_url_names_the_same_model(client, store):
    newest, older = (item.model_id for item in store.log("models/org/minilm"))
    for revision, model_id in {
        "main": newest,
        "refs%2Fheads%2Fmain": newest,
        newest[:40]: newest,
        newest: newest,
        "v1": older,
        "release%2F1.0": older,
        older[:40]: older,
    }.items():
        answer = client.head(f"/org/minilm/resolve/{revision}/config.json")
        assert (answer.status_code, answer.headers["x-repo-commit"]) == (200, model_id[:40]), revision
    # The other repository never had the older model, so neither its commit nor its tags are revisions of it.
    for revision in ("v1", older[:40]):
        assert client.head(f"/minilm/resolve/{revision}/config.json").status_code == 404


def test_whole_files(client, folder):
    for path in ("model.safetensors", "config.json", "1_Pooling/config.json", "empty.txt"):
        answer = client.get(f"/org/minilm/resolve/main/{path}")
        data = (folder / path).read_bytes()
        assert (answer.status_code, answer.content) == (200, data)
        assert answer.headers["content-length"] == str(len(data))
        assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("header", "begin", "end"),
    [
        ("bytes=0-7", 0, 8),
        ("bytes=100-", 100, None),
        ("bytes=-10", -10, None),
        ("bytes=700000-1200000", 700000, 1200001),
        ("bytes=5-999999999", 5, None),
        ("Bytes = 3-3", 3, 4),
        ("bytes=-999999999", 0, None),
    ],
)
def test_ranges(client, weights, header, begin, end):
    answer = client.get(WEIGHTS, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, weights[begin:end])
    first = begin % len(weights)
    assert (
        answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(weights)}"
    )
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    "header",
    ["bytes=999999999-", "bytes=8-7", "bytes=-0", "bytes=-", "bytes=0-1,5-6", "lines=1-2", "bytes=x-y", ""],
)
def test_ranges_that_are_none(client, weights, header):
    answer = client.get(WEIGHTS, headers={"Range": header})
    assert (answer.status_code, answer.content) == (416, b"")
    assert answer.headers["content-range"] == f"bytes */{len(weights)}"


def test_an_empty_file_has_no_range(client):
    assert client.get("/org/minilm/resolve/main/empty.txt", headers={"Range": "bytes=0-0"}).status_code == 416


def test_a_range_decodes_only_its_chunks(client, store, monkeypatch):
    read = []
    original = type(store).read_part

    def read_part(self, layout, begin, end, *, name):
        read.append((begin, end))
        return original(self, layout, begin, end, name=name)

    monkeypatch.setattr(type(store), "read_part", read_part)
    assert client.get(WEIGHTS, headers={"Range": "bytes=900000-900007"}).status_code == 206
    assert read == [(900000, 900008)]


def test_conditions(client, weights):
    etag = client.head(WEIGHTS).headers["etag"]
    assert client.get(WEIGHTS, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(WEIGHTS, headers={"If-None-Match": '"other"'}).status_code == 200
    part = {"Range": "bytes=0-3"}
    assert client.get(WEIGHTS, headers={**part, "If-Range": etag}).content == weights[:4]
    assert client.get(WEIGHTS, headers={**part, "If-Range": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/org/none/resolve/main/config.json", 404, "RepoNotFound"),
        ("/api/models/none", 404, "RepoNotFound"),
        ("/api/models/none/refs", 404, "RepoNotFound"),
        ("/api/models/a@b", 404, "RepoNotFound"),
        ("/api/datasets/org/minilm", 404, "RepoNotFound"),
        ("/api/spaces/org/minilm/revision/main", 404, "RepoNotFound"),
        ("/datasets/org/minilm/resolve/main/config.json", 404, "RepoNotFound"),
        ("/api/models/org/minilm/revision/none", 404, "RevisionNotFound"),
        (f"/api/models/org/minilm/tree/{'0' * 40}", 404, "RevisionNotFound"),
        ("/org/minilm/resolve/none/config.json", 404, "RevisionNotFound"),
        ("/org/minilm/resolve/main/none.json", 404, "EntryNotFound"),
        ("/org/minilm/resolve/main/1_Pooling", 404, "EntryNotFound"),
        ("/org/minilm/resolve/main/../../etc/passwd", 404, "EntryNotFound"),
        ("/org/minilm/resolve/main/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, "EntryNotFound"),
        ("/api/models/org/minilm/tree/main/none", 404, "EntryNotFound"),
        ("/api/models/org/minilm/tree/main/config.json", 404, "EntryNotFound"),
        ("/api/models/org/minilm/discussions", 404, None),
        ("/api/models/org/minilm/revision/main/rest", 404, None),
        ("/api/nothing", 404, None),
        ("/%ff/resolve/main/x", 400, "BadRequest"),
        ("/api/models?pipeline_tag=x", 400, "BadRequest"),
        ("/api/models?sort=createdAt", 400, "BadRequest"),
        ("/api/models?limit=-1", 400, "BadRequest"),
        ("/api/whoami-v2", 401, None),
    ],
)
def test_errors_say_which(served, path, status, code):
    # Not through httpx, which tidies paths up.
    answer = raw(served, "GET", path)
    assert (answer.status, answer.headers.get("X-Error-Code")) == (status, code)
    assert answer.headers["X-Error-Message"]
    if code == "EntryNotFound":
        assert len(answer.headers["X-Repo-Commit"]) == 40


def test_file_names_of_another_kind(tmp_path):
    """Names with what URLs are made of arrive whole, and a name that looks like a path reaches nothing else."""
    names = ["a b.txt", "100%.txt", "q?x=1#y.txt", "ünï.txt", "a+b&c.txt", "..hidden", "%2e%2e.txt"]
    for name in names:
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_text(name)
    with casstore.open(tmp_path / "store", create=True, durability="none") as store:
        store.add(tmp_path / "m", ref="models/m")
        with hub_server(store) as app:
            for name in names:
                assert raw(app, "GET", f"/m/resolve/main/{quote(name)}").body.decode() == name
            listed = json.loads(raw(app, "GET", "/api/models/m/tree/main").body)
            assert sorted(item["path"] for item in listed) == sorted(names)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/repos/create"),
        ("DELETE", "/api/repos/delete"),
        ("POST", "/api/models/org/minilm/commit/main"),
        ("PUT", "/org/minilm/resolve/main/config.json"),
        ("POST", "/api/models/org/minilm/tree/main"),
        ("GET", "/api/models/org/minilm/auth-check/write"),
    ],
)
def test_writing_is_refused(served, method, path):
    answer = raw(served, method, path)
    assert answer.status == 403
    assert "read-only" in answer.headers["X-Error-Message"]


def test_the_tree(client, folder):
    entries = {
        item["path"]: item for item in client.get("/api/models/org/minilm/tree/main?recursive=true").json()
    }
    assert entries.keys() == {
        "1_Pooling", "1_Pooling/config.json", "README.md", "config.json", "empty.txt", "model.safetensors",
    }  # fmt: skip
    weights = (folder / "model.safetensors").read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(weights)}\n".encode()
    )
    large = entries["model.safetensors"]
    assert large["lfs"] == {"oid": sha256, "size": len(weights), "pointerSize": len(pointer)}
    assert large["oid"] == git_hash(pointer)
    config = entries["config.json"]
    assert "lfs" not in config
    assert config["oid"] == git_hash((folder / "config.json").read_bytes())
    assert entries["empty.txt"]["oid"] == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert entries["1_Pooling"]["type"] == "directory"
    top = client.get("/api/models/org/minilm/tree/main").json()
    assert {item["path"] for item in top} == entries.keys() - {"1_Pooling/config.json"}
    inner = client.get("/api/models/org/minilm/tree/main/1_Pooling?expand=true").json()
    assert [item["path"] for item in inner] == ["1_Pooling/config.json"]
    assert inner[0]["lastCommit"]["id"] == client.head(WEIGHTS).headers["x-repo-commit"]


def test_pages(client):
    url, paths, pages = "/api/models/org/minilm/tree/main?recursive=true&limit=2", [], 0
    while url:
        answer = client.get(url)
        paths += [item["path"] for item in answer.json()]
        url = answer.links.get("next", {}).get("url")
        pages += 1
    assert (pages, len(set(paths))) == (3, 6)
    whole = client.get(
        "/api/models/org/minilm/tree/main?recursive=true&limit=2", headers={"User-Agent": "llama-cpp/b1"}
    )
    assert len(whole.json()) == 6
    assert "link" not in whole.headers


def test_the_list_of_models(client):
    assert [item["id"] for item in client.get("/api/models").json()] == ["minilm", "org/minilm"]
    assert [item["id"] for item in client.get("/api/models?author=org").json()] == ["org/minilm"]
    assert [item["id"] for item in client.get("/api/models?search=MINI&limit=1").json()] == ["minilm"]
    assert client.get("/api/datasets").json() == []


def test_what_a_model_says(client):
    info = client.get("/api/models/org/minilm?blobs=true").json()
    assert info["pipeline_tag"] == "feature-extraction"
    assert info["library_name"] == "sentence-transformers"
    assert info["cardData"]["license"] == "apache-2.0"
    assert set(info["tags"]) == {"small", "test", "license:apache-2.0"}
    assert {item["rfilename"]: item["size"] for item in info["siblings"]}["empty.txt"] == 0
    some = client.get("/api/models/org/minilm?expand=safetensors&expand=sha").json()
    assert some.keys() == {"_id", "id", "sha", "safetensors"}
    assert some["safetensors"] == {"parameters": {"F16": 512, "F32": 700 * 512}, "total": 701 * 512}


def test_hashes_outlive_the_server_and_are_not_believed_when_damaged(store, folder, monkeypatch):
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    with hub_server(store) as app:
        raw(app, "HEAD", WEIGHTS)
        [kept] = [path for path in Path(app.context.hashes.folder).rglob("*") if path.name == file_id(store)]
    with hub_server(store) as app:
        raw(app, "HEAD", WEIGHTS)
        assert (app.context.hashes.hits, app.context.hashes.misses) == (1, 0)
    for damaged in ("", "0" * 80, kept.read_text()[:-1] + "!"):
        kept.write_text(damaged)
        with hub_server(store) as app:
            assert raw(app, "HEAD", WEIGHTS).headers["ETag"] == f'"{expected}"'
            assert app.context.hashes.misses == 1


def test_a_hash_is_computed_once_for_all_who_ask(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "big.bin").write_bytes(bytes(2 << 20))
    with casstore.open(tmp_path / "store", create=True, durability="none") as store:
        store.add(tmp_path / "m", ref="models/m")
        with hub_server(store) as app, ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: raw(app, "HEAD", "/m/resolve/main/big.bin"), range(8)))
            assert len({answer.headers["ETag"] for answer in answers}) == 1
            assert app.context.hashes.misses == 1


def test_json_that_takes_long_begins_before_it_is_known(monkeypatch, store):
    monkeypatch.setattr("casstore.integrations.hub.endpoint.slow_json._PATIENCE", 0.05)
    original = FileHashes._read

    def slowly(self, *args):
        time.sleep(0.3)
        return original(self, *args)

    monkeypatch.setattr(FileHashes, "_read", slowly)
    with hub_server(store) as app:
        answer = raw(app, "GET", "/api/models/org/minilm/tree/main")
        assert answer.body.startswith(b"  ")
        assert len(json.loads(answer.body)) == 5


def test_what_was_freed_is_no_revision(tmp_path):
    for seed in (1, 2):
        write_model(tmp_path / f"m{seed}", seed=seed, rows=8)
    with casstore.open(tmp_path / "store", create=True, durability="none") as store:
        first = store.add(tmp_path / "m1", ref="models/m").model_id
        store.add(tmp_path / "m2", ref="models/m")
        with hub_server(store) as app:
            assert raw(app, "GET", f"/m/resolve/{first[:40]}/config.json").status == 200
        store.gc()
        with hub_server(store) as app:
            answer = raw(app, "GET", f"/m/resolve/{first[:40]}/config.json")
            assert (answer.status, answer.headers["X-Error-Code"]) == (404, "RevisionNotFound")


def test_damage_ends_a_file_early(tmp_path):
    """Invariant 4: not one byte of a damaged chunk is sent, and a client sees that something is missing."""
    write_model(tmp_path / "m", rows=4200)
    with casstore.open(tmp_path / "store", create=True, durability="none") as store:
        store.add(tmp_path / "m", ref="models/m")
        pack = max((tmp_path / "store" / "packs").rglob("*"), key=lambda path: path.stat().st_size)
        data = bytearray(pack.read_bytes())
        data[len(data) * 3 // 4] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
        with hub_server(store) as app:
            with pytest.raises(http.client.IncompleteRead) as caught:
                raw(app, "GET", "/m/resolve/main/model.safetensors")
            whole = (tmp_path / "m" / "model.safetensors").read_bytes()
            assert whole.startswith(caught.value.partial)
            answer = raw(app, "HEAD", "/m/resolve/main/model.safetensors")
            assert answer.status == 500
            assert "casstore check" in answer.headers["X-Error-Message"]
