"""What a user has on a machine only saves time: without it, or with it broken, everything works (invariant 13)."""

from __future__ import annotations

import json
import logging
import os

import fsspec
import pytest
from click.testing import CliRunner
from fakes.stores import noise

import casstore
from casstore import Store
from casstore.backend.local.syscalls import SystemCalls
from casstore.cli import app
from casstore.errors import ConfigError
from casstore.machine import user_folders
from casstore.machine.remotes import Remotes
from casstore.machine.state import machine_folder, state_path


@pytest.fixture(autouse=True)
def warned(caplog):
    caplog.set_level(logging.WARNING, logger="casstore")
    user_folders._warn.cache_clear()
    yield
    user_folders._warn.cache_clear()


@pytest.fixture
def homeless(monkeypatch):
    """Unset every variable, and have no entry in the password file."""
    for name in (
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
        "CASSTORE_STORE",
    ):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.bin").write_bytes(noise(1, 10_000))
    return tmp_path / "model.bin"


def test_stores_work_without_a_home(homeless, tmp_path, model, caplog):
    with Store(tmp_path / "store", create=True) as store:
        store.add(model, ref="models/m")
        assert not store.machine.keeps
    with Store(tmp_path / "store") as store:
        store.get("models/m", tmp_path / "out")
        assert store.check().ok
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"
    assert "HOME" in caplog.text


def test_caches_of_pipelines_work_without_a_home(homeless, tmp_path):
    with casstore.OliveCache({"cache_dir": str(tmp_path / "cache")}) as cache:
        assert cache.local.refs() == {}
    # Invariant 11: a setting that cannot be used is noted, and the pipeline goes on.
    with casstore.OliveCache({"cache_dir": "~/cache"}) as cache:
        assert "no home directory" in cache.problems[0]


def test_commands_without_a_home(homeless, tmp_path, model):
    store = str(tmp_path / "store")
    for arguments in (
        ["init"],
        ["add", str(model), "--ref", "models/m"],
        ["ls"],
        ["push", f"{tmp_path}/other"],
    ):
        if arguments[0] == "push":
            CliRunner().invoke(app, ["init", "--store", f"{tmp_path}/other"])
        result = CliRunner().invoke(app, [*arguments, "--store", store])
        assert result.exit_code == 0, (arguments, result.output)
    result = CliRunner().invoke(app, ["ls"])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "--store" in result.stderr
    assert "CASSTORE_STORE" in result.stderr
    for arguments in (["remote", "add", "hub", "/x"], ["push", "hub"]):
        result = CliRunner().invoke(app, [*arguments, "--store", store])
        assert result.exit_code == 1
        assert "unexpected" not in result.stderr


def spoil(kind, place):
    if kind == "file":
        place.write_text("in the way")
    elif kind == "below a file":
        place.write_text("in the way")
        return place / "deeper"
    elif kind == "dead link":
        place.symlink_to(place / "nowhere")
    elif kind == "not absolute":
        return "some/where"
    elif kind == "device":
        return "/dev/null"
    elif kind == "process table":
        return "/proc"
    return place


@pytest.mark.parametrize(
    "kind", ["file", "below a file", "dead link", "not absolute", "device", "process table"]
)
def test_a_cache_folder_that_is_none_costs_time_only(tmp_path, model, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(spoil(kind, tmp_path / "cache")))
    with Store(tmp_path / "store", create=True) as store:
        store.add(model, ref="models/m")
        assert list(store.refs()) == ["models/m"]
        store.get("models/m", tmp_path / "out")
    assert not (tmp_path / "some").exists()
    assert not (tmp_path / "~").exists()


def test_no_database_on_a_network_file_system(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = machine_folder(bytes(16), "s3://x")
    assert state_path(bytes(16), "s3://x") == f"{folder}/state.sqlite"
    for kind in ("nfs4", "cifs", "lustre", "fuse.sshfs", "9p", "ceph", "gpfs", "beegfs"):
        monkeypatch.setattr(SystemCalls, "file_system_type", lambda *_, kind=kind: kind)
        assert state_path(bytes(16), "s3://x") is None
        assert machine_folder(bytes(16), "s3://x") == folder, "copies of segments are plain files"
    for kind in ("ext4", "xfs", "apfs", "fuseblk", "exfat", None):
        monkeypatch.setattr(SystemCalls, "file_system_type", lambda *_, kind=kind: kind)
        assert state_path(bytes(16), "s3://x") is not None
    assert "XDG_CACHE_HOME" in caplog.text


def test_root_keeps_nothing_in_the_folder_of_somebody_else(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache" / "deep"))
    assert state_path(bytes(16), "s3://x") is not None
    real = os.stat
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    class Anns:
        st_uid = 1000

    monkeypatch.setattr(
        os, "stat", lambda path, **options: Anns if path == str(tmp_path) else real(path, **options)
    )
    assert state_path(bytes(16), "s3://x") is None
    assert caplog.text.count("another user") == 1


# ---- the list of remotes


def _garbage(path):
    path.write_bytes(b"\xff\x00{")


def _nested(path):
    path.write_text("[" * 100_000)


def _folder(path):
    path.mkdir()


def _loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize("spoilt", [_garbage, _nested, _folder, _loop])
def test_a_list_of_remotes_that_cannot_be_read_stops_names_only(tmp_path, spoilt):
    path = tmp_path / "remotes.json"
    spoilt(path)
    remotes = Remotes("aa", path=str(path))
    for place in ("s3://bucket/x", "/abs", "./rel", "a/b", "~/x"):
        assert remotes.resolve(place) == place
    for question in (lambda: remotes.resolve("hub"), remotes.list):
        with pytest.raises(ConfigError) as caught:
            question()
        assert str(path) in str(caught.value)
        assert "URL" in str(caught.value)


def test_a_remotes_lock_that_does_not_work(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    remotes = Remotes("aa", path=str(tmp_path / "remotes.json"))
    remotes.add("hub", "memory://x")
    assert json.loads((tmp_path / "remotes.json").read_bytes()) == {"aa": {"hub": "memory://x"}}


# ---- what people type


@pytest.mark.parametrize("how", ["option", "variable", "remote"])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, how):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if how == "variable":
        monkeypatch.setenv("CASSTORE_STORE", "~/x")
        result = CliRunner().invoke(app, ["init"])
    else:
        result = CliRunner().invoke(app, ["init", "--store=~/x"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "x/format").exists()
    if how == "remote":
        assert CliRunner().invoke(app, ["init", "--store=~/y"]).exit_code == 0
        for arguments in (
            ["push", "~/y"],
            ["remote", "add", "hub", "~/y"],
            ["push", "hub"],
            ["sync", "~/x", "~/y"],
        ):
            result = CliRunner().invoke(
                app, [*arguments, *([] if arguments[0] == "sync" else ["--store=~/x"])]
            )
            assert result.exit_code == 0, (arguments, result.output)
    assert not (tmp_path / "~").exists()


def test_a_tilde_in_the_variable_of_the_file_system(tmp_path, monkeypatch, model):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CASSTORE_STORE", "~/x")
    with Store(tmp_path / "x", create=True) as store:
        store.add(model, ref="models/m")
    fs = fsspec.filesystem("cas", skip_instance_cache=True)
    assert fs.cat_file("models/m/model.bin") == model.read_bytes()
    fs.close()


def test_a_tilde_of_nobody(monkeypatch):
    with pytest.raises(ConfigError, match=r"\./~nobody-at-all/x"):
        user_folders.expand_home("~nobody-at-all/x")
    assert user_folders.expand_home("s3://a/~b") == "s3://a/~b"


def test_a_path_given_to_the_library_is_literal(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with Store("~", create=True) as store:
        assert store.backend.url == f"file://{tmp_path}/~"
