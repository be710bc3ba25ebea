"""What a second machine writes and returns is what the first one does, to the byte."""

import json

import pytest
from fakes.machines import INPUT, is_hit, run_pass
from fakes.pipeline_models import composite_config, hf_folder, onnx_config, onnx_file, tree, write

from casstore import CacheConfig

CONFIG = {"z": 1, "a": {"y": [{"d": 1, "c": 2}], "x": None}, "10": 0, "9": 0}


@pytest.fixture
def machines(tmp_path):
    shared = f"file://{tmp_path / 'shared'}"
    caches = [CacheConfig(cache_dir=[str(tmp_path / name), shared]).create_cache() for name in ("one", "two")]
    yield caches
    for cache in caches:
        cache.close()


def make(cache, tmp_path):
    """Do what an engine does, with JSON whose keys are not sorted; return the model's id."""
    model_id = cache.get_output_model_id("p", CONFIG, "input")
    folder = hf_folder(tmp_path / "made")
    attributes = {"zeta": 1, "alpha": {"omega": [1, {"b": 2, "a": 3}]}, "model_type": "bert"}
    model = {
        "type": "HfModel",
        "config": {"task": "t", "model_path": str(folder), "model_attributes": attributes},
    }
    cache.cache_model(model_id, model)
    cache.cache_run("p", CONFIG, "input", model_id, metrics={"loss": 1, "accuracy": 2})
    cache.cache_evaluation(model_id, {"latency": {"value": 1, "priority": 2}, "accuracy": {"b": 1, "a": 2}})
    return model_id


def test_saved_models_are_the_same_bytes(machines, tmp_path):
    one, two = machines
    model_id = make(one, tmp_path)
    saved = []
    for cache in (one, two, two):  # from its files, from the shared cache, from its checkout
        cache.save_model(model_id, tmp_path / "out", overwrite=True)
        saved.append((tmp_path / "out" / "model_config.json").read_bytes())
    (tmp_path / "made").rename(tmp_path / "away")
    one.save_model(model_id, tmp_path / "out", overwrite=True)
    saved.append((tmp_path / "out" / "model_config.json").read_bytes())
    assert len(set(saved)) == 1
    assert list(json.loads(saved[0])["config"]["model_attributes"]) == ["zeta", "alpha", "model_type"]


@pytest.mark.parametrize("input_id", [INPUT, "ab" * 32])
def test_a_hit_on_this_machine_asks_the_shared_cache_nothing(machines, tmp_path, monkeypatch, input_id):
    one, two = machines
    model_id = run_pass(one, input_id=input_id)
    assert run_pass(two, input_id=input_id) == model_id
    asked, ask = [], one._sharing.ask

    def noted(doing, question):
        asked.append(doing)
        return ask(doing, question)

    monkeypatch.setattr(one._sharing, "ask", noted)
    assert one.get_output_model_id("OnnxQuantization", {"bits": 8}, input_id, None) == model_id
    assert is_hit(one, model_id)
    assert asked == []
    # What is not here yet is asked for, since another machine may know the input by content.
    one.get_output_model_id("OnnxQuantization", {"bits": 4}, input_id, None)
    assert asked == [f"look up models/{input_id}"]


def test_additional_files_and_folders_keep_their_names(machines, tmp_path):
    one, two = machines
    prompts = write(tmp_path / "prompts" / "chat.txt").parent
    again = write(tmp_path / "other" / "prompts" / "chat.txt", "other").parent
    tokens = write(tmp_path / "tokens.json")
    part = onnx_config(
        onnx_file(tmp_path / "m.onnx"), model_attributes={"additional_files": [str(again), str(prompts)]}
    )
    whole = composite_config({"part": part})
    whole["config"]["model_attributes"] = {"additional_files": [str(prompts), str(tokens), str(again)]}
    one.cache_model("m", whole)
    saved = []
    for name, cache in (("here", one), ("there", two)):
        cache.save_model("m", tmp_path / "out")
        saved.append(tree(tmp_path / "out"))
        (tmp_path / "out").rename(tmp_path / name)
    assert saved[0] == saved[1]
    assert {"prompts/chat.txt", "tokens.json"} < saved[0].keys()


def test_runs_and_evaluations_have_their_keys_in_the_order_in_which_they_were_written(machines, tmp_path):
    one, two = machines
    model_id = make(one, tmp_path)
    run, evaluation = (
        json.dumps(one.load_run_from_model_id(model_id)),
        json.dumps(one.load_evaluation(model_id)),
    )
    assert list(json.loads(run)["pass_config"]) == list(CONFIG)
    assert list(json.loads(evaluation)) == ["latency", "accuracy"]
    assert json.dumps(two.load_run_from_model_id(model_id)) == run
    assert json.dumps(two.load_evaluation(model_id)) == evaluation
    assert (
        two.get_evaluation_json_path(model_id).read_bytes()
        == one.get_evaluation_json_path(model_id).read_bytes()
    )
    assert list(two.runs.load_run(model_id).metrics) == ["loss", "accuracy"]


def test_a_config_that_is_still_elsewhere_is_in_order(machines, tmp_path):
    one, two = machines
    model_id = make(one, tmp_path)
    found = two.load_model(model_id)
    assert list(found["config"]) == ["task", "model_path", "model_attributes", "shared_cache"]
    assert list(two.download_shared_cache_model(found, model_id)["config"]) == list(found["config"])[:3]


def test_the_order_of_keys_decides_no_id(machines, tmp_path):
    one, two = machines
    config = {"type": "HfModel", "config": {"task": "t", "model_path": str(hf_folder(tmp_path / "made"))}}
    one.cache_model("m", config)
    two.cache_model("m", {"config": dict(reversed(config["config"].items())), "type": "HfModel"})
    assert one.models.record("m").target == two.models.record("m").target
