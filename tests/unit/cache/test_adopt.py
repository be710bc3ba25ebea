"""Adopting an Olive cache: what comes over, in which order, what is left out and why, and that the original stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes.model_files import onnx_bytes
from fakes.olive_cache import OliveCache, onnx_file

from casstore import BackendError, ConfigError, Store
from casstore.cache.document import DOCUMENT_NAME
from casstore.cache.olive.adopt import execute_adopt, plan_adopt
from casstore.cache.run_cache import RunCacheManager
from casstore.cache.transfer import ModelFileTransfer
from casstore.format import names
from casstore.format.run import RunStatus
from casstore.ops.check import check
from casstore.ops.lineage import lineage


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as store:
        yield store


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "olive"


@pytest.fixture
def cache(cache_dir):
    """Four passes in a chain, an evaluation of the last and of the input; ids in an order that misleads."""
    cache = OliveCache(cache_dir)
    cache.onnx("cccc0001", "aaaa0000", seed=1)
    cache.external("bbbb0002", "cccc0001", seed=1)
    cache.hf("dddd0003", "bbbb0002", seed=2)
    cache.hf("aaaa0004", "dddd0003", seed=3, adapter=True)
    cache.evaluation("aaaa0004-cpu-cpu", accuracy=0.5)
    cache.evaluation("aaaa0000-cpu-cpu", accuracy=0.25)
    return cache


def adopt(store, place, **options):
    return execute_adopt(store, plan_adopt(place, **options))


def snapshot(folder):
    """Everything that can be seen of a folder, but when it was read."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, data)
    return found


def config_of(store, ref, dest):
    document = ModelFileTransfer(store).download_model(ref, dest)
    return document.located(lambda path: str(dest / path))["config"]


def problems_of(report):
    return {
        os.path.relpath(problem.path, "/").split("olive/default_workflow/")[-1]: problem.message
        for problem in report.problems
    }


def test_models_come_back_with_their_files_and_paths_that_exist(store, cache, cache_dir, tmp_path):
    report = adopt(store, cache_dir)
    assert report.problems == ()
    assert (len(report.models), report.runs, report.evaluations) == (4, 4, 2)
    config = config_of(store, "models/cccc0001", tmp_path / "a")
    assert Path(config["model_path"]).read_bytes() == onnx_file(1)
    config = config_of(store, "models/bbbb0002", tmp_path / "b")
    assert sorted(os.listdir(config["model_path"])) == ["model.onnx", "model.onnx.data"]
    assert config["onnx_file_name"] == "model.onnx"
    config = config_of(store, "models/dddd0003", tmp_path / "c")
    assert sorted(os.listdir(config["model_path"])) == ["config.json", "model.safetensors"]
    assert config["model_attributes"]["_name_or_path"] == config["model_path"]
    config = config_of(store, "models/aaaa0004", tmp_path / "d")
    assert config["model_path"] == "org/base"
    assert os.path.exists(os.path.join(config["adapter_path"], "model.safetensors"))
    assert check(store, read_data=True).ok


def test_no_path_of_this_machine_is_kept(store, cache, cache_dir):
    adopt(store, cache_dir)
    for name in ("cccc0001", "bbbb0002", "dddd0003", "aaaa0004"):
        with store.open_file(f"models/{name}", DOCUMENT_NAME) as file:
            assert str(cache_dir).encode() not in file.read()


def test_lineage_is_that_of_the_runs(store, cache, cache_dir):
    """Ids sort the other way round, so the order must come from run.json."""
    report = adopt(store, cache_dir)
    assert [model.name for model in report.models] == ["cccc0001", "bbbb0002", "dddd0003", "aaaa0004"]
    assert [model.base for model in report.models] == [
        "",
        "models/cccc0001",
        "models/bbbb0002",
        "models/dddd0003",
    ]
    found = lineage(store, "models/aaaa0004")
    assert [node.refs for node in found.ancestors] == [
        ("models/dddd0003",), ("models/bbbb0002",), ("models/cccc0001",),
    ]  # fmt: skip
    assert [(link.run, link.pass_name) for link in sorted(found.links, key=lambda link: link.run)] == [
        ("aaaa0004", "lora"), ("bbbb0002", "onnxconversion"), ("cccc0001", "onnxconversion"), ("dddd0003", "quantise"),
    ]  # fmt: skip
    assert [item.result["signal"]["accuracy"]["value"] for item in found.evaluations] == [0.5]
    assert store.record("models/bbbb0002").base == store.record("models/cccc0001").target


def test_a_run_keeps_what_olive_wrote(store, cache, cache_dir):
    adopt(store, cache_dir)
    run = RunCacheManager(store).load_run("cccc0001")
    assert (run.input, run.input_name, run.key.input) == (None, "aaaa0000", "name:aaaa0000")
    assert (run.key.pass_name, run.recorded["pass_name"]) == ("onnxconversion", "OnnxConversion")
    assert (run.status, run.key.accelerator) == (RunStatus.DONE, "cpu-cpu")
    assert run.recorded["alias"] == "cccc0001"
    second = RunCacheManager(store).load_run("bbbb0002")
    assert second.input == run.output == store.record("models/cccc0001").target
    assert second.key.input == run.output.hex()
    row = RunCacheManager(store).list_runs(alias="bbbb0002")[0]
    assert row.started == os.stat(cache.place / "runs/bbbb0002/run.json").st_mtime_ns


def test_the_original_is_not_touched(store, cache, cache_dir):
    before = snapshot(cache_dir)
    adopt(store, cache_dir)
    plan_adopt(cache.place)
    assert snapshot(cache_dir) == before


def test_a_read_only_original_will_do(store, cache, cache_dir):
    for path in cache_dir.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert adopt(store, cache_dir).problems == ()
    finally:
        for path in [cache_dir, *cache_dir.rglob("*")]:
            path.chmod(0o755)


def test_adopting_again_writes_nothing(store, cache, cache_dir, tmp_path):
    first = adopt(store, cache_dir)
    before = snapshot(tmp_path / "store")
    again = adopt(store, cache_dir)
    assert again.bytes_stored == 0
    assert [model.ref for model in again.models] == [model.ref for model in first.models]
    assert snapshot(tmp_path / "store").keys() == before.keys()


def test_the_bytes_saved_are_those_of_the_files_less_the_growth_of_the_store(
    store, cache, cache_dir, tmp_path
):
    report = adopt(store, cache_dir)
    files = [path for path in cache_dir.rglob("*") if path.is_file() and "models" in path.parts]
    assert report.bytes_total == sum(path.stat().st_size for path in files)
    packs = sum(path.stat().st_size for path in (tmp_path / "store" / "packs").rglob("*") if path.is_file())
    assert report.bytes_stored <= packs
    assert report.bytes_saved == report.bytes_total - report.bytes_stored > 0


def test_a_plan_writes_nothing_and_says_the_same(cache, cache_dir):
    plan = plan_adopt(cache_dir)
    assert [(model.name, model.base) for model in plan.models] == [
        ("cccc0001", "aaaa0000"), ("bbbb0002", "cccc0001"), ("dddd0003", "bbbb0002"), ("aaaa0004", "dddd0003"),
    ]  # fmt: skip
    assert [(item.name, item.of) for item in plan.evaluations] == [
        ("aaaa0000-cpu-cpu", ""), ("aaaa0004-cpu-cpu", "aaaa0004"),
    ]  # fmt: skip


def test_one_workflow_may_be_given_by_its_folder(store, cache, cache_dir):
    OliveCache(cache_dir, "other").onnx("eeee0001", "x")
    report = adopt(store, cache.place)
    assert {model.workflow for model in report.models} == {"default_workflow"}
    assert len(adopt(store, cache_dir).models) == 5


def test_what_is_no_cache_is_refused(tmp_path, cache_dir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="runs"):
        plan_adopt(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"not a folder|does not exist"):
        plan_adopt(tmp_path / "none")


def test_a_cache_that_was_moved_is_read_where_it_is_now(store, cache_dir, tmp_path):
    """Even though the place where it was made is in use by something else."""
    was = tmp_path / "was" / "default_workflow"
    cache = OliveCache(cache_dir, made_in=str(was))
    cache.onnx("aaaa0001", "x", seed=1)
    cache.hf("aaaa0002", "aaaa0001", seed=2)
    decoy = was / "runs" / "aaaa0001" / "models" / "model.onnx"
    decoy.parent.mkdir(parents=True)
    decoy.write_bytes(b"something else")
    report = adopt(store, cache_dir)
    assert report.problems == ()
    config = config_of(store, "models/aaaa0001", tmp_path / "out")
    assert Path(config["model_path"]).read_bytes() == onnx_file(1)
    config = config_of(store, "models/aaaa0002", tmp_path / "other")
    assert config["model_attributes"]["_name_or_path"] == config["model_path"]


@pytest.mark.parametrize(
    "was", ["C:\\Users\\me\\.olive-cache\\default_workflow", ".olive-cache/default_workflow"]
)
def test_paths_of_another_system_and_relative_ones_are_found(store, cache_dir, tmp_path, was):
    cache = OliveCache(cache_dir, made_in=was)
    cache.onnx("aaaa0001", "x", seed=1)
    config = cache.place / "runs/aaaa0001/model.json"
    if "\\" in was:
        config.write_text(config.read_text().replace("/", "\\\\"))
    assert adopt(store, cache_dir).problems == ()
    assert (tmp_path / "x").exists() is False
    assert os.path.exists(config_of(store, "models/aaaa0001", tmp_path / "out")["model_path"])


def test_a_models_own_folder_is_looked_in_first(store, cache_dir, tmp_path):
    """A folder that an older version left has a file of the same name."""
    cache = OliveCache(cache_dir, made_in="/gone")
    cache.onnx("aaaa0001", "x", seed=1)
    older = cache.place / "models" / "model.onnx"
    older.parent.mkdir()
    older.write_bytes(b"something else")
    assert adopt(store, cache_dir).problems == ()
    config = config_of(store, "models/aaaa0001", tmp_path / "out")
    assert Path(config["model_path"]).read_bytes() == onnx_file(1)


def test_a_model_may_use_files_of_another_run(store, cache_dir, tmp_path):
    cache = OliveCache(cache_dir)
    cache.onnx("aaaa0001", "x", seed=1)
    shutil.copytree(cache.place / "runs/aaaa0001", cache.place / "runs/aaaa0002")
    shutil.rmtree(cache.place / "runs/aaaa0002/models")
    cache.run("aaaa0002", "aaaa0001")
    report = adopt(store, cache_dir)
    assert report.problems == ()
    assert report.models[0].model_id == report.models[1].model_id
    assert report.bytes_total == len(onnx_file(1)), "one file, counted once"


def test_composite_models_come_whole(store, cache_dir, tmp_path):
    cache = OliveCache(cache_dir)
    parts = [
        {
            "type": "onnxmodel",
            "config": {"model_path": cache.write("aaaa0001", f"models/{name}/model.onnx", onnx_file(at))},
        }
        for at, name in enumerate(("encoder", "decoder"))
    ]
    extra = cache.write("aaaa0001", "models/tokenizer.json", b"{}")
    cache.model(
        "aaaa0001",
        {
            "type": "compositemodel",
            "config": {
                "model_components": parts,
                "model_component_names": ["encoder", "decoder"],
                "model_attributes": {"additional_files": [extra]},
            },
        },
    )
    cache.run("aaaa0001", "x")
    report = adopt(store, cache_dir)
    assert report.problems == ()
    config = config_of(store, "models/aaaa0001", tmp_path / "out")
    for at, part in enumerate(config["model_components"]):
        assert Path(part["config"]["model_path"]).read_bytes() == onnx_file(at)
    assert Path(config["model_attributes"]["additional_files"][0]).read_bytes() == b"{}"


def test_the_layout_that_older_versions_wrote(store, tmp_path):
    place = tmp_path / "olive" / "default_workflow"
    model = place / "models" / "0_OnnxConversion-abc-123" / "output_model" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(onnx_file(1))
    (place / "runs").mkdir()
    (place / "evaluations").mkdir()
    name, second = "0_OnnxConversion-abc-123", "1_Quantise-0-456-cpu-cpu"
    (place / "models" / f"{name}.json").write_text(
        json.dumps(
            {"type": "ONNXModel", "config": {"model_path": {"type": "file", "config": {"path": str(model)}}}}
        )
    )
    (place / "models" / f"{second}.json").write_text("{}")
    (place / "models" / "abc.json").write_text(
        json.dumps({"type": "HfModel", "config": {"model_path": "org/base"}})
    )
    (place / "runs" / "OnnxConversion-abc-123.json").write_text(
        json.dumps(
            {
                "pass_name": "OnnxConversion",
                "pass_config": {},
                "input_model_id": "abc",
                "output_model_id": name,
                "run_start_time": 1000.5,
                "run_end_time": 1002.0,
            }
        )
    )
    (place / "runs" / "Quantise-0-456-cpu-cpu.json").write_text(
        json.dumps(
            {"pass_name": "Quantise", "pass_config": {}, "input_model_id": name, "output_model_id": second}
        )
    )
    (place / "evaluations" / f"{name}-cpu-cpu.json").write_text('{"metrics": 1}')
    report = adopt(store, place.parent)
    assert report.problems == ()
    assert [model.name for model in report.models] == ["abc", name, second]
    run = RunCacheManager(store).load_run(name)
    assert (run.started, run.duration) == (1_000_500_000_000, 1_500_000_000)
    assert run.input == store.record("models/abc").target
    assert RunCacheManager(store).load_run(second).status is RunStatus.FAILED
    (evaluation,) = RunCacheManager(store).list_evaluations()
    assert evaluation.model == run.output


class TestBroken:
    """One entry is broken in each way; it is told by name, and everything else is adopted."""

    @pytest.fixture
    def cache(self, cache):
        cache.onnx("bad00000", "cccc0001", seed=9)
        cache.onnx("good0000", "bad00000", seed=8)
        return cache

    def expect(self, store, cache_dir, place, *words):
        report = adopt(store, cache_dir)
        ((where, message),) = problems_of(report).items()
        assert where == place
        for word in words:
            assert word in message, message
        assert len(report.models) == 5
        assert "models/bad00000" not in store.refs()
        assert "runs/bad00000" not in store.refs()
        run = RunCacheManager(store).load_run("good0000")
        assert (run.input, run.input_name) == (None, "bad00000")
        assert store.record("models/good0000").base is None

    def test_a_model_file_is_missing(self, store, cache, cache_dir):
        (cache.place / "runs/bad00000/models/model.onnx").unlink()
        self.expect(store, cache_dir, "runs/bad00000/model.json", "model.onnx", "does not exist")

    @pytest.mark.parametrize("name", ["model.json", "run.json"])
    @pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "[" * 100_000, '{"type": "\ud800"}'])
    def test_json_that_is_none(self, store, cache, cache_dir, name, text):
        path = cache.place / "runs/bad00000" / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        self.expect(store, cache_dir, "runs/bad00000/model.json", str(path))

    def test_no_config(self, store, cache, cache_dir):
        (cache.place / "runs/bad00000/model.json").unlink()
        self.expect(store, cache_dir, "runs/bad00000/run.json", "no config")

    def test_a_pass_that_did_not_end(self, store, cache, cache_dir):
        for name in ("model.json", "run.json"):
            (cache.place / "runs/bad00000" / name).unlink()
        self.expect(store, cache_dir, "runs/bad00000", "did not finish")

    def test_a_run_of_another_model(self, store, cache, cache_dir):
        shutil.copy(cache.place / "runs/cccc0001/run.json", cache.place / "runs/bad00000/run.json")
        self.expect(store, cache_dir, "runs/bad00000/model.json", "cccc0001")

    @pytest.mark.parametrize("run", [{}, {"pass_name": 5}, {"pass_name": "x", "pass_config": [1]}])
    def test_a_run_that_is_none(self, store, cache, cache_dir, run):
        (cache.place / "runs/bad00000/run.json").write_text(json.dumps(run))
        self.expect(store, cache_dir, "runs/bad00000/model.json", "is not a run")

    def test_numbers_and_text_that_nothing_can_hold(self, store, cache, cache_dir):
        cache.run("bad00000", "cccc0001", size=10**40)
        self.expect(store, cache_dir, "runs/bad00000/model.json", "cannot be kept")
        cache.run("bad00000", "cccc0001")
        cache.model("bad00000", '{"type": "\\ud800"}')
        self.expect(store, cache_dir, "runs/bad00000/model.json", "cannot be kept")

    def test_a_pipe_where_a_file_should_be(self, store, cache, cache_dir):
        path = cache.place / "runs/bad00000/models/model.onnx"
        path.unlink()
        os.mkfifo(path)
        self.expect(store, cache_dir, "runs/bad00000/model.json", "neither a file nor a folder")

    def test_a_pipe_where_a_config_should_be(self, store, cache, cache_dir):
        path = cache.place / "runs/bad00000/model.json"
        path.unlink()
        os.mkfifo(path)
        self.expect(store, cache_dir, "runs/bad00000/model.json", "is not a file")

    def test_external_data_that_is_missing(self, store, cache, cache_dir):
        cache.external("bad00000", "cccc0001")
        (cache.place / "runs/bad00000/models/model.onnx.data").unlink()
        path = cache.path("bad00000", "models/model.onnx")
        cache.model("bad00000", {"type": "onnxmodel", "config": {"model_path": path}})
        self.expect(store, cache_dir, "runs/bad00000/model.json", "model.onnx.data")

    def test_a_model_that_olive_never_downloaded(self, store, cache, cache_dir):
        cache.model(
            "bad00000", {"type": "onnxmodel", "config": {"model_path": "model.onnx", "shared_cache": True}}
        )
        self.expect(store, cache_dir, "runs/bad00000/model.json", "shared cache only")

    @pytest.mark.parametrize("setting", ["model_path", "adapter_path", "model_script"])
    def test_a_path_out_of_the_cache_is_not_followed(self, store, cache, cache_dir, tmp_path, setting):
        outside = tmp_path / "private"
        outside.mkdir()
        (outside / "key").write_text("secret")
        cache.model(
            "bad00000", {"type": "hfmodel", "config": {"model_path": "org/base", setting: str(outside)}}
        )
        self.expect(store, cache_dir, "runs/bad00000/model.json", str(outside), "is outside this cache")
        assert b"secret" not in b"".join(
            path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()
        )

    def test_links_out_of_the_cache_are_not_followed(self, store, cache, cache_dir, tmp_path):
        (tmp_path / "key").write_text("secret")
        cache.hf("bad00000", "cccc0001")
        (cache.place / "runs/bad00000/models/model/link").symlink_to(tmp_path / "key")
        self.expect(
            store, cache_dir, "runs/bad00000/model.json", str(tmp_path / "key"), "is outside this cache"
        )

    @pytest.mark.parametrize("through_a_link", [True, False])
    def test_a_graph_outside_of_the_cache_is_not_even_opened(
        self, store, cache, cache_dir, tmp_path, through_a_link
    ):
        """Who read it would find that its external data is missing, and say that instead."""
        graph = tmp_path / "model.onnx"
        graph.write_bytes(onnx_bytes({"w": np.zeros((64, 64), "<f4")}, external="gone.data"))
        path = graph
        if through_a_link:
            path = cache.place / "runs/bad00000/models/link.onnx"
            path.symlink_to(graph)
        cache.model("bad00000", {"type": "onnxmodel", "config": {"model_path": str(path)}})
        self.expect(store, cache_dir, "runs/bad00000/model.json", str(graph), "is outside this cache")

    def test_a_config_that_is_a_link_out_of_the_cache_is_not_read(self, store, cache, cache_dir, tmp_path):
        path = cache.place / "runs/bad00000/model.json"
        shutil.move(path, tmp_path / "model.json")
        path.symlink_to(tmp_path / "model.json")
        self.expect(store, cache_dir, "runs/bad00000/model.json", "is outside this cache")

    def test_dots_do_not_lead_out(self, store, cache, cache_dir, tmp_path):
        (tmp_path / "key").write_text("secret")
        path = cache.path("bad00000", "..", "..", "..", "..", "key")
        cache.model("bad00000", {"type": "hfmodel", "config": {"model_path": path}})
        self.expect(store, cache_dir, "runs/bad00000/model.json", "is outside this cache")

    def test_an_evaluation(self, store, cache, cache_dir):
        (cache.place / "runs/bad00000").rename(cache.place / "runs/0bad")
        shutil.rmtree(cache.place / "runs/0bad")
        (cache.place / "evaluations/cccc0001-cpu.json").write_text("{")
        report = adopt(store, cache_dir)
        assert list(problems_of(report)) == ["evaluations/cccc0001-cpu.json"]
        assert report.evaluations == 2

    def test_a_repaired_entry_comes_with_the_next_adopt_and_heals_its_descendants(
        self, store, cache, cache_dir
    ):
        path = cache.place / "runs/bad00000/models/model.onnx"
        data = path.read_bytes()
        path.unlink()
        adopt(store, cache_dir)
        path.write_bytes(data)
        assert adopt(store, cache_dir).problems == ()
        assert store.record("models/good0000").base == store.record("models/bad00000").target
        assert RunCacheManager(store).load_run("good0000").input == store.record("models/bad00000").target


def test_a_folder_outside_may_be_allowed(store, cache_dir, tmp_path):
    cache = OliveCache(cache_dir)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    cache.hf("aaaa0001", "x", adapter=True)
    config = json.loads((cache.place / "runs/aaaa0001/model.json").read_text())
    config["config"]["model_path"] = str(tmp_path / "base")
    cache.model("aaaa0001", config)
    assert len(adopt(store, cache_dir).problems) == 1
    assert adopt(store, cache_dir, allow=[tmp_path / "base"]).problems == ()
    assert (tmp_path / "base").exists()
    found = config_of(store, "models/aaaa0001", tmp_path / "out")
    assert os.listdir(found["model_path"]) == ["config.json"]


def test_folders_that_olive_made_only_to_look_are_nothing(store, cache, cache_dir):
    (cache.place / "runs" / "ffff0000" / "models").mkdir(parents=True)
    (cache.place / "runs" / "ffff0001").mkdir()
    assert adopt(store, cache_dir).problems == ()


def test_a_damaged_record_in_the_store_leaves_out_only_its_own_model(store, cache, cache_dir):
    record = names.record_key("models/dddd0003", seq=1, write_id=bytes(16))
    store.backend.put(record, [b"torn"])
    report = adopt(store, cache_dir)
    assert [model.name for model in report.models] == ["cccc0001", "bbbb0002", "aaaa0004"]
    [problem] = report.problems
    assert "dddd0003" in problem.path
    assert record in problem.message


def test_a_failed_pass_is_a_failed_run(store, cache_dir):
    cache = OliveCache(cache_dir)
    cache.model("aaaa0001", {})
    cache.run("aaaa0001", "x")
    adopt(store, cache_dir)
    assert RunCacheManager(store).load_run("aaaa0001").status is RunStatus.FAILED


def test_a_model_without_a_run_is_adopted_alone(store, cache, cache_dir):
    (cache.place / "runs/aaaa0004/run.json").unlink()
    report = adopt(store, cache_dir)
    assert (len(report.models), report.runs, report.problems) == (4, 3, ())


def test_a_downloaded_model_of_the_shared_cache_is_taken_from_where_olive_put_it(store, cache_dir, tmp_path):
    cache = OliveCache(cache_dir)
    cache.write("aaaa0001", "models/model/model.onnx", onnx_file(1))
    cache.model(
        "aaaa0001", {"type": "onnxmodel", "config": {"model_path": "model.onnx", "shared_cache": True}}
    )
    cache.run("aaaa0001", "x")
    assert adopt(store, cache_dir).problems == ()
    config = config_of(store, "models/aaaa0001", tmp_path / "out")
    assert "shared_cache" not in config
    assert os.path.exists(config["model_path"])


def test_inputs_that_form_a_cycle_end(store, cache_dir):
    cache = OliveCache(cache_dir)
    cache.onnx("aaaa0001", "aaaa0002", seed=1)
    cache.onnx("aaaa0002", "aaaa0001", seed=2)
    cache.onnx("aaaa0003", "aaaa0003", seed=3)
    report = adopt(store, cache_dir)
    assert (len(report.models), report.problems) == (3, ())


def test_one_id_for_two_models_keeps_both(store, tmp_path):
    """Olive's ids ignore content: other workflows and other caches use them again."""
    for number, (folder, workflow) in enumerate([("one", "w"), ("two", "w"), ("three", "v"), ("four", "w")]):
        cache = OliveCache(tmp_path / folder, workflow)
        cache.onnx("aaaa0001", "x", seed=number)
        cache.onnx("aaaa0002", "aaaa0001", seed=10 + number)
        cache.evaluation("aaaa0001-cpu", accuracy=min(number, 1))
    for _ in range(2):
        refs = {}
        for folder in ("one", "two", "three", "four"):
            report = adopt(store, tmp_path / folder)
            refs[folder] = [model.ref for model in report.models]
        assert refs == {
            "one": ["models/aaaa0001", "models/aaaa0002"],
            "two": ["models/aaaa0001.w", "models/aaaa0002.w"],
            "three": ["models/aaaa0001.v", "models/aaaa0002.v"],
            "four": ["models/aaaa0001.w.2", "models/aaaa0002.w.2"],
        }
    for folder, (first, second) in refs.items():
        found = lineage(store, second)
        assert [node.refs for node in found.ancestors] == [(first,)], folder
    assert len(store.find("models/")) == len(store.find("runs/")) == 8
    found = RunCacheManager(store).list_evaluations()
    assert sorted(item.result["signal"]["accuracy"]["value"] for item in found) == [0, 1, 1, 1]
    assert {item.model for item in found} == {
        store.record(f"models/aaaa0001{tail}").target for tail in ("", ".w", ".v", ".w.2")
    }


def test_working_folders_of_casstore_in_the_same_directory_are_no_part_of_it(store, cache, cache_dir):
    own = cache.place / "runs" / ("ab" * 32)
    own.mkdir()
    (own / "model.json").write_text('{"type": "x", "config": {"model_path": "/gone"}}')
    with Store(cache_dir / "store", create=True, durability="none") as inside:
        report = execute_adopt(inside, plan_adopt(cache_dir))
    assert (len(report.models), report.problems) == (4, ())


def test_a_store_that_fails_stops_it(store, cache, cache_dir, monkeypatch):
    """It is not the models that are broken, so none is told to be."""
    plan = plan_adopt(cache_dir)

    def full(*_, **__):
        raise BackendError("no space left")

    monkeypatch.setattr(Store, "add", full)
    with pytest.raises(BackendError, match="no space"):
        execute_adopt(store, plan)


def test_a_file_that_goes_away_meanwhile_is_that_models_problem(store, cache, cache_dir):
    plan = plan_adopt(cache_dir)
    (cache.place / "runs/cccc0001/models/model.onnx").unlink()
    report = execute_adopt(store, plan)
    assert list(problems_of(report)) == ["runs/cccc0001"]
    assert len(report.models) == 3


def test_a_file_that_cannot_be_read_to_its_end_is_that_models_problem(store, cache, cache_dir, monkeypatch):
    plan = plan_adopt(cache_dir)
    bad = str(cache.place / "runs/cccc0001/models/model.onnx")
    add, opener = Store.add, open

    def failing(self, path, **options):
        if bad in path.values():
            raise BackendError(f"{bad} cannot be read: input/output error.")
        return add(self, path, **options)

    def unreadable(path, *arguments, **options):
        if path == bad:
            raise OSError(5, "Input/output error")
        return opener(path, *arguments, **options)

    monkeypatch.setattr(Store, "add", failing)
    monkeypatch.setattr("casstore.cache.olive.adopt.open", unreadable, raising=False)
    report = execute_adopt(store, plan)
    assert list(problems_of(report)) == ["runs/cccc0001"]
    assert len(report.models) == 3
