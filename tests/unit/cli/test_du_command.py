"""du and stats: what they print, in tables, as JSON and quietly, and their exit codes."""

from __future__ import annotations

import json
import os

import pytest
from fakes.command_line import run
from fakes.stores import noise

from casstore import Store
from casstore.objects.keys import pack_key


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store with two models that share half of each, and a third one that a tag names as well."""
    place = tmp_path / "store"
    monkeypatch.setenv("CASSTORE_STORE", str(place))
    run("init")
    for name, seeds in (("one/a", (1, 2)), ("one/b", (1, 3)), ("two/c", (4, 5))):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for seed in seeds:
            (folder / f"{seed}.bin").write_bytes(noise(seed, 60_000))
        run("add", folder, "--ref", f"models/{name}", "-q")
    run("tag", "best", "models/two/c", "-q")
    return place


def test_a_table_of_refs_and_one_of_everything(place):
    lines = [line.split("\t") for line in run("du")[0].splitlines()]
    rows = [line for line in lines if line[0] != "total"]
    assert [line[4] for line in rows] == [
        "models/one/a",
        "models/one/b",
        "models/two/c",
        "tags/best",
        "all of these",
    ] or [line[4] for line in rows] == [
        "models/one/b",
        "models/one/a",
        "models/two/c",
        "tags/best",
        "all of these",
    ]
    by_name = {line[4]: line for line in rows}
    assert by_name["models/two/c"] == [
        "0 B",
        "0 B",
        *by_name["models/two/c"][2:4],
        "models/two/c",
        "tags/best",
    ]
    assert by_name["tags/best"][5] == "models/two/c"
    assert by_name["models/one/a"][3] == "117.2 KiB"
    totals = {line[1]: line[2] for line in lines if line[0] == "total"}
    assert {"needed by refs", "index", "records", "the whole store"} <= totals.keys()
    assert "temporary files" not in totals, "what is not there is not shown"


def test_json(place):
    found = json.loads(run("du", "--json")[0])
    refs = {row["name"]: row for row in found["refs"]}
    assert refs.keys() == {"models/one/a", "models/one/b", "models/two/c", "tags/best"}
    one = refs["models/one/a"]
    assert one["bytes_shared"] + one["bytes_alone"] == one["bytes_stored"] > 120_000
    assert 60_000 < one["bytes_shared"] < 62_000
    assert one["bytes_logical"] == 120_000
    assert refs["tags/best"]["held_by"] == ["models/two/c"]
    totals = found["totals"]
    files = [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names]
    assert totals.pop("bytes_total") == sum(totals.values()) == sum(map(os.path.getsize, files))
    assert found["together"]["bytes_alone"] == totals["referenced"]


def test_prefixes_and_folders_of_names(place):
    assert run("du", "-q", "models/one")[0].split() == run("du", "-q", "models/one/")[0].split()
    assert sorted(run("du", "-q", "models/one", "tags")[0].split()) == [
        "models/one/a",
        "models/one/b",
        "tags/best",
    ]
    folders = {row["name"]: row for row in json.loads(run("du", "--depth", "2", "--json")[0])["refs"]}
    assert folders.keys() == {"models/one", "models/two", "tags/best"}
    assert folders["models/one"]["refs"] == 2
    assert folders["models/one"]["bytes_shared"] == 0, "only they share it"
    assert folders["models/one"]["bytes_freed"] > 180_000
    together = json.loads(run("du", "models/two", "tags", "--json")[0])["together"]
    assert together["bytes_freed"] > 120_000, "a model goes when its last name does"
    cells = run("du", "--depth", "1", "models")[0].splitlines()[0].split("\t")
    assert cells[4:] == ["3", "models", "tags/best"]
    _, error = run("du", "models/three", code=1)
    assert error == "casstore: No ref starts with 'models/three'. `casstore ls` lists them.\n"
    run("du", "--depth", "0", code=2)


def test_what_is_missing_is_said(place):
    with Store(place) as store:
        record = store.record("models/two/c")
        for pack in store.objects.packs_of(store.objects.find(store.objects_of(record))):
            os.unlink(place / pack_key(pack))
    out, error = run("du", code=1)
    assert "models/two/c needs" in error
    assert "that no pack holds: run casstore check." in error
    assert "models/one/a" in out


def test_stats_say_what_is_left_over_and_what_gc_would_free(place, monkeypatch):
    def row(title):
        lines = [line.split("\t") for line in run("stats")[0].splitlines()]
        return {line[0]: line[1] for line in lines}[title]

    assert row("left over") == "nothing"
    assert row("gc would free") == "about 0 B"
    assert row("needed by no ref") == "0 B"
    run("rm", "models/two/c", "-q")
    run("rm", "tags/best", "-q")
    found = json.loads(run("stats", "--json")[0])
    plan = json.loads(run("gc", "-n", "--json")[0])
    assert found["bytes_to_free"] == plan["bytes_to_free"] > 120_000
    assert found["leftovers"]["packs"] == 1
    assert row("left over").startswith("1 pack that no ref needs")
    assert row("gc would free") != "about 0 B"
    with Store(place) as store:
        record = store.record("models/one/a")
    path = place / record.key
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.parent / "another machine's"))
    out, error = run("stats", code=1)
    assert "gc would free\tnothing, because something is damaged" in out
    assert "models/one/a" in error
