"""log, runs, explain, adopt, and what show says of runs, evaluations and lineage."""

from __future__ import annotations

import itertools
import math
import shutil

import pytest
from fakes.command_line import run, run_json
from fakes.olive_cache import OliveCache

from casstore import Store
from casstore.cache.run_cache import RunCacheManager
from casstore.cli.support.graph import draw
from casstore.digest import digest
from casstore.format.run import RunKey, RunManifest, RunStatus
from casstore.ops.lineage import read_graph


def put_run(
    store, name, pass_name, source, output, *, status=RunStatus.DONE, config=None, started=1, input_name=""
):
    key = RunKey(
        input=source.hex() if source else f"name:{input_name}", pass_name=pass_name, pass_version="",
        config=config or {},
    )  # fmt: skip
    RunCacheManager(store).cache_run(
        RunManifest(
            name=name, key=key, status=status, input=source, output=output, input_name=input_name,
            started=started, duration=2_500_000_000, config=config or {}, recorded={"alias": f"{started:08x}"},
        )
    )  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """A model, converted and quantised in two ways, once without success."""
    place = tmp_path / "store"
    with Store(place, create=True, durability="none") as store:
        ids = {}
        for at, name in enumerate(("input", "converted", "int8", "int4")):
            (tmp_path / name).write_text(name)
            base = {"converted": "models/input"}.get(name, "models/converted" if at else None)
            ids[name] = bytes.fromhex(store.add(tmp_path / name, ref=f"models/{name}", base=base).model_id)
        put_run(store, "converted", "conversion", ids["input"], ids["converted"], started=10**18)
        for at, name in enumerate(("int8", "int4"), start=1):
            put_run(
                store, name, "quantise", ids["converted"], ids[name], config={"bits": name[3:], "mode": "qdq"},
                started=10**18 + at,
            )  # fmt: skip
        put_run(
            store, "int2", "quantise", ids["converted"], None, status=RunStatus.FAILED, config={"bits": "2"},
            started=10**18 + 3,
        )  # fmt: skip
        runs = RunCacheManager(store)
        runs.cache_evaluation(
            "int8-cpu-cpu", {"signal": {"accuracy-top": {"value": 0.875, "priority": 1}}}, model=ids["int8"]
        )
        runs.cache_evaluation(
            "int4-cpu-cpu", {"loss": math.nan, "steps": 3}, model=ids["int4"], evaluator="e"
        )
    return place


class TestLog:
    def test_all_models_and_runs_newest_first(self, place):
        rows = [line.split("\t") for line in run("log", "--store", place)[0].splitlines()]
        assert [row[1] for row in rows] == [
            "models/int4", "models/int8", "models/converted", "models/input", "runs/int2",
        ]  # fmt: skip
        by_name = {row[1]: row for row in rows}
        assert by_name["models/int8"][3:] == [
            "quantise",
            by_name["models/converted"][2],
            "done",
            "2.50 s",
            "1",
        ]
        assert by_name["models/input"][3:] == ["-", "-", "-", "-", "0"]
        assert by_name["runs/int2"][5] == "failed"
        assert run("log", "--store", place, "-q")[0].splitlines() == [row[1] for row in rows]

    def test_of_one_model(self, place):
        names = run("log", "int8", "-q", "--store", place)[0].splitlines()
        assert names == ["models/int8", "models/converted", "models/input"]
        assert run("log", "int8", "-q", "--limit", 1, "--store", place)[0] == "models/int8\n"
        _, error = run("log", "nothing", "--store", place, code=1)
        assert error.startswith("casstore: ")

    def test_of_a_model_whose_pass_failed(self, place, tmp_path):
        """Every pass that failed keeps the same model; only the one that is asked for is told of."""
        with Store(place) as store:
            (tmp_path / "failure").write_text("{}")
            source = store.record("models/int4").target
            for name in ("one-failed", "two-failed"):
                target = store.add(tmp_path / "failure", ref=f"models/{name}").model_id
                put_run(store, name, "prune", source, bytes.fromhex(target), status=RunStatus.FAILED)
        names = run("log", "one-failed", "-q", "--store", place)[0].splitlines()
        assert names == ["models/one-failed", "models/int4", "models/converted", "models/input"]
        lines = run("log", "one-failed", "--graph", "--store", place)[0].splitlines()
        assert lines[-1] == "x runs/one-failed"
        assert [line.split("  ")[0] for line in lines if line.startswith("*")] == [
            "* models/input", "* models/converted", "* models/int4",
        ]  # fmt: skip

    def test_json(self, place):
        found = run_json("log", "int8", "--store", place)
        assert [item["ref"] for item in found] == ["models/int8", "models/converted", "models/input"]
        assert found[0]["links"][0]["run"] == "int8"
        assert found[0]["links"][0]["duration_seconds"] == 2.5
        assert found[0]["evaluations"] == 1
        assert found[2]["links"] == []

    def test_graph(self, place):
        lines = run("log", "--graph", "--store", place)[0].splitlines()
        shown = [line.split("  ")[0] if "models/" in line else line for line in lines]
        assert shown == [
            "* models/input",
            "|   conversion, done, 2.50 s",
            "* models/converted",
            "|\\",
            "| |   quantise, failed, 2.50 s",
            "| x runs/int2",
            "|\\",
            "| |   quantise, done, 2.50 s",
            "| * models/int4",
            "|   quantise, done, 2.50 s",
            "* models/int8",
        ]

    def test_graph_of_one_model_draws_its_ancestry_alone(self, place):
        lines = run("log", "int4", "--graph", "--store", place)[0].splitlines()
        assert [line.split("  ")[0] for line in lines if line.startswith("*")] == [
            "* models/input", "* models/converted", "* models/int4",
        ]  # fmt: skip
        assert "int8" not in "".join(lines)
        found = run_json("log", "int4", "--graph", "--store", place)
        assert [link["run"] for link in found["links"]] == ["converted", "int4"]
        assert {tuple(model["refs"]) for model in found["models"]} == {
            ("models/int4",), ("models/converted",), ("models/input",),
        }  # fmt: skip

    def test_a_graph_marks_what_it_drew_before_and_ends_in_cycles(self, place):
        with Store(place) as store:
            ids = {row.name: row.target for row in store.find("models/")}
            put_run(store, "back", "undo", ids["models/int8"], ids["models/converted"])
            put_run(store, "merge", "merge", ids["models/int4"], ids["models/int8"])
            put_run(store, "same", "peephole", ids["models/int4"], ids["models/int4"])
            put_run(store, "first", "import", None, ids["models/input"], input_name="0a1b2c3d")
        lines = run("log", "--graph", "--store", place)[0].splitlines()
        assert lines[0] == "o 0a1b2c3d (not in the store)"
        assert sum("models/converted" in line for line in lines) == 2
        assert sum("(again)" in line for line in lines) == 2
        assert sum("the same model came out" in line for line in lines) == 1

    def test_a_long_chain_stays_narrow(self):
        """And is deeper than Python calls."""
        ids = [digest(b"%d" % at) for at in range(1200)]
        with Store("memory://long-chain", create=True) as store:
            for at, (one, other) in enumerate(itertools.pairwise(ids)):
                facts = {"input": one.hex(), "output": other.hex(), "status": "done"}
                store._refs.put(store._refs.draft(f"runs/c{at}", target=one, inline=b"", metadata=facts))
            graph = read_graph(store)
        lines = list(draw(graph, graph.links, graph.model_ids()))
        assert len(lines) == 2 * len(ids) - 1
        assert max(map(len, lines)) < 80

    def test_the_branch_with_most_below_it_goes_straight_on(self):
        with Store("memory://comb", create=True) as store:
            for at in range(60):
                for tail in ("a-leaf", str(at + 1), "z-leaf"):
                    output = digest(b"%d" % (at + 1) if tail.isdigit() else f"{at}{tail}".encode())
                    facts = {"input": digest(b"%d" % at).hex(), "output": output.hex(), "status": "done"}
                    name = f"runs/{at}-{tail}"
                    store._refs.put(store._refs.draft(name, target=output, inline=b"", metadata=facts))
            graph = read_graph(store)
        lines = list(draw(graph, graph.links, graph.model_ids()))
        assert {line.index("*") for line in lines if "*" in line} == {0, 2}

    def test_graph_and_limit_exclude_each_other(self, place):
        run("log", "--graph", "--limit", 3, "--store", place, code=2)

    def test_an_empty_store(self, tmp_path):
        run("init", "--store", tmp_path / "new")
        assert run("log", "--store", tmp_path / "new") == ("", "")
        assert run("log", "--graph", "--store", tmp_path / "new") == ("", "")
        assert run_json("log", "--store", tmp_path / "new") == []


class TestRuns:
    def names(self, place, *options):
        return [
            line.removeprefix("runs/")
            for line in run("runs", "-q", *options, "--store", place)[0].splitlines()
        ]

    def test_filters(self, place):
        assert set(self.names(place)) == {"int2", "int4", "int8", "converted"}
        assert set(self.names(place, "--pass", "Quantise")) == {"int2", "int4", "int8"}
        assert self.names(place, "--status", "failed") == ["int2"]
        assert set(self.names(place, "--input", "models/converted", "--status", "done")) == {"int4", "int8"}
        assert self.names(place, "--output", "int8") == ["int8"]
        assert len(self.names(place, "--limit", 2)) == 2
        assert self.names(place, "--input", "ab" * 32) == []
        assert self.names(place, "--output", "unknown") == []

    def test_an_input_that_only_the_pipeline_knows(self, place):
        with Store(place) as store:
            put_run(store, "first", "import", None, None, input_name="0a1b2c3d")
            put_run(store, "second", "import", None, None, input_name="0a1b2c3d", config={"x": 1})
        assert set(self.names(place, "--input", "0a1b2c3d")) == {"first", "second"}
        assert len(self.names(place, "--input", "0a1b2c3d", "--limit", 1)) == 1

    def test_table_and_json(self, place):
        rows = [line.split("\t") for line in run("runs", "--store", place)[0].splitlines()]
        assert {row[1]: row[2:4] for row in rows}["runs/int2"] == ["quantise", "failed"]
        found = {item["run"]: item for item in run_json("runs", "--store", place)}
        assert found["runs/int2"]["output"] is None
        assert len(found["runs/int8"]["input"]) == 64
        assert found["runs/int8"]["started_ns"] == 10**18 + 1

    def test_an_unknown_status_is_a_usage_error(self, place):
        _, error = run("runs", "--status", "lost", "--store", place, code=2)
        assert "'running', 'done', 'failed', 'pruned'" in error


class TestShow:
    def test_a_model_with_ancestors_descendants_and_evaluations(self, place):
        found = run_json("show", "models/converted", "--store", place)
        assert [node["refs"] for node in found["ancestors"]] == [["models/input"]]
        assert {node["refs"][0] for node in found["descendants"]} == {"models/int8", "models/int4"}
        assert {link["run"] for link in found["links"]} == {"converted", "int8", "int4", "int2"}
        results = {item["evaluation"]: item["result"] for item in found["evaluations"]}
        assert results["int8-cpu-cpu"] == {"signal": {"accuracy-top": {"value": 0.875, "priority": 1}}}
        assert results["int4-cpu-cpu/e"] == {"loss": "nan", "steps": 3}, "JSON has no NaN"
        out, _ = run("show", "models/converted", "--store", place)
        rows = [line.split("\t") for line in out.splitlines()]
        assert ["ancestor", "models/input"] in [row[:2] for row in rows]
        assert ["evaluation", "evaluations/int8-cpu-cpu"] in [row[:2] for row in rows]
        assert "accuracy-top=0.875" in out
        assert "loss=nan, steps=3" in out

    def test_a_run_by_its_name_and_by_its_short_id(self, place):
        out, _ = run("show", "runs/int8", "--store", place)
        rows = dict(line.split("\t") for line in out.splitlines())
        assert rows["pass"] == "quantise"
        assert rows["config bits"] == "8"
        found = run_json("show", "runs/int8", "--store", place)
        assert found["config"] == {"bits": "8", "mode": "qdq"}
        assert found["key"]["config"] == found["config"]
        assert len(found["key_id"]) == 64
        with Store(place) as store:
            put_run(store, "aliased", "x", None, None, started=255)
        assert run_json("show", "runs/000000ff", "--store", place)["ref"] == "runs/aliased"

    def test_an_evaluation(self, place):
        found = run_json("show", "evaluations/int4-cpu-cpu/e", "--store", place)
        assert found["result"] == {"loss": "nan", "steps": 3}
        assert found["evaluator"] == "e"
        out, _ = run("show", "evaluations/int8-cpu-cpu", "--store", place)
        assert "accuracy-top=0.875" in out

    @pytest.mark.parametrize("ref", ["runs/none", "evaluations/none", "models/none", "none"])
    def test_what_is_not_there_is_one_line(self, place, ref):
        _, error = run("show", ref, "--store", place, code=1)
        assert error.startswith("casstore: ")
        assert "none" in error
        assert len(error.splitlines()) == 1


class TestExplain:
    def test_names_what_differs(self, place):
        out, _ = run("explain", "int4", "--store", place)
        assert out.splitlines() == [
            "Against runs/int8, the nearest earlier run of quantise:",
            "config.bits\t8\t4",
        ]
        found = run_json("explain", "runs/int4", "--store", place)
        assert found == {
            "run": "runs/int4",
            "pass": "quantise",
            "nearest": "runs/int8",
            "differences": [{"field": "config.bits", "earlier": "8", "now": "4"}],
        }

    def test_the_first_of_its_pass(self, place):
        assert "No earlier run of conversion" in run("explain", "converted", "--store", place)[0]
        assert run_json("explain", "converted", "--store", place)["nearest"] is None

    def test_no_such_run(self, place):
        _, error = run("explain", "none", "--store", place, code=1)
        assert "'none'" in error


@pytest.fixture
def olive(tmp_path):
    cache = OliveCache(tmp_path / "olive")
    cache.onnx("cccc0001", "aaaa0000", seed=1)
    cache.onnx("bbbb0002", "cccc0001", seed=1, pass_name="Peephole")
    cache.evaluation("bbbb0002-cpu-cpu", accuracy=0.5)
    return cache


class TestAdopt:
    def test_says_what_it_did_and_saved(self, place, olive, tmp_path):
        found = run_json("adopt", tmp_path / "olive", "--store", place)
        assert [model["ref"] for model in found["models"]] == ["models/cccc0001", "models/bbbb0002"]
        assert (found["runs"], found["evaluations"], found["problems"]) == (2, 1, [])
        assert found["bytes_saved"] == found["bytes_total"] - found["bytes_stored"] > 0
        out, error = run("adopt", tmp_path / "olive", "--store", place)
        assert "Adopted 2 models, 2 runs and 1 evaluations; 0 left out." in out
        assert "every byte of them already" in out
        assert error == ""
        assert run("adopt", tmp_path / "olive", "--store", place, "-q") == ("", "")
        names = run("log", "bbbb0002", "-q", "--store", place)[0].split()
        assert names == ["models/bbbb0002", "models/cccc0001"]

    def test_dry_run_needs_no_store_and_changes_nothing(self, olive, tmp_path, own_home):
        out, _ = run("adopt", tmp_path / "olive", "--dry-run")
        assert "Would adopt 2 models, 2 runs and 1 evaluations" in out
        found = run_json("adopt", tmp_path / "olive", "-n")
        assert [(model["id"], model["input"]) for model in found["models"]] == [
            ("cccc0001", "aaaa0000"), ("bbbb0002", "cccc0001"),
        ]  # fmt: skip
        assert not (own_home / "data").exists()

    def test_makes_the_users_own_store_as_add_does(self, olive, tmp_path):
        _, error = run("adopt", tmp_path / "olive")
        assert "made your own store" in error
        run("adopt", tmp_path / "olive", "--store", tmp_path / "none", code=1)

    @pytest.mark.parametrize("options", [(), ("--dry-run",)])
    def test_what_is_left_out_is_told_by_name_and_by_the_exit_code(self, place, olive, tmp_path, options):
        path = olive.place / "runs/cccc0001/model.json"
        path.write_text("{")
        out, error = run("adopt", tmp_path / "olive", "--store", place, *options, code=1)
        assert "1 left out" in out
        assert error.startswith(f"casstore: left out {path}: ")
        found = run_json("adopt", tmp_path / "olive", "--store", place, *options, code=1)
        assert [problem["path"] for problem in found["problems"]] == [str(path)]
        assert len(found["models"]) == 1

    def test_allow(self, place, olive, tmp_path):
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "config.json").write_text("{}")
        olive.model("cccc0001", {"type": "hfmodel", "config": {"model_path": str(tmp_path / "base")}})
        run("adopt", tmp_path / "olive", "--store", place, code=1)
        run("adopt", tmp_path / "olive", "--store", place, "--allow", tmp_path / "base")

    def test_no_cache_at_all(self, place, tmp_path):
        (tmp_path / "empty").mkdir()
        _, error = run("adopt", tmp_path / "empty", "--store", place, code=1)
        assert "not an Olive cache" in error


class TestCacheDirectory:
    def test_the_store_of_a_pipelines_cache_is_found_in_it(self, place, tmp_path):
        (tmp_path / "cache").mkdir()
        shutil.move(place, tmp_path / "cache" / "store")
        assert "models/int8" in run("log", "-q", "--store", tmp_path / "cache")[0]
        assert "models/int8" in run("ls", "-q", "--store", tmp_path / "cache")[0]
        run("ls", "--store", tmp_path / "cache" / "store")

    def test_a_store_that_holds_a_folder_of_that_name_stays_itself(self, place):
        shutil.copytree(place, place / "store")
        (place / "refs").rename(place / "store" / "old")
        assert run("ls", "--store", place)[0] == ""

    def test_a_folder_without_one_is_still_refused(self, tmp_path):
        (tmp_path / "cache").mkdir()
        _, error = run("ls", "--store", tmp_path / "cache", code=1)
        assert "casstore init" in error
