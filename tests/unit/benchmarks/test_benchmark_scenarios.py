"""What scenarios measure holds together: parts add up, look-ups find what they must, wrong outputs are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.datasets import CorpusModel
from benchmarks.harness import BenchmarkError, Harness, Options
from benchmarks.scenarios import concurrent, gc, growth, one_more, read_tensor, size
from casstore import Store

CORPUS = "synthetic:4"
PEERS = ("casstore", "copy")


@pytest.fixture
def harness(benchmark_cache):
    made = Harness(Options(peers=(), cache=benchmark_cache))
    yield made
    made.close()


def _of(found, *key):
    """Return samples by metric name, of one (scenario, case, subject)."""
    return {name: value for (*place, name), value in found.items() if place == list(key)}


def test_size_is_divided_without_remainder(smoke, corpus):
    found = smoke.samples("size")
    ours, theirs = (_of(found, "size", CORPUS, peer) for peer in PEERS)
    assert theirs == {"stored share": 1, "stored": corpus.size}
    assert ours["stored share"] == ours["stored"] / corpus.size
    parts = _of(found, "size parts", CORPUS, "casstore")
    overhead = parts.pop("overhead")
    assert parts.pop("plain") == corpus.size == sum(parts.values())
    assert parts["left"] + overhead == ours["stored"]
    assert overhead == sum(_of(found, "size overhead", CORPUS, "casstore").values())
    # All but one block of the second model is that of the first, exponents take few bits, and the third is the first, cast.
    assert parts["saved by dedup"] > 0.15 * corpus.size
    assert parts["saved by planes"] > 0.05 * corpus.size
    assert parts["saved by delta"] > 0.15 * corpus.size
    spare = _of(found, "size overhead", CORPUS, "casstore")["space for a full disk"]
    assert spare == 1 << 20, "of every store, however large"
    assert 0 < overhead - spare < 0.02 * corpus.size


def test_sizes_that_do_not_add_up_are_refused(corpus):
    split = {"plain": 900, "left": 500, "saved": {"planes": 400}, "overhead": {"index": 30}}
    assert {item.metric.name for item in size.measured(corpus, split, 530)} >= {"left", "index"}
    for wrong in ({"left": 499}, {"saved": {"planes": 399, "unknown-9": 1}}, {"overhead": {"index": 31}}):
        with pytest.raises(BenchmarkError, match="do not add up"):
            size.measured(corpus, {**split, **wrong}, 530)


def test_what_models_add_is_the_whole_store_and_their_parts_are_the_whole_model(smoke, corpus):
    found = smoke.samples("deltas")
    names = [model.name for model in corpus.models]
    rows = {name: _of(found, "deltas", CORPUS, name) for name in (*names, "all")}
    assert rows["all"]["plain"] == corpus.size == sum(rows[name]["plain"] for name in names)
    assert rows["all"]["stored"] == sum(rows[name]["stored"] for name in names)
    for row in rows.values():
        assert row["share"] == row["stored"] / row["plain"]
    # Half of it is the first model's, and the other half differs from it in the last digits.
    assert rows["last-block-retrained"]["share"] < 0.4
    for model in names:
        subjects = {key[2] for key in found if key[0] == "deltas parts" and key[2].startswith(model)}
        assert len(subjects) == 1
        parts = _of(found, "deltas parts", CORPUS, *subjects)
        assert sum(parts.values()) == pytest.approx(1)
        assert (parts["delta"] > 0.3) == (model != "base") == ("from base" in str(subjects))


def test_one_more_costs_a_copy_all_of_it_and_casstore_what_is_new(smoke, corpus):
    found = smoke.samples("one-more")
    models = {model.name: model for model in corpus.models}
    for name in ("last-block-retrained", "bf16"):
        ours, theirs = (_of(found, "one-more", f"{CORPUS}, {name}", peer) for peer in PEERS)
        assert theirs["new stored"] == models[name].size / 1e6
        assert 0 < ours["new stored"] < 0.7 * theirs["new stored"]
        assert ours["throughput"] == pytest.approx(models[name].size / 1e6 / ours["time"])
    assert len(found) == 2 * len(PEERS) * len(ours)


def test_what_is_left_after_a_collection_is_nearly_what_the_rest_would_take(smoke, corpus):
    found = smoke.samples("gc")
    ours, theirs = (_of(found, "gc", CORPUS, peer) for peer in PEERS)
    gone = sum(corpus.models[at].size for at in gc.removed_from(corpus))
    assert (theirs["freed"], theirs["over ideal"]) == (gone / 1e6, 0)
    assert ours["freed"] > 0
    assert -1 < ours["over ideal"] < 60, "a pack of which half is needed stays"


def test_one_more_leaves_out_what_was_made_of_the_variant(corpus):
    lineage = {"base": (), "a": ("base",), "b": ("a",), "c": ("base",), "both": ("c", "b")}
    models = tuple(
        CorpusModel(name, next(iter(parents), None), (), parents[1] if parents[1:] else None)
        for name, parents in lineage.items()
    )
    made = replace(corpus, models=models)
    assert one_more.made_from(made, models[1]) == {"a", "b", "both"}
    assert one_more.made_from(made, models[3]) == {"c", "both"}
    assert [model.name for model in one_more.steps(made)] == ["both"]


def test_tensors_read_from_the_store_are_those_of_the_file(smoke, corpus):
    found = smoke.samples("read-tensor")
    chosen = read_tensor.choices(corpus)
    assert all(small.size < large.size for small, large in pairwise(chosen))
    assert len(chosen) == 3
    assert len(found) == len(chosen) * 2 * 4
    plain = [
        value for (*_, subject, name), value in found.items() if (subject, name) == ("plain file", "read")
    ]
    assert np.diff(plain) * 1e6 == pytest.approx(np.diff([choice.size for choice in chosen]))
    stored = [
        value for (*_, subject, name), value in found.items() if (subject, name) == ("casstore", "read")
    ]
    assert stored == sorted(stored)
    # Compressed, but with the description of the model and the rest of the chunks that the tensor begins and ends in.
    assert 0.5 * chosen[-1].size < 1e6 * stored[-1] < 1.5 * chosen[-1].size


def test_tensors_that_differ_are_refused(corpus):
    choice = read_tensor.choices(corpus)[0]
    answer = {"times": [1, 2, 3], "hashes": ["one", "one"], "read": 1}
    seen = set()
    assert read_tensor.sample(answer, choice, seen)[read_tensor.SECOND] == 3000
    with pytest.raises(BenchmarkError, match="not the same bytes"):
        read_tensor.sample({**answer, "hashes": ["other", "other"]}, choice, seen)


def test_refs_are_listed_found_and_added(smoke):
    found = _of(smoke.samples("refs"), "refs", "20", "casstore")
    assert set(found) == {
        "list, first time", "list", "list, filtered", "list, newest 50", "list, as records",
        "memory of list", "find by name", "find by id", "add", "add a run", "read a run", "memory of add",
    }  # fmt: skip
    assert all(value > 0 for name, value in found.items() if not name.startswith("memory"))


def test_growth_finds_what_is_there_and_nothing_else(smoke, tmp_path):
    found = _of(smoke.samples("growth"), "growth", "5000", "casstore")
    assert found["segments"] == 1
    assert 5_000 * 64 < found["index on disk"] * 1e6 < 5_000 * 100
    assert found["find, cold"] > 0

    present = growth.build(str(tmp_path / "store"), 2_000)
    ids = {present[at : at + 64] for at in range(0, len(present), 64)}
    assert len(ids) == 2_000
    half = present[: len(present) // 2]
    assert growth.look_up(str(tmp_path / "store"), half + "00" * 32)["found"] == 1_000


def test_growth_refuses_an_index_that_lost_something(harness, tmp_path):
    present = growth.build(str(tmp_path / "store"), 500)
    with pytest.raises(BenchmarkError, match="500 of 501 present ids"):
        growth.trial(harness, tmp_path / "store", present + "00" * 32)


def test_concurrent_writers_lose_nothing(smoke, corpus):
    found = smoke.samples("concurrent")
    together, alone = (
        _of(found, "concurrent", f"{CORPUS}, 2 writers", subject) for subject in ("casstore", "one writer")
    )
    assert alone["stored twice"] == 0
    assert together["stored twice"] < corpus.models[0].size / 1e6
    assert together["stored"] - together["stored twice"] == pytest.approx(alone["stored"], rel=0.05)
    assert together["throughput"] == pytest.approx(corpus.size / 1e6 / together["time"])


def test_frames_stored_twice_and_damage_are_seen(tmp_path, corpus):
    one, two = tmp_path / "one", tmp_path / "two"
    Store(one, create=True).close()
    shutil.copytree(one, two)
    for path in (one, two):
        with Store(path) as store:
            store.add(corpus.path(corpus.models[0]), ref="models/base")
    assert concurrent.inspect(str(one)) == {"problems": [], "models": 1, "twice": 0}
    shutil.copytree(two / "packs", one / "packs", dirs_exist_ok=True)
    (pack,) = (path for path in (two / "packs").rglob("*") if path.is_file())
    seen = concurrent.inspect(str(one))
    assert (seen["problems"], seen["models"]) == ([], 1)
    assert 0.98 * pack.stat().st_size < seen["twice"] < pack.stat().st_size
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    assert pack.name in concurrent.inspect(str(two))["problems"][0]


def test_a_writer_does_not_wait_for_ever(tmp_path):
    (tmp_path / "gate").mkdir()
    with pytest.raises(BenchmarkError, match="Not all of 2 writers"):
        concurrent.write(
            str(tmp_path / "store"), [], str(tmp_path / "gate"), number=0, writers=2, patience=0.01
        )


def test_page_cache_is_what_the_scenario_asks_for(harness, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    evicted = []
    monkeypatch.setattr("benchmarks.harness._evict", evicted.append)
    harness.settle([path])
    assert evicted == []
    harness.settle([path], page_cache="cold")
    assert evicted == [path]
