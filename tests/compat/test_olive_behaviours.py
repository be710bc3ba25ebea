"""What Olive's callers rely on: models, runs, evaluations and paths of one cache on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.machines import INPUT, PASS, is_hit, run_pass
from fakes.pipeline_models import hf_config, hf_folder, onnx_config, onnx_file, tree, write

from casstore.cache.config import CacheConfig
from casstore.cache.olive_cache import OliveCache
from casstore.cache.settings import DEFAULT_WORKFLOW_ID
from casstore.errors import ConfigError, RefNotFound


def read(path):
    return json.loads(Path(path).read_bytes())


# Opening


@pytest.mark.parametrize("clean", [True, False])
def test_clean_cache_empties_the_workflows_folder(tmp_path, clean):
    left = write(tmp_path / "cache" / DEFAULT_WORKFLOW_ID / "runs" / "0_p(･◡･)p.json", "")
    with CacheConfig(cache_dir=tmp_path / "cache", clean_cache=clean).create_cache():
        assert left.exists() != clean
        assert left.parent.is_dir()


def test_clean_cache_forgets_this_workflow_alone(tmp_path):
    config = CacheConfig(cache_dir=tmp_path / "cache")
    with config.create_cache("one") as one, config.create_cache("two") as two:
        kept, gone = run_pass(two, seed=1), run_pass(one, config={"bits": 4})
        one.cache_evaluation(gone, {"latency": 1.0})
    with CacheConfig(cache_dir=tmp_path / "cache", clean_cache=True).create_cache("one") as one:
        assert not is_hit(one, gone)
        assert one.load_evaluation(gone) is None
    with config.create_cache("two") as two:
        assert is_hit(two, kept)


def test_clean_evaluation_cache_forgets_evaluations_alone(machines):
    cache = machines.open()
    model_id = run_pass(cache)
    cache.cache_evaluation(model_id, {"latency": 1.0})
    cache.close()
    cache = machines.open(clean_evaluation_cache=True)
    assert cache.load_evaluation(model_id) is None
    assert not cache.get_evaluation_json_path(model_id).exists()
    assert is_hit(cache, model_id)


def test_the_folders_of_a_cache(cache):
    root = cache.get_cache_dir()
    assert root.name == DEFAULT_WORKFLOW_ID
    assert cache.dirs.cache_dir == root
    for name in ("runs", "evaluations", "resources", "mlflow"):
        assert getattr(cache.dirs, name) == root / name
        assert (root / name).is_dir()
    assert cache.get_resource_cache_path() == root / "resources"
    assert cache.enable_shared_cache is False
    assert root.is_absolute()


@pytest.mark.parametrize(
    "form", [lambda path: CacheConfig(cache_dir=path), lambda path: {"cache_dir": str(path)}]
)
def test_a_cache_may_be_made_from_a_config_or_a_map(tmp_path, form):
    with OliveCache(cache_config=form(tmp_path / "cache")) as cache:
        assert cache.get_cache_dir() == (tmp_path / "cache").resolve()


def test_one_config_may_be_used_as_often_as_one_likes(tmp_path):
    config = CacheConfig(cache_dir=tmp_path / "cache")
    with config.create_cache("w") as one, config.create_cache("w") as two, config.create_cache() as three:
        assert one.get_cache_dir() == two.get_cache_dir() == (tmp_path / "cache" / "w").resolve()
        assert three.get_cache_dir() == (tmp_path / "cache" / DEFAULT_WORKFLOW_ID).resolve()
    assert config == CacheConfig(cache_dir=tmp_path / "cache")


# Runs


@pytest.mark.parametrize(
    ("config", "accelerator", "written"),
    [({"param": "value"}, "GPU", "GPU"), ({}, None, None), ({}, "", None)],
)
def test_what_a_run_consists_of(config, accelerator, written):
    assert OliveCache.get_run_json("SomePass", config, "input", accelerator) == {
        "input_model_id": "input",
        "pass_name": "SomePass",
        "pass_config": config,
        "accelerator_spec": written,
    }


@pytest.mark.parametrize(("config", "accelerator"), [({"param": "value"}, "gpu-cuda"), ({}, None)])
def test_a_run_that_is_cached_is_written_to_its_file(cache, config, accelerator):
    cache.cache_run("SomePass", config, "input", "output", accelerator)
    written = read(cache.get_run_json_path("output"))
    expected = {
        **OliveCache.get_run_json("SomePass", config, "input", accelerator),
        "output_model_id": "output",
    }
    assert written == expected


def test_a_run_comes_back_as_it_was_written(cache):
    model_id = run_pass(cache, config={"bits": 4, "nested": {"a": [1, 2.5, None, True]}})
    run = cache.load_run_from_model_id(model_id)
    assert run == read(cache.get_run_json_path(model_id))
    assert run == {
        "input_model_id": INPUT,
        "pass_name": PASS,
        "pass_config": {"bits": 4, "nested": {"a": [1, 2.5, None, True]}},
        "accelerator_spec": None,
        "output_model_id": model_id,
    }


def test_a_run_that_someone_put_there_by_hand_is_found(cache):
    path = cache.get_run_json_path("model")
    path.write_text(json.dumps({"key": "value"}))
    assert cache.load_run_from_model_id("model") == {"key": "value"}


def test_a_run_that_is_not_there_is_an_empty_one(cache):
    assert cache.load_run_from_model_id("never") == {}
    assert cache.load_run("never") is None


@pytest.mark.parametrize("text", ["invalid json", "", "[1, 2]", "\x00\xff", "null"])
def test_a_run_file_that_cannot_be_read_is_a_miss(cache, text):
    cache.get_run_json_path("model").write_text(text)
    assert cache.load_run_from_model_id("model") == {}


def test_ids_depend_on_everything_that_decides_the_output(cache):
    ids = [
        cache.get_output_model_id("APass", {"a": 1, "b": 2}, INPUT, None),
        cache.get_output_model_id("APass", {"a": 1, "b": 3}, INPUT, None),
        cache.get_output_model_id("BPass", {"a": 1, "b": 2}, INPUT, None),
        cache.get_output_model_id("APass", {"a": 1, "b": 2}, "99999999", None),
        cache.get_output_model_id("APass", {"a": 1, "b": 2}, INPUT, "gpu-cuda"),
        cache.get_output_model_id("APass", {"a": True, "b": 2}, INPUT, None),
        cache.get_output_model_id("APass", {"a": 1.0, "b": 2}, INPUT, None),
        cache.get_output_model_id("APass", {"a": "1", "b": 2}, INPUT, None),
    ]
    assert len(set(ids)) == len(ids)
    # The order of settings, the case of the pass's name and who asks say nothing.
    assert cache.get_output_model_id("apass", {"b": 2, "a": 1}, INPUT) == ids[0]
    assert all(isinstance(model_id, str) for model_id in ids)


# Models


def test_a_model_that_is_cached_is_written_to_its_file(cache):
    config = {"config": {"model_path": "path/to/model"}}
    cache.cache_model("model", config)
    assert read(cache.get_model_json_path("model")) == config
    assert cache.load_model("model") == config


def test_a_model_that_someone_put_there_by_hand_is_found(cache):
    config = {"config": {"model_path": "path/to/model"}}
    cache.get_model_json_path("model").write_text(json.dumps(config))
    assert cache.load_model("model") == config


def test_a_model_put_there_by_hand_is_cached_with_its_files(cache, tmp_path):
    source = onnx_file(tmp_path / "graph.onnx", seed=2)
    data = source.read_bytes()
    cache.get_model_json_path("model").write_text(json.dumps(onnx_config(source)))
    assert cache.load_model("model") == onnx_config(source)
    source.unlink()
    found = cache.load_model("model")
    assert Path(found["config"]["model_path"]).read_bytes() == data


def test_a_model_that_is_not_there_is_none(cache):
    assert cache.load_model("never") is None


def test_a_failed_pass_is_an_empty_model_and_no_miss(cache):
    model_id = cache.get_output_model_id(PASS, {}, INPUT, None)
    cache.cache_model(model_id, {})
    cache.cache_run(PASS, {}, INPUT, model_id, None)
    assert cache.load_model(model_id) == {}
    assert cache.load_run_from_model_id(model_id)["output_model_id"] == model_id


def test_a_hit_needs_the_run_and_the_model(cache):
    model_id = cache.get_output_model_id(PASS, {}, INPUT, None)
    cache.cache_model(model_id, hf_config("hub/name"))
    assert cache.load_run_from_model_id(model_id) == {}
    cache.cache_run(PASS, {}, INPUT, model_id, None)
    assert is_hit(cache, model_id)


def test_the_engine_goes_on_with_the_files_where_the_pass_wrote_them(cache):
    model_id = run_pass(cache)
    folder = cache.get_model_cache_path(model_id)
    assert folder == cache.dirs.runs / model_id / "models"
    assert set(tree(folder)) == {"graph.onnx", "graph.data"}
    assert cache.load_model(model_id) == onnx_config(folder, onnx_file_name="graph.onnx")


def test_a_model_comes_back_after_its_files_are_gone(machines):
    cache = machines.open()
    model_id = run_pass(cache, seed=3)
    folder = cache.get_model_cache_path(model_id)
    before = tree(folder)
    cache.close()
    for name in before:
        (folder / name).unlink()
    cache = machines.open()
    config = cache.load_model(model_id)
    assert tree(Path(config["config"]["model_path"])) == before
    assert config["config"]["onnx_file_name"] == "graph.onnx"
    assert config["type"] == "ONNXModel"


def test_an_input_model_of_the_users_stays_where_it_is(cache, tmp_path):
    folder = hf_folder(tmp_path / "mine")
    cache.cache_model(INPUT, hf_config(folder))
    assert cache.load_model(INPUT)["config"]["model_path"] == str(folder)
    assert set(tree(folder)) == {"config.json", "tokenizer/vocab.txt", "model.safetensors"}


# Evaluations


def test_an_evaluation_that_is_cached_is_in_its_file(cache):
    cache.cache_evaluation("model", {"accuracy": 0.95})
    path = cache.get_evaluation_json_path("model")
    assert path.parent == cache.dirs.evaluations
    assert read(path) == {"accuracy": 0.95}
    assert cache.load_evaluation("model") == {"accuracy": 0.95}


def test_the_engine_names_evaluations_after_model_and_accelerator(cache):
    name = f"{INPUT}-gpu-cuda"
    cache.cache_evaluation(name, {"latency-avg": {"value": 3.5, "priority": 1, "higher_is_better": False}})
    assert read(cache.get_evaluation_json_path(name))["latency-avg"]["value"] == 3.5


def test_the_file_of_an_evaluation_is_there_again_when_it_is_asked_for(cache):
    cache.cache_evaluation("model", {"accuracy": 0.95})
    cache.get_evaluation_json_path("model").unlink()
    assert read(cache.get_evaluation_json_path("model")) == {"accuracy": 0.95}


def test_there_is_no_file_for_an_evaluation_that_is_not_there(cache):
    assert not cache.get_evaluation_json_path("model").exists()
    assert cache.load_evaluation("model") is None


# Paths and configs


def test_paths_of_a_run_are_made(cache):
    assert cache.get_run_path("m") == cache.dirs.runs / "m"
    assert cache.get_run_json_path("m") == cache.dirs.runs / "m" / "run.json"
    assert cache.get_model_json_path("m") == cache.dirs.runs / "m" / "model.json"
    assert cache.get_model_cache_path("m") == cache.dirs.runs / "m" / "models"
    assert (cache.dirs.runs / "m" / "models").is_dir()


def test_the_workflows_config_is_kept(cache):
    cache.cache_olive_config({"engine": {"output_dir": Path("out")}, "passes": {}})
    assert read(cache.get_cache_dir() / "olive_config.json") == {
        "engine": {"output_dir": "out"},
        "passes": {},
    }


def test_nothing_is_prepared_where_nothing_needs_it(cache):
    assert cache.prepare_resources_for_local(None) is None
    config = {"data_dir": "data", "list": [1, {"a": None}]}
    assert cache.prepare_resources_for_local(config) == config
    assert cache.get_local_path(None) is None


class Remote:
    """A resource elsewhere; `fetched` counts its downloads."""

    def __init__(self, name):
        self.name, self.fetched = name, 0

    def is_local_resource_or_string_name(self):
        return False

    def to_json(self):
        return {"type": "azureml_registry_model", "config": {"name": self.name}}

    def get_path(self):
        return f"azureml://{self.name}"

    def save_to_dir(self, folder):
        self.fetched += 1
        return str(write(Path(folder) / self.name, self.name))


def test_resources_are_fetched_once(cache):
    resource, other = Remote("weights.bin"), Remote("other.bin")
    path = cache.get_local_path(resource)
    assert Path(path).read_text() == "weights.bin"
    assert cache.get_resource_cache_path() in Path(path).parents
    assert cache.get_local_path_or_download(resource).get_path() == path
    assert cache.prepare_resources_for_local({"a": [resource], "b": other})["a"] == [path]
    assert (resource.fetched, other.fetched) == (1, 1)
    Path(path).unlink()
    assert cache.get_local_path(resource) == path
    assert resource.fetched == 2


def test_a_resource_that_could_not_be_fetched_whole_is_fetched_again(cache):
    resource = Remote("weights.bin")
    real = resource.save_to_dir

    def breaks(folder):
        write(Path(folder) / "half", "half")
        raise ConnectionError("the network went away")

    resource.save_to_dir = breaks
    with pytest.raises(ConnectionError):
        cache.get_local_path(resource)
    assert list(cache.get_resource_cache_path().iterdir()) == []
    resource.save_to_dir = real
    assert Path(cache.get_local_path(resource)).read_text() == "weights.bin"


# Saving


@pytest.mark.parametrize("folder", [True, False])
def test_save_model_as_the_engine_calls_it(cache, tmp_path, folder):
    source = onnx_file(tmp_path / "made" / "model.onnx", data="model.onnx.data" if folder else None)
    config = onnx_config(source.parent, onnx_file_name="model.onnx") if folder else onnx_config(source)
    cache.get_model_json_path("model").write_text(json.dumps(config))
    saved = cache.save_model(model_id="model", output_dir=tmp_path / "out", overwrite=True)
    out = (tmp_path / "out").resolve()
    if folder:
        assert saved["config"] == {"model_path": str(out), "onnx_file_name": "model.onnx"}
        assert set(tree(out)) == {"model.onnx", "model.onnx.data", "model_config.json"}
    else:
        assert saved["config"] == {"model_path": str(out / "model.onnx")}
        assert set(tree(out)) == {"model.onnx", "model_config.json"}
    assert read(out / "model_config.json") == saved


def test_save_model_under_a_name(cache, tmp_path):
    cache.get_model_json_path("model").write_text(
        json.dumps(onnx_config(onnx_file(tmp_path / "source.onnx")))
    )
    saved = cache.save_model("model", str(tmp_path / "out" / "custom.onnx"), True)
    assert saved["config"]["model_path"] == str((tmp_path / "out" / "custom.onnx").resolve())
    assert set(tree(tmp_path / "out")) == {"custom.onnx", "model_config.json"}


def test_save_model_goes_to_the_current_folder(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model_id = run_pass(cache)
    cache.save_model(model_id)
    assert (tmp_path / "model.onnx").is_file()


def test_a_saved_model_is_the_same_whether_its_files_were_still_there_or_not(machines, tmp_path):
    cache = machines.open()
    first, second = write(tmp_path / "a" / "c.json", "1"), write(tmp_path / "b" / "c.json", "2")
    model_id = run_pass(cache, seed=5, model_attributes={"additional_files": [str(first), str(second)]})
    cache.save_model(model_id, tmp_path / "before")
    for path in (*cache.get_model_cache_path(model_id).iterdir(), first, second):
        path.unlink()
    cache.save_model(model_id, tmp_path / "after")
    before, after = tree(tmp_path / "before"), tree(tmp_path / "after")
    configs = [json.loads(found.pop("model_config.json")) for found in (before, after)]
    assert before == after
    assert json.dumps(configs[0], sort_keys=True).replace("before", "after") == json.dumps(
        configs[1], sort_keys=True
    )


def test_only_files_of_the_cache_are_saved_if_that_is_asked_for(cache, tmp_path):
    mine = onnx_file(tmp_path / "mine.onnx")
    cache.cache_model("input", onnx_config(mine))
    saved = cache.save_model("input", tmp_path / "out", only_cache_files=True)
    assert saved["config"]["model_path"] == str(mine)
    model_id = run_pass(cache)
    saved = cache.save_model(model_id, tmp_path / "other", only_cache_files=True)
    assert saved["config"]["model_path"] == str(tmp_path / "other")


@pytest.mark.parametrize("made", [False, True])
def test_there_is_nothing_to_save_of_a_model_that_is_not_there(cache, tmp_path, made):
    if made:
        cache.cache_model("model", {})
    with pytest.raises(RefNotFound, match="model"):
        cache.save_model("model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_id_that_is_none_is_the_callers_mistake(cache):
    for call in (cache.get_run_path, cache.get_model_json_path, cache.get_model_cache_path, cache.load_model):
        for model_id in ("", "a/b", "..", "a\0b", None):
            with pytest.raises(ConfigError):
                call(model_id)
