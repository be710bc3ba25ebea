"""push, pull, sync and remote: what they print, and their exit codes."""

from __future__ import annotations

import pytest
from fakes.command_line import run, run_json

import casstore

HEX = 64


def add(place, tmp_path, name, data):
    path = tmp_path / f"{place.name}-{name}.bin"
    path.write_bytes(data)
    run("add", path, "--ref", f"models/{name}", "--store", place, "-q")


def names(place):
    return run("ls", "-q", "--store", place)[0].split()


@pytest.fixture
def places(tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        run("init", "--store", place)
    add(places[0], tmp_path, "one", b"1" * 100_000)
    add(places[0], tmp_path, "two", b"2" * 50_000)
    return places


def test_push_and_pull(places, tmp_path):
    a, b = places
    out, error = run("push", b, "models/one", "--store", a)
    assert out.startswith(f"Wrote 1 ref to file://{b}: ")
    assert error == ""
    assert names(b) == ["models/one"]
    found = run_json("push", b, "--store", a)
    assert (found["refs"], found["equal"]) == (["models/two"], ["models/one"])
    assert found["dst"] == f"file://{b}"
    assert "2 equal already" in run("push", b, "--store", a)[0]
    add(b, tmp_path, "three", b"3" * 1000)
    assert run("pull", b, "--store", a, "-q")[0] == "models/three\n"
    assert names(a) == names(b)
    assert run("check", "--read-data", "--store", b)


def test_push_makes_a_store_only_if_told_to(places, tmp_path):
    a, there = places[0], tmp_path / "over there"
    assert f"casstore init '{there}'" in run("push", there, "--store", a, code=1)[1]
    there.mkdir()
    assert f"casstore init 'file://{there}'" in run("push", there, "--store", a, code=1)[1]
    assert "--init" in run("push", there, "--init", "--dry-run", "--store", a, code=2)[1]
    assert list(there.iterdir()) == []
    out, error = run("push", there, "--init", "--store", a)
    assert "Wrote 2 refs" in out
    assert error == f"casstore: made a store at file://{there}.\n"
    assert names(there) == names(a)
    out, error = run("push", there, "--init", "--store", a)
    assert "2 equal already" in out
    assert error == ""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("of somebody")
    run("push", tmp_path / "full", "--init", "--store", a, code=1)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_sync_needs_no_store_of_its_own(places):
    a, b = places
    found = run_json("sync", a, b, "models/")
    assert found["refs"] == ["models/one", "models/two"]
    assert names(b) == names(a)


def test_dry_run_shows_and_changes_nothing(places):
    a, b = places
    found = run_json("push", b, "--dry-run", "--store", a)
    assert found["dry_run"] is True
    assert [ref["ref"] for ref in found["refs"]] == ["models/one", "models/two"]
    assert all(len(ref["target"]) == HEX for ref in found["refs"])
    assert found["objects"] >= 8
    assert found["seconds_estimated"] > 0
    out, _ = run("push", b, "-n", "--store", a, "--limit", "1k")
    assert out.splitlines()[0].startswith("models/one\t")
    assert "Would write 2 refs" in out
    assert run("push", b, "-n", "-q", "--store", a)[0].split() == ["models/one", "models/two"]
    assert names(b) == []


def test_conflicts_are_told_and_end_with_one(places, tmp_path):
    a, b = places
    add(b, tmp_path, "one", b"other" * 1000)
    out, error = run("push", b, "--store", a, code=1)
    assert "Wrote 1 ref" in out
    assert error.startswith("casstore: models/one was left alone: ")
    assert "--overwrite" in error
    assert run_json("push", b, "--dry-run", "--store", a, code=1)["conflicts"][0]["name"] == "models/one"
    assert run_json("push", b, "--overwrite", "--store", a)["refs"] == ["models/one"]
    add(b, tmp_path, "one", b"newer" * 1000)
    assert "1 newer there, left alone" in run("push", b, "--store", a)[0]


def test_pull_makes_the_users_own_store_but_no_other(places, tmp_path, own_home):
    a, _ = places
    _, error = run("pull", a, "--dry-run", code=1)
    assert "casstore init" in error
    assert not (own_home / "data" / "casstore").exists()
    out, error = run("pull", a)
    assert f"{own_home}/data/casstore/store" in error
    assert "Wrote 2 refs" in out
    assert run("ls", "-q")[0].split() == ["models/one", "models/two"]
    _, error = run("pull", a, "--store", tmp_path / "none", code=1)
    assert "casstore init" in error
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["push", "pull"])
def test_what_is_not_there_is_one_line(places, tmp_path, command):
    a, b = places
    for arguments, words in (
        ([b, "models/none"], "models/none"),
        (["nowhere"], "casstore remote add"),
        ([tmp_path / "no-store"], "no-store"),
        (["weird://host/x"], "weird"),
        ([a], "both sides"),
    ):
        _, error = run(command, *arguments, "--store", a, code=1)
        assert error.startswith("casstore: ")
        assert words in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize("rate", ["0", "x", "-5", "5X", "nan", "inf", ""])
def test_a_limit_that_is_none_is_a_usage_error(places, rate):
    a, b = places
    _, error = run("push", b, "--store", a, "--limit", rate, code=2)
    assert "--limit" in error


@pytest.mark.parametrize(
    ("text", "rate"),
    [("5M", 5e6), ("500KiB/s", 512_000), ("100", 100), ("1.5g", 1.5e9), ("2 MB/s", 2e6), ("64Ki", 65536)],
)
def test_rates(text, rate):
    assert casstore.cli.support.transfer.bytes_per_second(text) == rate


def test_remotes(places):
    a, b = places
    assert run("remote", "list", "--store", a)[0] == ""
    assert run("remote", "add", "hub", b, "--store", a)[0] == f"hub means {b}.\n"
    assert run("remote", "list", "--store", a)[0] == f"hub\t{b}\n"
    assert run("--store", a, "remote", "list", "-q")[0] == "hub\n"
    assert run_json("remote", "list", "--store", a) == [{"name": "hub", "url": str(b)}]
    assert run_json("remote", "list", "--store", b) == []
    assert "Wrote 2 refs" in run("push", "hub", "--store", a)[0]
    assert "2 equal" in run("sync", a, "hub", "--store", a)[0]
    assert run_json("remote", "remove", "hub", "--store", a) == {
        "name": "hub",
        "url": str(b),
        "removed": True,
    }
    _, error = run("push", "hub", "--store", a, code=1)
    assert "There are no remotes yet" in error


def test_no_secret_reaches_the_settings_or_the_screen(places, own_home):
    a, _ = places
    for url in ("s3://key:secret@bucket/x", "sftp://user@host/x", "https://host/x?token=secret"):
        for arguments in (["remote", "add", "hub", url], ["push", url]):
            out, error = run(*arguments, "--store", a, code=1)
            assert "secret@" not in out + error
            assert "=secret" not in out + error
            assert len(error.splitlines()) == 1
    assert not (own_home / "config" / "casstore" / "remotes.json").exists()


def test_a_remote_wants_a_store(tmp_path):
    _, error = run("remote", "list", "--store", tmp_path / "none", code=1)
    assert "casstore init" in error
