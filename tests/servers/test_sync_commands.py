"""push and pull against a real S3 server when something is wrong: one line, exit code 1, nothing half done."""

from __future__ import annotations

import errno
import json
import os
from functools import partial

import pytest
from click.testing import CliRunner
from fakes.stores import assert_clean, noise
from servers.proxy import proxied
from servers.s3 import KEY, SECRET

from casstore import Store
from casstore.backend import RetryingBackend, RetryPolicy
from casstore.backend.local.syscalls import SystemCalls
from casstore.cli import app
from casstore.format import marks
from casstore.objects.publishing import pack_writer

PACKS = 4


def run(*arguments, code=0):
    """Run the command line; return what it printed to stdout and stderr."""
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    assert SECRET not in result.stdout + result.stderr
    return result.stdout, result.stderr


def refused(*arguments):
    """Run a command that must fail; return the one line that it says."""
    out, error = run(*arguments, code=1)
    assert out == ""
    assert error.startswith("casstore: ")
    assert len(error.splitlines()) == 1, error
    return error


@pytest.fixture
def proxy(s3_server, monkeypatch):
    """Let commands reach the server through a proxy, by the environment as people do."""
    with proxied(s3_server.port) as proxy:
        for name, text in {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }.items():
            monkeypatch.setenv(name, text)
        yield proxy


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Give up soon, and let a push of a few hundred kilobytes have a middle."""
    brief = RetryPolicy(deadline=0.2, first_pause=0.01)
    monkeypatch.setattr("casstore.backend.OPENING", brief)
    monkeypatch.setattr("casstore.backend.RetryingBackend", partial(RetryingBackend, policy=brief))
    monkeypatch.setattr(pack_writer, "REMOTE_PACK_TARGET", 128 << 10)
    monkeypatch.setattr("casstore.ops.sync.frames.BLOCK", 128 << 10)


@pytest.fixture
def bucket(s3_server):
    return s3_server.make_bucket()


@pytest.fixture
def remote(proxy, bucket):
    """Return the URL of an empty store on the server."""
    url = f"s3://{bucket}/team"
    run("init", "--store", url, "-q")
    return url


def make(tmp_path, name, *models):
    place = tmp_path / name
    run("init", "--store", place, "-q")
    for at, data in enumerate(models):
        path = tmp_path / f"{name}-{at}.bin"
        path.write_bytes(data)
        run("add", path, "--ref", f"models/{at}", "--store", place, "-q")
    return place


@pytest.fixture
def here(tmp_path):
    return make(tmp_path, "here", noise(1, PACKS * 300_000))


@pytest.fixture
def there(tmp_path):
    return make(tmp_path, "there")


def refs(place):
    return run("ls", "-q", "--store", place)[0].split()


def test_no_bucket(proxy, here):
    error = refused("push", "s3://no-such-bucket-here/team", "--store", here)
    assert "no-such-bucket-here" in error
    assert "does not exist" in error


def test_no_store(proxy, bucket, here):
    assert "casstore init" in refused("push", f"s3://{bucket}/other", "--store", here)


def test_something_else(remote, s3_server, bucket, here):
    s3_server.client.put_object(Bucket=bucket, Key="team/format", Body=b"something else")
    assert "format" in refused("pull", remote, "--store", here)


def test_a_newer_format(remote, s3_server, bucket, here, monkeypatch):
    newer = marks.STORE_VERSION + 1
    with monkeypatch.context() as patch:
        patch.setattr(marks, "STORE_VERSION", newer)
        data = marks.encode_format(marks.StoreFormat(bytes(marks.STORE_ID_SIZE)))
    s3_server.client.put_object(Bucket=bucket, Key="team/format", Body=data)
    for command in ("push", "pull"):
        error = refused(command, remote, "--store", here)
        assert "upgrade casstore" in error
        assert remote in error


def test_no_permission(remote, proxy, here):
    proxy.fault = lambda request: (403, {}) if request.method == "PUT" else None
    assert "credentials" in refused("push", remote, "--store", here)
    proxy.fault = lambda request: (403, {})
    assert "credentials" in refused("push", remote, "--store", here)


def test_nobody_listens(here, monkeypatch, proxy):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "127.0.0.1:1" in refused("push", "s3://bucket/team", "--store", here)


@pytest.mark.parametrize(("scheme", "words"), [("gs", "casstore[gcs]"), ("weird", "weird")])
def test_a_protocol_whose_package_is_not_here(here, scheme, words):
    assert words in refused("push", f"{scheme}://bucket/team", "--store", here)


def test_wrong_bytes(remote, s3_server, bucket, here, there):
    run("push", remote, "--store", here)
    packs = [
        (found["Size"], found["Key"])
        for found in s3_server.client.list_objects_v2(Bucket=bucket, Prefix="team/packs/")["Contents"]
    ]
    key = max(packs)[1]
    data = bytearray(s3_server.client.get_object(Bucket=bucket, Key=key)["Body"].read())
    data[len(data) // 3] ^= 1
    s3_server.client.put_object(Bucket=bucket, Key=key, Body=bytes(data))
    error = run("pull", remote, "--store", there, code=1)[1]
    assert "models/0 was left out" in error
    pack = key.removeprefix("team/")
    assert pack in error
    assert f"casstore quarantine REF --store {remote}" in error
    assert refs(there) == []
    run("check", "--read-data", "--store", there)
    # What the line advises: the pack is set apart, and pushed anew by who has the model.
    told = json.loads(run("quarantine", "models/0", "--store", remote, "--json")[0])
    assert list(told["packs"]) == [os.path.basename(pack)]
    assert "Wrote 1 ref" in run("push", remote, "--overwrite", "--store", here)[0]
    run("pull", remote, "--store", there)
    assert refs(there) == ["models/0"]
    assert "1 equal" in run("push", remote, "--overwrite", "--store", here)[0]


@pytest.mark.parametrize("way", ["push", "pull"])
def test_the_network_goes_in_the_middle(remote, proxy, here, there, way):
    """What arrived stays: a second run needs less."""
    if way == "pull":
        run("push", remote, "--store", here)
    place = here if way == "push" else there
    plan = json.loads(run(way, remote, "--store", place, "--dry-run", "--json")[0])
    moved = [0]

    def fault(request):
        about = "PUT" if way == "push" else "GET"
        moved[0] += request.method == about and "/packs/" in request.path
        return "drop" if moved[0] > 2 else None

    proxy.fault = fault
    error = refused(way, remote, "--store", place)
    assert "Cannot" in error
    proxy.fault = None
    assert refs(remote if way == "push" else there) == []
    report = json.loads(run(way, remote, "--store", place, "--json")[0])
    assert report["refs"] == ["models/0"]
    assert 0 < report["bytes_moved"] <= plan["bytes_stored"]
    for store in (here, remote if way == "push" else there):
        run("check", "--read-data", "--store", store)


def test_a_disk_that_fills_up(remote, here, there, monkeypatch):
    run("push", remote, "--store", here)
    left = [200_000]
    write = SystemCalls.write

    def fills_up(self, fd, parts):
        size = sum(memoryview(part).nbytes for part in parts)
        if size > left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= size
        return write(self, fd, parts)

    monkeypatch.setattr(SystemCalls, "write", fills_up)
    error = refused("pull", remote, "--store", there)
    assert "the disk is full" in error
    assert "Free space" in error
    left[0] = 10**9
    assert refs(there) == []
    run("pull", remote, "--store", there)
    with Store(there) as store:
        assert_clean(store)
        assert not list(store.backend.list_temporaries())


def test_two_writers_of_one_ref(remote, here, tmp_path):
    other = make(tmp_path, "other", noise(2, 100_000))
    run("push", remote, "--store", here)
    _, error = run("push", remote, "--store", other, code=1)
    assert "models/0 was left alone" in error
    with Store(here) as ours, Store(remote) as shared:
        assert shared.model("models/0").model_id == ours.model("models/0").model_id
    run("push", remote, "--overwrite", "--store", other)
    with Store(remote) as shared:
        assert len(shared.history("models/0")) == 2
