"""gc: what it prints, and its exit codes."""

from __future__ import annotations

import json

import pytest
from fakes.command_line import run

import casstore
from casstore.backend.base import LOCKLESS
from casstore.objects.keys import PACK_PREFIX


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store with a model that is needed and one that is not."""
    place = tmp_path / "store"
    monkeypatch.setenv("CASSTORE_STORE", str(place))
    run("init")
    for name, data in (("kept", b"k"), ("gone", b"g")):
        path = tmp_path / name
        path.write_bytes(data * 100_000)
        run("add", path, "--ref", f"models/{name}", "-q")
    run("rm", "models/gone")
    return place


def packs(place):
    with casstore.Store(place, read_only=True) as store:
        return len(list(store.backend.list_keys(PACK_PREFIX)))


def test_a_table_first_and_then_what_it_freed(place):
    out, error = run("gc", "--dry-run")
    what, count, size, why = out.splitlines()[0].split("\t")
    assert (what, count, why) == ("packs", "1", "nothing needs them")
    assert out.splitlines()[1] == f"Would free {size}."
    assert packs(place) == 2
    out, error = run("gc")
    assert out.splitlines()[0].split("\t") == [what, count, size, why]
    assert out.splitlines()[1].startswith(f"Freed {size} in ")
    assert error == ""
    assert packs(place) == 1
    assert run("gc", "-q") == ("", "")
    assert run("get", "models/kept", place.parent / "out", "-q")


def test_json(place):
    plan = json.loads(run("gc", "-n", "--json")[0])
    assert plan["report"] is None
    assert plan["bytes_to_free"] == sum(item["bytes_freed"] for item in plan["plan"]) > 0
    done = json.loads(run("gc", "--json")[0])
    assert done["report"]["bytes_freed"] == plan["bytes_to_free"]
    assert done["report"]["mode"] == "alone"
    assert done["report"]["packs_deleted"] == 1


def test_what_waits_is_said(place):
    (place / "gc").mkdir(exist_ok=True)
    (place / LOCKLESS).write_bytes(b"x")
    out, _ = run("gc", "--orphans=now")
    assert "packs\t1\t0 B" not in out, "a deleted model stays for 7 days where writers may have no lock"
    assert packs(place) == 2


def test_what_is_missing_is_named(place):
    with casstore.Store(place) as store:
        for key in list(store.backend.list_keys(PACK_PREFIX)):
            store.backend.delete(key)
    out, error = run("gc", code=1)
    assert "models/kept needs" in error
    assert out.startswith("Freed 0 B")


@pytest.mark.parametrize("age", ["30", "d", "3y", "-1d", "x"])
def test_ages_that_make_no_sense(place, age):
    _, error = run("gc", f"--older-than={age}", code=1 if age == "-1d" else 2)
    assert "age" in error


def test_refs_by_age(place):
    out, _ = run("gc", "--older-than", "30d", "-n")
    assert "refs" not in out
    assert run("gc", "--older-than", "0h")[0].splitlines()[0].startswith("refs\t1\t")
    assert run("ls", "-q")[0] == ""
    assert packs(place) == 1, "the next collection frees it, and until then undelete works"
    assert run("undelete", "models/kept")[0].startswith("models/kept is back, model ")
    run("get", "models/kept", place.parent / "again", "-q")
    out, _ = run("gc", "--older-than", "0h", "-v")
    assert out.splitlines()[1] == "models/kept\tolder than 0 hours"
    assert "; 1 ref was deleted" in out
    run("gc")
    assert packs(place) == 0
    assert "gc has freed" in run("undelete", "models/kept", code=1)[1]
    assert "Invalid value for '--orphans'" in run("gc", "--orphans", "never", code=2)[1]
