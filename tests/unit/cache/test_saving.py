"""save_model: what is written where, what the config says then, and what is never destroyed."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes.model_files import onnx_bytes, onnx_external_bytes
from fakes.pipeline_models import (
    compiled_onnx_file,
    composite_config,
    hf_config,
    hf_folder,
    onnx_config,
    onnx_file,
    set_writable,
    tensors,
    tree,
    write,
)
from onnx import numpy_helper

from casstore.cache.olive import output as output_module
from casstore.cache.olive.output import OutputExists
from casstore.cache.olive.resources import Resources
from casstore.cache.olive.saving import save_model
from casstore.errors import BackendError, ConfigError


@pytest.fixture
def save(tmp_path):
    """Save into tmp_path/out; the config handed over must come back unchanged."""

    def call(config, output="out", *, overwrite=False, only_files_below=None):
        before = copy.deepcopy(config)
        result = save_model(
            config,
            tmp_path / output,
            overwrite=overwrite,
            only_files_below=only_files_below,
            resources=Resources(tmp_path / "resources"),
        )
        assert config == before
        return result

    return call


def settings(result, *component):
    for at in component:
        result = result["config"]["model_components"][at]
    return result["config"]


def text(path):
    return Path(path).read_text()


def weights_of(path):
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(str(path)).graph.initializer}


def assert_weights(path, seed):
    found = weights_of(path)
    assert found.keys() == tensors(seed).keys()
    for name, value in tensors(seed).items():
        np.testing.assert_array_equal(found[name], value)


# One ONNX model


def test_a_single_file_is_called_model_onnx(save, tmp_path):
    source = onnx_file(tmp_path / "made" / "graph.onnx")
    result = save(onnx_config(source))
    assert settings(result) == {"model_path": str(tmp_path / "out" / "model.onnx")}
    assert tree(tmp_path / "out").keys() == {"model.onnx", "model_config.json"}
    assert (tmp_path / "out" / "model.onnx").read_bytes() == source.read_bytes()
    assert json.loads((tmp_path / "out" / "model_config.json").read_bytes()) == result


def test_a_single_file_gets_the_name_that_is_asked_for(save, tmp_path):
    source = onnx_file(tmp_path / "made" / "graph.onnx")
    result = save(onnx_config(source, onnx_file_name=None), "out/deep/custom.onnx")
    assert settings(result)["model_path"] == str(tmp_path / "out" / "deep" / "custom.onnx")
    assert tree(tmp_path / "out").keys() == {"deep/custom.onnx", "deep/model_config.json"}
    assert settings(result)["onnx_file_name"] is None  # as Olive's own cache leaves it


def test_a_folder_whose_name_ends_in_onnx_is_a_folder(save, tmp_path):
    (tmp_path / "out.onnx").mkdir()
    result = save(onnx_config(onnx_file(tmp_path / "graph.onnx")), "out.onnx")
    assert settings(result)["model_path"] == str(tmp_path / "out.onnx" / "model.onnx")


def test_a_folder_whose_name_has_a_dot_is_a_folder(save, tmp_path):
    save(onnx_config(onnx_file(tmp_path / "graph.onnx")), "release-1.5")
    assert tree(tmp_path / "release-1.5").keys() == {"model.onnx", "model_config.json"}


def test_a_single_file_keeps_its_external_data(save, tmp_path):
    source = onnx_file(tmp_path / "made" / "graph.onnx", seed=3, data="graph.bin")
    write(tmp_path / "made" / "unrelated.txt")
    result = save(onnx_config(source))
    assert tree(tmp_path / "out").keys() == {"model.onnx", "graph.bin", "model_config.json"}
    assert_weights(settings(result)["model_path"], 3)


def test_a_single_file_keeps_what_was_compiled_for_it(save, tmp_path):
    source = compiled_onnx_file(
        tmp_path / "made" / "graph.onnx", "graph_qnn.bin", b"\xff\xfe compiled", "absent.bin"
    )
    write(tmp_path / "made" / "graph_qnn.bin", "compiled")
    save(onnx_config(source))
    assert tree(tmp_path / "out").keys() == {"model.onnx", "graph_qnn.bin", "model_config.json"}


@pytest.mark.parametrize(("output", "name"), [("out", "model.onnx"), ("out/best.onnx", "best.onnx")])
def test_a_folder_with_external_data_is_flattened_and_its_graph_renamed(save, tmp_path, output, name):
    folder = tmp_path / "made"
    onnx_file(folder / "optimised.onnx", seed=4, data="weights.bin")
    write(folder / "tokenizer" / "vocab.txt")
    result = save(onnx_config(folder, onnx_file_name="optimised.onnx"), output)
    assert settings(result) == {"model_path": str(tmp_path / "out"), "onnx_file_name": name}
    assert tree(tmp_path / "out").keys() == {name, "weights.bin", "tokenizer/vocab.txt", "model_config.json"}
    assert_weights(tmp_path / "out" / name, 4)


def test_renaming_the_graph_loses_no_other_graph(save, tmp_path):
    onnx_file(tmp_path / "made" / "small.onnx", seed=1)
    onnx_file(tmp_path / "made" / "model.onnx", seed=2)
    result = save(onnx_config(tmp_path / "made", onnx_file_name="small.onnx"))
    assert settings(result)["onnx_file_name"] == "small.onnx"
    assert_weights(tmp_path / "out" / "small.onnx", 1)
    assert_weights(tmp_path / "out" / "model.onnx", 2)
    with pytest.raises(ConfigError, match="would both be saved"):
        save(onnx_config(tmp_path / "made", onnx_file_name="small.onnx"), "other/model.onnx")
    assert not (tmp_path / "other").exists()


def test_a_graph_in_a_subfolder_stays_beside_its_data(save, tmp_path):
    onnx_file(tmp_path / "made" / "graph" / "g.onnx", seed=5, data="g.data")
    result = save(onnx_config(tmp_path / "made", onnx_file_name="graph/g.onnx"))
    assert settings(result)["onnx_file_name"] == "graph/model.onnx"
    assert_weights(tmp_path / "out" / "graph" / "model.onnx", 5)


def test_a_folder_without_a_named_graph_stays_as_it_is(save, tmp_path):
    onnx_file(tmp_path / "made" / "graph.onnx")
    write(tmp_path / "made" / "openvino" / "graph.xml")
    (tmp_path / "made" / "empty").mkdir()
    result = save(onnx_config(tmp_path / "made", onnx_file_name=None))
    assert settings(result) == {"model_path": str(tmp_path / "out")}
    assert tree(tmp_path / "out").keys() == {"graph.onnx", "openvino/graph.xml", "model_config.json"}
    assert (tmp_path / "out" / "empty").is_dir()


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "a/../../secret.onnx"])
def test_a_graph_outside_its_folder_is_refused(save, tmp_path, name):
    onnx_file(tmp_path / "made" / "graph.onnx")
    onnx_file(tmp_path / "secret.onnx")
    for config in (
        onnx_config(tmp_path / "made", onnx_file_name=name),
        composite_config({"a": onnx_config(tmp_path / "made", onnx_file_name=name)}),
    ):
        with pytest.raises(ConfigError, match="path"):
            save(config)
    assert not (tmp_path / "out").exists()


# Other models


def test_a_hugging_face_folder_with_its_adapter(save, tmp_path):
    model, adapter = hf_folder(tmp_path / "bert.v2"), tmp_path / "lora"
    write(adapter / "adapter_config.json", "{}")
    result = save(hf_config(model, adapter_path=str(adapter)))
    out = tmp_path / "out"
    assert settings(result)["model_path"] == str(out / "model")
    assert settings(result)["adapter_path"] == str(out / "adapter")
    assert tree(out / "model") == tree(model)
    assert tree(out / "adapter") == tree(adapter)


def test_links_of_a_hub_snapshot_become_files(save, tmp_path):
    blob = write(tmp_path / "blobs" / "abc", "weights")
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "model.bin").symlink_to(blob)
    save(hf_config(snapshot))
    saved = tmp_path / "out" / "model" / "model.bin"
    assert saved.read_text() == "weights"
    assert not saved.is_symlink()


def test_the_name_of_a_model_on_a_hub_stays(save, tmp_path):
    result = save(hf_config("prajjwal1/bert-tiny", shared_cache=True, adapter_path=None))
    assert settings(result)["model_path"] == "prajjwal1/bert-tiny"
    assert tree(tmp_path / "out").keys() == {"model_config.json"}


def test_a_resource_that_is_fetched_where_it_is_used_stays(save, tmp_path):
    remote = {"type": "azureml_registry_model", "config": {"name": "m", "version": "1"}}
    local = {"type": "local_file", "config": {"path": str(write(tmp_path / "pytorch.pt"))}}
    result = save({"type": "PyTorchModel", "config": {"model_path": remote, "model_script": local}})
    assert settings(result)["model_path"] == remote
    assert settings(result)["model_script"] == str(tmp_path / "out" / "model_script.pt")


def test_a_model_that_is_not_onnx_goes_beside_the_file_that_is_asked_for(save, tmp_path):
    result = save(hf_config(hf_folder(tmp_path / "bert")), "out/model.onnx")
    assert settings(result)["model_path"] == str(tmp_path / "out" / "model")
    assert (tmp_path / "out" / "model" / "config.json").is_file()


def test_a_missing_file_is_named(save, tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.onnx, which does not exist"):
        save(onnx_config(tmp_path / "gone.onnx"))
    source = onnx_file(tmp_path / "graph.onnx", data="weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ConfigError, match=r"weights\.bin"):
        save(onnx_config(source))
    assert not (tmp_path / "out").exists()


# Additional files


def test_additional_files_go_beside_the_model(save, tmp_path):
    source = onnx_file(tmp_path / "made" / "graph.onnx")
    genai = write(tmp_path / "made" / "genai_config.json", "genai")
    folder = tmp_path / "prompts"
    write(folder / "system.txt", "be brief")
    config = onnx_config(source, model_attributes={"additional_files": [str(genai), str(folder)], "kept": 1})
    result = save(config)
    out = tmp_path / "out"
    assert settings(result)["model_attributes"] == {
        "additional_files": [str(out / "genai_config.json"), str(out / "prompts")],
        "kept": 1,
    }
    assert (out / "genai_config.json").read_text() == "genai"
    assert (out / "prompts" / "system.txt").read_text() == "be brief"


def test_additional_files_of_one_name_do_not_meet(save, tmp_path):
    source = onnx_file(tmp_path / "made" / "graph.onnx")
    files = [write(tmp_path / name / "config.json", name) for name in ("a", "b", "c")]
    again = write(tmp_path / "copy" / "config.json", "a")
    config = onnx_config(
        source, model_attributes={"additional_files": [str(file) for file in (*files, again)]}
    )
    saved = settings(save(config))["model_attributes"]["additional_files"]
    assert [text(path) for path in saved] == ["a", "b", "c", "a"]
    assert [os.path.basename(path) for path in saved] == ["config.json"] * 4
    assert saved[3] == saved[0]  # the same bytes are there once
    assert saved[1] == str(tmp_path / "out" / "additional_files" / "0" / "config.json")


def test_an_additional_file_does_not_replace_the_model_or_its_config(save, tmp_path):
    source = onnx_file(tmp_path / "made" / "graph.onnx")
    files = [write(tmp_path / "a" / name, "other") for name in ("model.onnx", "model_config.json")]
    result = save(onnx_config(source, model_attributes={"additional_files": [str(file) for file in files]}))
    assert (tmp_path / "out" / "model.onnx").read_bytes() == source.read_bytes()
    assert json.loads((tmp_path / "out" / "model_config.json").read_bytes()) == result
    assert list(map(text, settings(result)["model_attributes"]["additional_files"])) == ["other"] * 2


def test_an_additional_file_in_the_models_folder_is_written_once(save, tmp_path):
    folder = tmp_path / "made"
    onnx_file(folder / "g.onnx", data="g.data")
    inside = write(folder / "tokenizer" / "vocab.txt")
    config = onnx_config(
        folder, onnx_file_name="g.onnx", model_attributes={"additional_files": [str(inside)]}
    )
    result = save(config)
    expected = tmp_path / "out" / "tokenizer" / "vocab.txt"
    assert settings(result)["model_attributes"]["additional_files"] == [str(expected)]
    assert tree(tmp_path / "out").keys() == {
        "model.onnx",
        "g.data",
        "tokenizer/vocab.txt",
        "model_config.json",
    }


def test_no_other_setting_goes_on_naming_what_was_copied(save, tmp_path):
    model = hf_folder(tmp_path / "checkout" / "files" / "model")
    attributes = {
        "_name_or_path": str(model),
        "vocab": [str(model / "tokenizer" / "vocab.txt")],
        "other": "/nowhere",
    }
    result = save(hf_config(model, model_attributes=attributes))
    out = tmp_path / "out" / "model"
    assert settings(result)["model_attributes"] == {
        "_name_or_path": str(out),
        "vocab": [str(out / "tokenizer" / "vocab.txt")],
        "other": "/nowhere",
    }


# Composite models


def test_components_are_flattened_and_their_data_renamed(save, tmp_path):
    onnx_file(tmp_path / "enc" / "model.onnx", seed=1, data="model.onnx.data")
    onnx_file(tmp_path / "dec" / "model.onnx", seed=2, data="model.onnx.data")
    onnx_file(tmp_path / "post.onnx", seed=3)
    config = composite_config(
        {
            "encoder": onnx_config(tmp_path / "enc", onnx_file_name="model.onnx", shared_cache=True),
            "decoder.onnx": onnx_config(tmp_path / "dec"),
            "post": onnx_config(tmp_path / "post.onnx"),
        },
        shared_cache=True,
        model_attributes={"additional_files": [str(write(tmp_path / "genai.json"))]},
    )
    result = save(config)
    out = tmp_path / "out"
    assert tree(out).keys() == {
        "encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data", "post.onnx", "genai.json",
        "model_config.json",
    }  # fmt: skip
    for at, name in enumerate(("encoder.onnx", "decoder.onnx", "post.onnx")):
        assert settings(result, at) == {"model_path": str(out), "onnx_file_name": name}
        assert_weights(out / name, at + 1)
    assert "shared_cache" not in json.dumps(result)
    assert (out / "post.onnx").read_bytes() == (tmp_path / "post.onnx").read_bytes()


def test_data_that_components_share_is_written_once(save, tmp_path):
    onnx_file(tmp_path / "made" / "prefill.onnx", seed=1, data="shared.data")
    onnx_file(tmp_path / "made" / "step.onnx", seed=1, data="shared.data")
    # A checkout of single files holds the shared data once for each of them.
    onnx_file(tmp_path / "copy" / "third.onnx", seed=1, data="shared.data")
    onnx_file(tmp_path / "other" / "fourth.onnx", seed=2, data="shared.data")
    result = save(
        composite_config(
            {
                "prefill": onnx_config(tmp_path / "made", onnx_file_name="prefill.onnx"),
                "step": onnx_config(tmp_path / "made" / "step.onnx"),
                "third": onnx_config(tmp_path / "copy" / "third.onnx"),
                "fourth": onnx_config(tmp_path / "other" / "fourth.onnx"),
            }
        )
    )
    out = tmp_path / "out"
    assert {name for name in tree(out) if ".data" in name} == {"prefill.onnx.data", "fourth.onnx.data"}
    for at, (name, seed) in enumerate({"prefill": 1, "step": 1, "third": 1, "fourth": 2}.items()):
        assert settings(result, at)["onnx_file_name"] == f"{name}.onnx"
        assert_weights(out / f"{name}.onnx", seed)


def test_a_graph_may_keep_tensors_in_several_files_and_deep_inside(save, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()

    def outer(name, seed, location):
        values = tensors(seed, names=(name,))
        write(folder / location, onnx_external_bytes(values))
        tensor = onnx.load_from_string(onnx_bytes(values, external=location)).graph.initializer[0]
        return onnx.TensorProto.FromString(tensor.SerializeToString())

    inner = onnx.helper.make_graph([], "inner", [], [], [outer("deep", 3, "deep.bin")])
    nodes = [
        onnx.helper.make_node(
            "If", ["c"], ["y"], then_branch=inner, else_branch=onnx.GraphProto(name="empty")
        ),
        onnx.helper.make_node("Constant", [], ["k"], value=outer("constant", 4, "sub/constant.bin")),
    ]
    function = onnx.helper.make_function(
        "local",
        "f",
        [],
        ["o"],
        [onnx.helper.make_node("Constant", [], ["o"], value=outer("fn", 5, "fn.bin"))],
        [],
    )
    graph = onnx.helper.make_graph(
        nodes, "g", [], [], [outer("one", 1, "one.bin"), outer("two", 2, "two.bin")]
    )
    onnx.save_model(onnx.helper.make_model(graph, functions=[function]), str(folder / "g.onnx"))
    save(composite_config({"part": onnx_config(folder)}))
    out = tmp_path / "out"
    names = {"part.onnx.data", *(f"part.onnx.data.{number}" for number in range(1, 5))}
    assert tree(out).keys() == {"part.onnx", "model_config.json", *names}
    saved = onnx.load(str(out / "part.onnx"), load_external_data=False)
    locations = {}
    for name, tensor in {
        "one": saved.graph.initializer[0],
        "two": saved.graph.initializer[1],
        "deep": saved.graph.node[0].attribute[1].g.initializer[0],
        "constant": saved.graph.node[1].attribute[0].t,
        "fn": saved.functions[0].node[0].attribute[0].t,
    }.items():
        locations[name] = {entry.key: entry.value for entry in tensor.external_data}["location"]
    assert set(locations.values()) == names
    for seed, name in enumerate(("one", "two", "deep", "constant", "fn"), start=1):
        assert (out / locations[name]).read_bytes() == onnx_external_bytes(tensors(seed, names=(name,)))


def test_what_was_compiled_for_components_comes_along_once(save, tmp_path):
    write(tmp_path / "made" / "ctx.bin", "compiled")
    one = compiled_onnx_file(tmp_path / "made" / "a.onnx", "ctx.bin")
    two = compiled_onnx_file(tmp_path / "made" / "b.onnx", "ctx.bin")
    save(composite_config({"one": onnx_config(one), "two": onnx_config(two)}))
    assert tree(tmp_path / "out").keys() == {"one.onnx", "two.onnx", "ctx.bin", "model_config.json"}
    write(tmp_path / "other" / "ctx.bin", "other")
    three = compiled_onnx_file(tmp_path / "other" / "c.onnx", "ctx.bin")
    with pytest.raises(ConfigError, match="would both be saved"):
        save(composite_config({"one": onnx_config(one), "three": onnx_config(three)}), "again")


def test_files_that_a_component_names_beside_its_graph_come_along(save, tmp_path):
    onnx_file(tmp_path / "made" / "g.onnx")
    write(tmp_path / "made" / "adapter.npz", "initialisers")
    component = onnx_config(
        tmp_path / "made", onnx_file_name="g.onnx", external_initializers_file_name="adapter.npz"
    )
    result = save(composite_config({"part": component}))
    name = settings(result, 0)["external_initializers_file_name"]
    assert (tmp_path / "out" / name).read_text() == "initialisers"


def test_components_that_are_not_onnx_get_their_names(save, tmp_path):
    inner = composite_config({"deep": onnx_config(onnx_file(tmp_path / "deep.onnx", seed=9))})
    script = {"type": "PyTorchModel", "config": {"model_path": str(write(tmp_path / "whisper.v2.pt"))}}
    components = {"text": hf_config(hf_folder(tmp_path / "bert")), "audio": script, "nested": inner}
    result = save(composite_config(components))
    out = tmp_path / "out"
    assert settings(result, 0)["model_path"] == str(out / "text_model")
    assert settings(result, 1)["model_path"] == str(out / "audio_model.pt")
    assert settings(result, 2, 0) == {"model_path": str(out), "onnx_file_name": "nested_deep.onnx"}
    assert_weights(out / "nested_deep.onnx", 9)


def test_components_additional_files_come_along(save, tmp_path):
    files = {name: write(tmp_path / name / "config.json", name) for name in ("one", "two")}
    components = {
        name: onnx_config(
            onnx_file(tmp_path / name / "g.onnx"), model_attributes={"additional_files": [str(file)]}
        )
        for name, file in files.items()
    }
    result = save(composite_config(components))
    for at, name in enumerate(files):
        (saved,) = settings(result, at)["model_attributes"]["additional_files"]
        assert text(saved) == name


@pytest.mark.parametrize("name", ["../up", "a/b", "", "a\0", "/abs"])
def test_a_component_cannot_leave_the_folder_by_its_name(save, tmp_path, name):
    with pytest.raises(ConfigError):
        save(composite_config({name: onnx_config(onnx_file(tmp_path / "g.onnx"))}))
    assert not (tmp_path / "out").exists()


def test_components_and_names_must_go_together(save, tmp_path):
    config = composite_config({"a": onnx_config(onnx_file(tmp_path / "g.onnx"))})
    config["config"]["model_component_names"].append("b")
    with pytest.raises(ConfigError, match="names 2 components and has 1"):
        save(config)
    with pytest.raises(ConfigError, match="would both be saved"):
        save(
            composite_config(
                {
                    "a": onnx_config(tmp_path / "g.onnx"),
                    "a.onnx": onnx_config(onnx_file(tmp_path / "h.onnx", seed=1)),
                }
            )
        )


def test_several_graphs_in_a_components_folder_must_be_told_apart(save, tmp_path):
    onnx_file(tmp_path / "made" / "a.onnx")
    onnx_file(tmp_path / "made" / "b.onnx")
    with pytest.raises(ConfigError, match="onnx_file_name"):
        save(composite_config({"part": onnx_config(tmp_path / "made")}))


def test_renaming_data_needs_the_extra_and_says_so_before_anything_is_written(save, tmp_path, monkeypatch):
    onnx_file(tmp_path / "made" / "g.onnx", data="g.data")
    plain = onnx_config(onnx_file(tmp_path / "plain.onnx"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"casstore\[onnx\]"):
        save(composite_config({"part": onnx_config(tmp_path / "made")}))
    assert not (tmp_path / "out").exists()
    save(composite_config({"part": plain}))
    save(onnx_config(tmp_path / "made", onnx_file_name="g.onnx"), "single")


def test_a_package_keeps_its_folders(save, tmp_path):
    root = tmp_path / "package"
    onnx_file(root / "encoder" / "model.onnx", seed=1, data="model.onnx.data")
    onnx_file(root / "decoder" / "model.onnx", seed=2, data="model.onnx.data")
    genai = write(root / "genai_config.json", "genai")
    outside = write(tmp_path / "elsewhere" / "chat.jinja", "template")
    result = save(
        composite_config(
            {
                "encoder": onnx_config(root / "encoder", onnx_file_name="model.onnx"),
                "decoder": onnx_config(
                    root / "decoder" / "model.onnx", model_attributes={"additional_files": [str(outside)]}
                ),
                "whole": {"type": "ONNXModel", "config": {}},
            },
            model_path=str(root),
            model_attributes={"no_flatten": True, "additional_files": [str(genai)]},
        )
    )
    out = tmp_path / "out"
    assert settings(result)["model_path"] == str(out)
    assert settings(result)["model_attributes"]["additional_files"] == [str(out / "genai_config.json")]
    assert settings(result, 0) == {"model_path": str(out / "encoder"), "onnx_file_name": "model.onnx"}
    assert settings(result, 1)["model_path"] == str(out / "decoder" / "model.onnx")
    chat = out / "decoder" / "chat.jinja"
    assert settings(result, 1)["model_attributes"]["additional_files"] == [str(chat)]
    assert settings(result, 2)["model_path"] == str(out)
    assert {**tree(root), "decoder/chat.jinja": b"template"} == {
        name: data for name, data in tree(out).items() if name != "model_config.json"
    }


def test_a_package_takes_in_what_lies_outside_its_folder(save, tmp_path):
    root = tmp_path / "package"
    onnx_file(root / "encoder" / "g.onnx")
    onnx_file(tmp_path / "away" / "g.onnx", seed=2, data="g.data")
    hf_folder(tmp_path / "text")
    result = save(
        composite_config(
            {
                "encoder": onnx_config(root / "encoder", onnx_file_name="g.onnx"),
                "decoder": onnx_config(tmp_path / "away" / "g.onnx"),
                "text": hf_config(tmp_path / "text"),
            },
            model_path=str(root),
            model_attributes={"no_flatten": True},
        )
    )
    out = tmp_path / "out"
    assert settings(result, 1)["model_path"] == str(out / "decoder" / "g.onnx")
    assert_weights(out / "decoder" / "g.onnx", 2)
    assert settings(result, 2)["model_path"] == str(out / "text")
    assert tree(out / "text") == tree(tmp_path / "text")


def test_a_package_may_have_no_folder_of_its_own(save, tmp_path):
    component = onnx_config(onnx_file(tmp_path / "a" / "g.onnx", seed=1))
    result = save(composite_config({"part": component}, model_attributes={"no_flatten": True}))
    assert settings(result)["model_path"] == str(tmp_path / "out")
    assert_weights(settings(result, 0)["model_path"], 1)


# Only what lies in the cache


def test_only_files_of_the_cache_are_copied_if_that_is_asked_for(save, tmp_path):
    inside = hf_folder(tmp_path / "cache" / "runs" / "1" / "models" / "model")
    outside = hf_folder(tmp_path / "mine")
    result = save(hf_config(inside, adapter_path=str(outside)), only_files_below=tmp_path / "cache")
    assert settings(result)["model_path"] == str(tmp_path / "out" / "model")
    assert settings(result)["adapter_path"] == str(outside)
    beside = hf_folder(tmp_path / "cache-of-another")
    result = save(hf_config(beside), "other", only_files_below=tmp_path / "cache")
    assert settings(result)["model_path"] == str(beside)


def test_a_downloaded_resource_is_named_by_where_it_came_from(save, tmp_path):
    source = {"type": "azureml_registry_model", "config": {"name": "bert"}}

    class Remote:
        def is_local_resource_or_string_name(self):
            return False

        def to_json(self):
            return source

        def save_to_dir(self, folder):
            hf_folder(tmp_path / "fetched").rename(os.path.join(folder, "bert"))
            return os.path.join(folder, "bert")

    local = Resources(tmp_path / "resources").local_path(Remote())
    assert settings(save(hf_config(local), only_files_below=tmp_path))["model_path"] == source
    assert tree(tmp_path / "out").keys() == {"model_config.json"}
    # A part of a resource is not the resource, and without the wish everything is copied.
    part = hf_config(os.path.join(local, "tokenizer"))
    assert settings(save(part, "part", only_files_below=tmp_path))["model_path"] == str(
        tmp_path / "part" / "model"
    )
    assert settings(save(hf_config(local), "all"))["model_path"] == str(tmp_path / "all" / "model")


# What is there already, and what goes wrong


def test_what_is_saved_belongs_to_the_user(save, tmp_path):
    folder = tmp_path / "made"
    onnx_file(folder / "g.onnx", data="g.data")
    write(folder / "run.sh", "#!/bin/sh\n").chmod(0o555)
    (folder / "g.data").chmod(0o444)
    (folder / "g.onnx").chmod(0o444)
    before = tree(folder)
    save(onnx_config(folder, onnx_file_name="g.onnx"))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {"model.onnx": 0o644, "g.data": 0o644, "run.sh": 0o755, "model_config.json": 0o644}
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_nlink == 1
        path.write_bytes(b"edited")
    assert tree(folder) == before


@pytest.mark.parametrize("there", ["model.onnx", "weights.bin", "model_config.json", "extra/notes.txt"])
def test_a_file_that_is_there_stays_unless_overwriting_is_asked_for(save, tmp_path, there):
    onnx_file(tmp_path / "made" / "g.onnx", data="weights.bin")
    write(tmp_path / "made" / "extra" / "notes.txt", "new")
    config = onnx_config(tmp_path / "made", onnx_file_name="g.onnx")
    write(tmp_path / "out" / there, "precious")
    write(tmp_path / "out" / "unrelated.txt", "stays")
    with pytest.raises(OutputExists, match="overwrite=True") as caught:
        save(config)
    assert isinstance(caught.value, FileExistsError)  # what callers of Olive's cache expect
    assert tree(tmp_path / "out") == {there: b"precious", "unrelated.txt": b"stays"}
    save(config, overwrite=True)
    assert tree(tmp_path / "out").keys() == {
        "model.onnx", "weights.bin", "extra/notes.txt", "model_config.json", "unrelated.txt"
    }  # fmt: skip
    assert (tmp_path / "out" / there).read_bytes() != b"precious"


def test_a_model_folder_takes_the_old_ones_place_whole(save, tmp_path):
    write(tmp_path / "out" / "model" / "model-00002-of-00002.safetensors", "of an older model")
    write(tmp_path / "out" / "mine.txt")
    model = hf_folder(tmp_path / "bert")
    with pytest.raises(OutputExists):
        save(hf_config(model))
    assert tree(tmp_path / "out" / "model").keys() == {"model-00002-of-00002.safetensors"}
    save(hf_config(model), overwrite=True)
    assert tree(tmp_path / "out" / "model") == tree(model)
    assert (tmp_path / "out" / "mine.txt").exists()


def test_an_empty_folder_is_nothing_to_lose(save, tmp_path):
    (tmp_path / "out" / "model").mkdir(parents=True)
    save(hf_config(hf_folder(tmp_path / "bert")))
    assert (tmp_path / "out" / "model" / "config.json").exists()


def test_a_users_folder_is_never_replaced_by_a_file(save, tmp_path):
    write(tmp_path / "out" / "model.onnx" / "notes.txt", "precious")
    with pytest.raises(ConfigError, match="is a folder"):
        save(onnx_config(onnx_file(tmp_path / "g.onnx")), overwrite=True)
    assert tree(tmp_path / "out") == {"model.onnx/notes.txt": b"precious"}


def test_a_file_where_a_folder_must_be_is_named(save, tmp_path):
    write(tmp_path / "out", "a file")
    with pytest.raises((BackendError, OutputExists), match="out"):
        save(onnx_config(onnx_file(tmp_path / "g.onnx")))
    assert (tmp_path / "out").read_text() == "a file"


def test_saving_a_model_where_it_lies_keeps_it(save, tmp_path):
    model = hf_folder(tmp_path / "out" / "model")
    before = tree(model)
    result = save(hf_config(model), overwrite=True)
    assert settings(result)["model_path"] == str(model)
    assert tree(model) == before


def test_a_file_that_comes_into_being_meanwhile_is_not_destroyed(save, tmp_path, monkeypatch):
    source = onnx_file(tmp_path / "g.onnx")
    real = output_module._make

    def make(content, place):
        real(content, place)
        write(tmp_path / "out" / "model.onnx", "someone else's")

    monkeypatch.setattr(output_module, "_make", make)
    with pytest.raises(OutputExists, match=r"model\.onnx"):
        save(onnx_config(source))
    assert tree(tmp_path / "out") == {"model.onnx": b"someone else's"}


def test_a_file_system_without_links_will_do(save, tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    save(onnx_config(onnx_file(tmp_path / "g.onnx")))
    assert tree(tmp_path / "out").keys() == {"model.onnx", "model_config.json"}


def test_a_full_disk_changes_nothing(save, tmp_path, monkeypatch):
    onnx_file(tmp_path / "made" / "g.onnx", data="weights.bin")
    config = onnx_config(tmp_path / "made", onnx_file_name="g.onnx")
    save(config)
    before = tree(tmp_path / "out")
    onnx_file(tmp_path / "made" / "g.onnx", seed=7, data="weights.bin")
    real = output_module._sync

    def sync(place):
        if place.endswith("model_config.json"):  # the last file of all
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(place)

    monkeypatch.setattr(output_module, "_sync", sync)
    with pytest.raises(BackendError, match="No space left"):
        save(config, overwrite=True)
    assert tree(tmp_path / "out") == before


def test_copying_works_where_the_kernel_cannot_do_it(save, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "across file systems")

    source = onnx_file(tmp_path / "g.onnx")
    monkeypatch.setattr(os, "copy_file_range", refuse)
    save(onnx_config(source))
    assert (tmp_path / "out" / "model.onnx").read_bytes() == source.read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from casstore.cache.olive import output
from casstore.cache.olive.resources import Resources
from casstore.cache.olive.saving import save_model

root, steps = Path(sys.argv[1]), int(sys.argv[2])
left = [steps]
def dies(call):
    def step(*arguments):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return call(*arguments)
    return step

output._copy = dies(output._copy)
os.replace, os.rename = dies(os.replace), dies(os.rename)
config = {"type": "ONNXModel", "config": {"model_path": str(root / "new"), "onnx_file_name": "g.onnx"}}
save_model(config, root / "out", overwrite=True, only_files_below=None, resources=Resources(root / "resources"))
"""


def test_a_process_that_dies_leaves_no_half_file_and_the_next_one_cleans_up(save, tmp_path):
    onnx_file(tmp_path / "old" / "g.onnx", seed=1, data="weights.bin")
    onnx_file(tmp_path / "new" / "g.onnx", seed=2, data="weights.bin")
    save(onnx_config(tmp_path / "old", onnx_file_name="g.onnx"))
    out = tmp_path / "out"
    whole = {
        name: {data[name] for data in (tree(tmp_path / "old"), tree(tmp_path / "new"))}
        for name in ("weights.bin", "g.onnx")
    }
    whole["model.onnx"] = whole.pop("g.onnx")
    for steps in range(8):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(steps)],
            check=False,
            timeout=60,
        )
        there = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        assert there.keys() == {"model.onnx", "weights.bin", "model_config.json"}
        assert all(there[name] in allowed for name, allowed in whole.items())
        json.loads(there["model_config.json"])
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        assert any(path.is_dir() for path in out.iterdir())
    assert done.returncode == 0
    assert steps >= 5
    assert [path.name for path in out.iterdir() if path.is_dir()] == []
    assert_weights(out / "model.onnx", 2)


def test_two_writers_of_one_folder_leave_each_others_work_alone(save, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    source = onnx_file(tmp_path / "g.onnx")
    with output_module.scratch_folder(str(out)) as aside:
        write(out / "probe")
        save(onnx_config(source))
        assert os.path.isdir(aside)
    assert tree(out).keys() == {"probe", "model.onnx", "model_config.json"}


def test_read_only_files_of_an_earlier_save_can_be_replaced(save, tmp_path):
    source = onnx_file(tmp_path / "g.onnx")
    save(onnx_config(source))
    set_writable(tmp_path / "out", writable=False)
    save(onnx_config(source), overwrite=True)
    assert (tmp_path / "out" / "model.onnx").stat().st_mode & 0o777 == 0o644


def test_a_file_is_copied_to_its_end_whatever_size_it_has(save, tmp_path):
    """Files of procfs, and of some FUSE file systems, say that they are empty."""
    folder = hf_folder(tmp_path / "model")
    (folder / "version").symlink_to("/proc/version")
    result = save(hf_config(folder))
    assert text(Path(settings(result)["model_path"]) / "version") == text("/proc/version") != ""


@pytest.mark.parametrize("stops_after", [0, 1000])
def test_where_the_kernel_stops_copying_the_rest_is_read(save, tmp_path, monkeypatch, stops_after):
    def copy(reader, writer, _):
        if os.lseek(reader, 0, os.SEEK_CUR) >= stops_after:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return os.write(writer, os.read(reader, stops_after))

    monkeypatch.setattr(os, "copy_file_range", copy, raising=False)
    folder = hf_folder(tmp_path / "model")
    (folder / "large").write_bytes(os.urandom(3_000_000))
    result = save(hf_config(folder))
    assert tree(Path(settings(result)["model_path"])) == tree(folder)
