"""pin, unpin, undelete, init --private, and gc by size and last use: what they print, and their exit codes."""

from __future__ import annotations

import pytest
from fakes.cache_entries import add_entry, bytes_of
from fakes.command_line import run, run_json
from fakes.stores import model_of, noise

import casstore
from casstore.cli.support.sizes import Size


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store with a model of a person, `base`, and two cache entries that were made of it."""
    place = tmp_path / "store"
    monkeypatch.setenv("CASSTORE_STORE", str(place))
    run("init")
    path = tmp_path / "base"
    path.write_bytes(noise(1, 100_000))
    base = run_json("add", path, "--ref", "models/base")["model_id"]
    with casstore.Store(place) as store:
        for number, name in enumerate(("cheap", "dear"), start=2):
            content = model_of(own=noise(number, 100_000))
            add_entry(store, tmp_path / name, name, content, made_of=base, seconds=number**6)
    return place


def size_of(place):
    with casstore.Store(place, read_only=True) as store:
        return bytes_of(store.backend)


def test_pin_and_unpin(place):
    out, _ = run("pin", "cheap", "models/base")
    assert [line.partition(" keeps model ")[0] for line in out.splitlines()] == [
        "tags/pins/models/cheap",
        "tags/pins/models/base",
    ]
    assert run("ls", "tags/pins/", "-q")[0].split() == ["tags/pins/models/base", "tags/pins/models/cheap"]
    (pin,) = run_json("pin", "cheap")
    assert pin["pin"] == "tags/pins/models/cheap"
    assert run("unpin", "-n", "cheap")[0] == "Would delete tags/pins/models/cheap.\n"
    assert run_json("unpin", "cheap", "base") == {
        "pins": ["tags/pins/models/cheap", "tags/pins/models/base"],
        "deleted": True,
    }
    assert "is not pinned" in run("unpin", "cheap", code=1)[1]
    assert "No ref or model named 'none'" in run("pin", "none", code=1)[1]
    run("pin", code=2)


def test_rm_says_what_keeps_the_bytes_and_how_to_take_it_back(place):
    run("pin", "cheap")
    out, _ = run("rm", "models/cheap")
    assert "The pin tags/pins/models/cheap keeps its bytes" in out
    assert "Until the next gc, `casstore undelete models/cheap` brings it back." in out
    out, _ = run("undelete", "models/cheap")
    assert out.startswith("models/cheap is back, model ")
    (row,) = run_json("ls", "models/cheap")
    run("rm", "models/cheap", "-q")
    assert run_json("undelete", "models/cheap") == [{"ref": "models/cheap", "model_id": row["model_id"]}]
    run("rm", "runs/cheap", "-q")
    assert run("undelete", "runs/cheap")[0] == "runs/cheap is back.\n"


def test_undelete_says_why_not(place):
    assert "models/cheap is not deleted" in run("undelete", "models/cheap", code=1)[1]
    assert "No ref or model named 'models/none'" in run("undelete", "models/none", code=1)[1]
    run("rm", "models/cheap", "-q")
    run("gc", "-q")
    assert "gc has freed" in run("undelete", "models/cheap", code=1)[1]


def test_init_private(place, tmp_path):
    assert run_json("init")["private"] is False
    out, _ = run("init", "--private")
    assert out.endswith("already.\nIt is private to this machine.\n")
    assert run_json("init")["private"] is True
    assert run_json("init", tmp_path / "new", "--private")["created"] is True
    assert "not both" in run("init", tmp_path / "other", "--private", "--shared", "group", code=2)[1]


@pytest.mark.parametrize("options", [("--max-size", "1GB"), ("--unused-for", "14d")])
def test_a_shared_store_is_refused_with_what_to_do(place, options):
    _, error = run("gc", *options, code=1)
    assert f"casstore init --private file://{place}" in error
    assert "--older-than" in error
    assert len(error.splitlines()) == 1
    run("init", "--private", f"file://{place}")
    run("gc", *options)


def test_max_size(place):
    run("init", "--private")
    before = size_of(place)
    limit = f"{before - 50_000}B"
    plan = run_json("gc", "--max-size", limit, "-n")
    assert size_of(place) == before
    (ref,) = plan["refs"]
    assert (ref["ref"], ref["freed"]) == ("models/cheap", "now")
    assert ref["why"] == "to fit the size: a recorded run can make it again"
    assert len(ref["model_id"]) == 64
    assert plan["bytes_to_free"] == sum(item["bytes_freed"] for item in plan["plan"]) > 90_000
    assert plan["notes"] == plan["problems"] == []
    out, _ = run("gc", "--max-size", limit, "-n")
    assert out.splitlines()[0].split("\t")[:2] == ["refs", "1"]
    assert "1 ref would be deleted" in out
    assert "models/cheap" not in out
    out, _ = run("gc", "--max-size", limit, "-v")
    assert "models/cheap\tto fit the size" in out
    assert "; 1 ref was deleted" in out
    assert size_of(place) <= before - 50_000
    assert run("ls", "models/", "-q")[0].split() == ["models/base", "models/dear"]


def test_what_cannot_be_reached_is_said_and_is_no_error(place):
    run("init", "--private")
    _, error = run("gc", "--max-size", "1kB")
    assert "cannot be as small as 1000 bytes" in error
    assert len(error.splitlines()) == 1
    done = run_json("gc", "--max-size", "1kB")
    assert len(done["notes"]) == 1
    assert done["report"]["refs_deleted"] == []
    assert run("gc", "--max-size", "1kB", "-q") == ("", "")
    assert run("ls", "models/", "-q")[0].split() == ["models/base"]


def test_unused_for(place):
    run("init", "--private")
    assert "refs" not in run("gc", "--unused-for", "1d", "-n")[0]
    run("pin", "dear", "-q")
    out, _ = run("gc", "--unused-for", "0h", "-v")
    assert "models/base\tnot used for 0 hours" in out
    assert "until the next gc" in out
    assert run("ls", "models/", "-q")[0].split() == ["models/dear"]
    run("undelete", "models/base", "models/cheap")
    run("check", "-q")


@pytest.mark.parametrize("size", ["", "x", "1XB", "-1", "12 parsecs", "1e99"])
def test_sizes_that_make_no_sense(place, size):
    assert "is not a size" in run("gc", f"--max-size={size}", code=2)[1]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), ("17", 17), ("500MB", 500_000_000), ("50GB", 50 * 10**9), ("1TiB", 1 << 40), ("1.5k", 1500),
        ("2 gib", 2 << 30), ("10b", 10),
    ],
)  # fmt: skip
def test_sizes(text, count):
    assert Size().convert(text, None, None) == count
