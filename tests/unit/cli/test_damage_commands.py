"""Commands over a whole store beside one damaged thing: the rest is printed, the culprit named, the exit code 1."""

from __future__ import annotations

import json
import shutil

import pytest
from fakes.command_line import run

from casstore import Store
from casstore.cache.run_cache import RunCacheManager

BAD = "models/bad"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store with a few models, of which the newest record of one is torn, and a catalogue that never saw it."""
    place = tmp_path / "store"
    model = tmp_path / "model.bin"
    with Store(place, create=True, durability="none") as store:
        for name in ("one", "two", "bad"):
            model.write_bytes(name.encode() * 30_000)
            store.add(model, ref=f"models/{name}")
        RunCacheManager(store).cache_evaluation("fine", {"accuracy": 1.0})
        store.add(model, ref=BAD, metadata={"n": 2})
        key = store.record(BAD).key
    (place / key).chmod(0o600)
    (place / key).write_bytes((place / key).read_bytes()[:50])
    monkeypatch.setenv("CASSTORE_STORE", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cold"))
    return place


@pytest.mark.parametrize(
    "command", [["ls"], ["ls", "-q"], ["ls", "--json"], ["log"], ["log", "--graph"], ["stats"]]
)
def test_listings_print_the_rest_and_name_the_culprit(place, command):
    for _ in range(2):  # with a cold catalogue and a warm one
        out, error = run(*command, code=1)
        assert out
        assert BAD not in out
        assert error.count("\n") == 1
        assert f"casstore: {BAD}: The newest record of {BAD} cannot be read" in error
        assert f"casstore rm {BAD}" in error
    if command[0] == "ls":
        assert "models/one" in out
        assert "models/two" in out


def test_what_it_does_not_concern_succeeds(place, tmp_path):
    assert run("ls", "models/o", "-q") == ("models/one\n", "")
    assert run("ls", "evaluations/", "-q")[0] == "evaluations/fine\n"
    run("get", "models/one", tmp_path / "out", "-q")
    run("add", tmp_path / "model.bin", "--ref", "models/three", "-q")
    run("tag", "best", "models/two")
    run("runs")
    with Store(place) as store:
        short = store.record("models/one").target.hex()[:12]
    run("get", short, tmp_path / "out2", "-q")
    run("rm", "models/two", "-q")


def test_get_of_the_culprit_says_what_to_do(place, tmp_path):
    out, error = run("get", BAD, tmp_path / "out", code=1)
    assert out == ""
    assert f"casstore rm {BAD}" in error
    assert not (tmp_path / "out").exists()


def test_the_culprit_can_be_deleted(place):
    assert BAD in run("rm", BAD, "--dry-run")[0]
    run("ls", code=1)
    out, _ = run("rm", BAD)
    assert out.startswith(f"Deleted {BAD}, of which the newest record could not be read.")
    assert BAD not in run("ls", "-q")[0]
    run("rm", BAD, code=1)


def test_the_culprit_can_be_written_again(place, tmp_path):
    run("add", tmp_path / "model.bin", "--ref", BAD, "-q")
    assert BAD in run("ls", "-q")[0]
    run("get", BAD, tmp_path / "out", "-q")


def test_push_and_pull_do_the_rest(place, tmp_path):
    there = tmp_path / "there"
    run("init", "--store", there)
    for _ in range(2):
        out, error = run("push", there, "--json", code=1)
        assert f"{BAD} was left out: " in error
        assert [item["name"] for item in json.loads(out)["damaged"]] == [BAD]
        assert set(run("ls", "-q", "--store", there)[0].split()) == {
            "models/one",
            "models/two",
            "evaluations/fine",
        }
    assert BAD in run("push", there, "--dry-run", code=1)[1]
    run("push", there, "models/one")
    run("push", there, BAD, code=1)
    own = tmp_path / "own"
    run("init", "--store", own)
    assert BAD in run("pull", place, "--store", own, code=1)[1]
    assert set(run("ls", "-q", "--store", own)[0].split()) == {"models/one", "models/two", "evaluations/fine"}


def test_stats_of_a_model_whose_description_is_gone(tmp_path):
    place = tmp_path / "store"
    (tmp_path / "model.bin").write_bytes(b"x" * 30_000)
    with Store(place, create=True, durability="none") as store:
        store.add(tmp_path / "model.bin", ref="models/one")
        packs = set((place / "packs").rglob("*/*"))
        (tmp_path / "model.bin").write_bytes(b"y" * 30_000)
        store.add(tmp_path / "model.bin", ref="models/two")
    [pack] = set((place / "packs").rglob("*/*")) - packs
    pack.unlink()
    out, error = run("stats", "--json", "--store", place, code=1)
    found = json.loads(out)
    assert (found["refs"], found["models"], found["bytes_logical"]) == (2, 1, 30_000)
    assert error.startswith("casstore: models/two: ")


def test_a_damaged_evaluation_hides_no_lineage(tmp_path):
    place = tmp_path / "store"
    (tmp_path / "model.bin").write_bytes(b"x" * 30_000)
    with Store(place, create=True, durability="none") as store:
        added = store.add(tmp_path / "model.bin", ref="models/one")
        runs = RunCacheManager(store)
        for name in ("a", "b"):
            runs.cache_evaluation(name, {"accuracy": 1.0}, model=bytes.fromhex(added.model_id))
        record = store.record("evaluations/a")
        lying = store._refs.draft(
            "evaluations/a", target=record.target, inline=b"other", metadata=record.metadata
        )
        store._refs.put(lying)
    out, error = run("show", "models/one", "--store", place)
    assert "evaluations/b" in out
    assert "evaluations/a" in error


FOREIGN = [
    "desktop.ini", "refs/desktop.ini", "refs/models/x.orig", "refs/models/00/x.bak", "refs/Folder/x", "gc/desktop.ini",
    "gc/tombstones/desktop.ini", "quarantine/desktop.ini", "refs/models/NOTES.TXT",
]  # fmt: skip


def test_foreign_files_are_reported_by_check_and_otherwise_ignored(tmp_path):
    place, there = tmp_path / "store", tmp_path / "there"
    (tmp_path / "model.bin").write_bytes(b"x" * 30_000)
    run("init", "--store", there)
    run("init", "--store", place)
    run("add", tmp_path / "model.bin", "--ref", "models/one", "--store", place)
    for key in FOREIGN:
        (place / key).parent.mkdir(exist_ok=True, parents=True)
        (place / key).write_bytes(b"[.ShellClassInfo]")
    [record] = (place / "refs/models").glob("??/one@*")
    shutil.copy(record, f"{record}.orig")
    assert run("ls", "-q", "--store", place) == ("models/one\n", "")
    for command in (
        ["add", tmp_path / "model.bin", "--ref", "models/two", "-q"],
        ["get", "models/one", tmp_path / "out", "-q"],
        ["push", there, "-q"],
        ["tag", "best", "models/one"],
        ["rm", "models/two", "-q"],
        ["stats", "-q"],
        ["log", "-q"],
    ):
        assert run(*command, "--store", place)[1] == ""
    out, _ = run("check", "--store", place)
    assert {line.split("\t")[0] for line in out.splitlines()[:-1]} >= {
        "refs/Folder/" if key.startswith("refs/Folder") else key for key in FOREIGN
    }
    assert f"{len(FOREIGN) + 1} files are not casstore's" in out
