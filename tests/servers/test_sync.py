"""Two machines that share models through a real server: push from one, pull to the other, each ref whole."""

from __future__ import annotations

import pytest
from fakes.stores import assert_clean, model_of, noise, write_model
from fakes.sync_stores import shown

from casstore.api.store import Store
from casstore.objects.publishing import pack_writer
from casstore.ops.sync import execute, plan_sync

SHARED = noise(1, 400_000)


@pytest.fixture(params=["s3", "azure", "sftp"])
def place(request, tmp_path):
    """Return the URL of an empty place on a server, and the options to reach it."""
    server = request.getfixturevalue(f"{request.param}_server")
    if request.param == "s3":
        return f"s3://{server.make_bucket()}/shared", server.options
    if request.param == "azure":
        return f"az://{server.make_container()}/shared", server.options
    return server.url(tmp_path / "shared"), server.options


def machine(tmp_path, monkeypatch, name):
    """Become another machine: its own cache, its own store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))
    return Store(tmp_path / name / "store", create=True, durability="none")


def test_push_then_pull(place, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_writer, "REMOTE_PACK_TARGET", 256 << 10)
    url, options = place
    Store(url, create=True, **options).close()
    with machine(tmp_path, monkeypatch, "one") as one, Store(url, **options) as remote:
        for number in range(3):
            folder = write_model(
                model_of(shared=SHARED, own=noise(number + 2, 200_000)), tmp_path / f"m{number}"
            )
            one.add(folder, ref=f"models/{number}", metadata={"number": number})
        one.tag("best", "models/1")
        one.put_manifest("runs/r", b"a run")
        one.put_manifest("evaluations/e", noise(9, 20_000))
        report = execute(plan_sync(one, remote))
        assert len(report.refs) == 6
        assert report.packs > 2
        assert plan_sync(one, remote).empty
        told = shown(one)
        assert_clean(remote)
    with machine(tmp_path, monkeypatch, "two") as two, Store(url, **options) as remote:
        report = execute(plan_sync(remote, two))
        assert report.bytes_moved <= 1.02 * report.bytes_missing
        assert shown(two) == told
        assert_clean(two)
        # What the second machine makes of it goes the other way, and only what is new in it.
        folder = write_model(model_of(shared=SHARED, own=noise(20, 50_000)), tmp_path / "tuned")
        two.add(folder, ref="models/0", base="models/1")
        two.tag("best", "models/0")
        report = execute(plan_sync(two, remote))
        assert report.refs == ("models/0", "tags/best")
        assert report.bytes_missing < 60_000
        told = shown(two)
    with machine(tmp_path, monkeypatch, "one") as one, Store(url, **options) as remote:
        plan = plan_sync(remote, one)
        assert [ref.state.value for ref in plan.refs] == ["behind", "behind"]
        execute(plan)
        assert shown(one) == told
