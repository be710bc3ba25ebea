"""`casstore repair`: says what it would do, does it with --apply, and fails while something stays missing."""

from __future__ import annotations

import json

import pytest
from fakes.command_line import run
from fakes.stores import model_of, noise, read_model, write_model

from casstore import Store

MODELS = {"models/one": model_of(a=noise(1, 90_000)), "models/two": model_of(b=noise(2, 90_000))}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store of which one model is damaged, and a hub that has both."""
    with Store(tmp_path / "store", create=True, durability="none") as store:
        for ref, model in MODELS.items():
            before = set((tmp_path / "store/packs").rglob("*/*"))
            store.add(write_model(model, tmp_path / ref), ref=ref)
        [damaged] = set((tmp_path / "store/packs").rglob("*/*")) - before
        store.push(tmp_path / "hub", create=True)
    damaged.chmod(0o600)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    monkeypatch.setenv("CASSTORE_STORE", str(tmp_path / "store"))
    return tmp_path


def test_from_finding_to_healing(place):
    assert "casstore repair" in run("check", "--read-data", code=1)[0]
    out, _ = run("repair", code=1)
    assert "models/two\tmissing" in out
    assert "models/one" not in out
    assert "1 whole, 1 missing" in out
    out, _ = run("repair", "--from", place / "hub")
    assert "models/two\thealed" in out
    assert "Would quarantine 1 damaged pack" in out
    assert "--apply" in out
    run("remote", "add", "hub", place / "hub")
    assert "from hub (" in run("repair", "models/two")[0]
    out, _ = run("repair", "--apply")
    assert "Done: quarantine 1 damaged pack" in out
    assert "2 refs: 2 whole" in run("repair")[0]
    with Store(place / "store") as store:
        for ref, model in MODELS.items():
            assert read_model(store, ref) == model
    checked = "".join(run("check", "--read-data"))
    assert "nothing is wrong" in checked
    assert "quarantined, and needed by no ref: 1 pack" in checked
    run("gc", "--orphans=now")
    checked = "".join(run("check", "--read-data"))
    assert "nothing is wrong" in checked
    assert "quarantined" not in checked


def test_json(place):
    report = json.loads(run("repair", "--json", "--from", place / "hub")[0])
    assert (report["ok"], report["dry_run"]) == (True, True)
    assert {ref["name"]: ref["health"] for ref in report["refs"]} == {
        "models/one": "whole",
        "models/two": "healed",
    }
    assert len(report["packs"]) == 1
    report = json.loads(run("repair", "two", "--json", code=1)[0])
    assert [(ref["missing"], ref["files"]) for ref in report["refs"]] == [(1, ["b"])]


def test_a_remote_that_cannot_be_asked_is_named(place):
    run("remote", "add", "away", place / "nothing")
    _, error = run("repair", code=1)
    assert "away (" in error
    assert "could not be asked" in error
    assert "There is no directory" in run("repair", "--from", place / "nothing", code=1)[1]


def test_a_record_that_nobody_knows(place, monkeypatch):
    with Store(place / "store") as store:
        key = store.record("models/one").key
    (place / "store" / key).chmod(0o600)
    (place / "store" / key).write_bytes(b"")
    assert "this machine's catalogue, and would be written anew" in run("repair", "one")[0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "another-machine"))
    out, _ = run("repair", "one", code=1)
    assert "models/one\tunreadable" in out
    assert "nobody knows for certain" in out


def test_a_whole_store_needs_nothing(place):
    out, error = run("repair", "--store", place / "hub")
    assert out == "2 refs: 2 whole.\n"
    assert error == ""
    assert run("repair", "--apply", "--store", place / "hub")[0] == out
