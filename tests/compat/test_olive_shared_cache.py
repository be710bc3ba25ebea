"""SharedCache as Olive's callers use it, and an OliveCache that writes and reads through one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.machines import INPUT, PASS, is_hit, run_pass
from fakes.pipeline_models import (
    composite_config,
    hf_config,
    hf_folder,
    onnx_config,
    onnx_file,
    tree,
    write,
)

from casstore.cache.olive_cache import OliveCache
from casstore.cache.shared_cache import SharedCache
from casstore.errors import BackendError, ConfigError, IntegrityError, RefNotFound


@pytest.fixture(params=["path", "memory"])
def shared(request, tmp_path):
    cache = SharedCache(str(tmp_path / "shared") if request.param == "path" else f"memory://{tmp_path}/one")
    yield cache
    cache.close()


# SharedCache alone, called positionally


def test_an_account_and_a_container_or_a_url(tmp_path):
    azure = SharedCache("acct", "box")
    assert azure.url == "https://acct.blob.core.windows.net/box"
    assert SharedCache("s3://bucket/cache", anon=True).url == "s3://bucket/cache"
    assert "acct" in repr(azure)
    SharedCache(str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()  # nothing happens before the first question


def test_a_run_comes_back(shared, tmp_path):
    run = {**OliveCache.get_run_json(PASS, {"bits": 8}, INPUT, "cpu"), "output_model_id": "model"}
    path = write(tmp_path / "run.json", json.dumps(run))
    shared.cache_run("model", path)
    assert shared.load_run("model", tmp_path / "got" / "run.json") == run
    assert json.loads((tmp_path / "got" / "run.json").read_bytes()) == run


def test_a_run_that_is_not_there_is_empty_and_writes_nothing(shared, tmp_path):
    assert shared.load_run("model", tmp_path / "run.json") == {}
    assert not (tmp_path / "run.json").exists()


def test_a_model_comes_back_without_its_files(shared, tmp_path):
    source = onnx_file(tmp_path / "made" / "g.onnx", data="g.data")
    shared.cache_model("model", onnx_config(source.parent, onnx_file_name="g.onnx"))
    told = shared.load_model("model", tmp_path / "got" / "model.json")
    assert told["config"]["shared_cache"] is True
    assert told["config"]["onnx_file_name"] == "g.onnx"
    assert json.loads((tmp_path / "got" / "model.json").read_bytes()) == told
    assert str(tmp_path) not in json.dumps(told)
    assert shared.load_model("other", tmp_path / "other.json") is None
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("form", [dict, lambda config: SimpleNamespace(**config)])
def test_a_models_files_are_downloaded(shared, tmp_path, form):
    folder = tmp_path / "made"
    onnx_file(folder / "g.onnx", seed=3, data="g.data")
    before = tree(folder)
    shared.cache_model("model", onnx_config(folder, onnx_file_name="g.onnx"))
    told = form(shared.load_model("model", tmp_path / "model.json"))
    found = shared.download_model(told, "model", tmp_path / "dest")
    assert found is told
    config = found["config"] if isinstance(found, dict) else found.config
    assert "shared_cache" not in config
    assert Path(config["model_path"]).is_relative_to(tmp_path / "dest")
    assert tree(Path(config["model_path"])) == before


def test_every_kind_of_model_is_downloaded_whole(shared, tmp_path):
    one, two = write(tmp_path / "a" / "c.json", "1"), write(tmp_path / "b" / "c.json", "2")
    models = {
        "hf": hf_config(hf_folder(tmp_path / "bert"), adapter_path=str(hf_folder(tmp_path / "lora", seed=1))),
        "hub": hf_config("hub/name"),
        "package": composite_config(
            {
                "e": onnx_config(onnx_file(tmp_path / "e" / "g.onnx", data="g.data")),
                "d": onnx_config(
                    onnx_file(tmp_path / "d" / "g.onnx", seed=1),
                    model_attributes={"additional_files": [str(one), str(two)]},
                ),
            }
        ),
    }
    for name, config in models.items():
        shared.cache_model(name, config)
    for name, config in models.items():
        told = shared.load_model(name, tmp_path / f"{name}.json")
        found = shared.download_model(told, name, tmp_path / "dest" / name)
        assert found["config"].keys() == config["config"].keys()
    package = json.loads(json.dumps(found))["config"]["model_components"]
    assert [
        Path(part).read_text() for part in package[1]["config"]["model_attributes"]["additional_files"]
    ] == ["1", "2"]
    encoder = Path(package[0]["config"]["model_path"])
    assert tree(encoder.parent) == tree(tmp_path / "e")


def test_a_model_that_is_not_there_cannot_be_downloaded(shared, tmp_path):
    with pytest.raises(RefNotFound, match="model"):
        shared.download_model({"config": {}}, "model", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_names_are_exact(shared, tmp_path):
    config = onnx_config(onnx_file(tmp_path / "g.onnx"))
    shared.cache_model("abcd1234", config)
    for name, there in {
        "abcd1234": True,
        "models/abcd1234": True,
        "abcd1234/model.json": True,
        "abcd1234/run.json": False,
        "abcd": False,
        "abcd12345": False,
        "models/abcd": False,
        "abcd/model.json": False,
        "model.json": False,
    }.items():
        assert shared.exist_in_shared_cache(name) is there, name
    run = {**OliveCache.get_run_json(PASS, {}, INPUT, None), "output_model_id": "abcd1234"}
    shared.cache_run("abcd1234", write(tmp_path / "run.json", json.dumps(run)))
    assert shared.exist_in_shared_cache("abcd1234/run.json")


@pytest.mark.parametrize("folder", [True, False])
def test_files_are_uploaded(shared, tmp_path, folder):
    path = write(tmp_path / "model" / "sub" / "file.txt", "content")
    shared.upload_model_files(str(path.parent.parent if folder else path), "some-model")
    assert shared.exist_in_shared_cache("some-model")
    shared.remote.get("models/some-model", tmp_path / "got")
    assert tree(tmp_path / "got") == ({"sub/file.txt": b"content"} if folder else {"file.txt": b"content"})


@pytest.mark.parametrize("path", [None, "", "hub/name"])
def test_a_model_without_files_here_uploads_nothing(shared, path):
    shared.upload_model_files(path, "some-model")
    assert not shared.exist_in_shared_cache("some-model")


def test_its_contents_can_be_listed_and_deleted(shared, tmp_path):
    shared.cache_model("one", onnx_config(onnx_file(tmp_path / "g.onnx")))
    shared.cache_model("two", hf_config("hub/name"))
    assert set(shared.list("models/")) == {"models/one", "models/two"}
    shared.delete("models/one")
    assert set(shared.list()) == {"models/two"}
    with pytest.raises(RefNotFound):
        shared.delete("models/one")


# An OliveCache that writes and reads through one


def test_what_one_machine_made_the_other_gets(sharing):
    here = sharing.open("here")
    model_id = run_pass(here, seed=1)
    before = tree(here.get_model_cache_path(model_id))
    there = sharing.open("there")
    assert there.load_run_from_model_id(model_id) == here.load_run_from_model_id(model_id)
    config = there.load_model(model_id)
    assert config["config"]["shared_cache"] is True
    assert not os.path.exists(config["config"]["model_path"])  # its files come when they are needed
    config = there.download_shared_cache_model(config, model_id)
    assert "shared_cache" not in config["config"]
    assert tree(Path(config["config"]["model_path"])) == before
    # From now on, they are here.
    assert "shared_cache" not in there.load_model(model_id)["config"]


def test_only_the_model_that_is_needed_is_fetched(sharing):
    here = sharing.open("here")
    first, second = run_pass(here, seed=1), run_pass(here, seed=2, config={"bits": 4})
    there = sharing.open("there")
    assert is_hit(there, first)
    assert is_hit(there, second)
    there.download_shared_cache_model(there.load_model(second), second)
    assert there.models.record(second) is not None
    assert there.models.record(first) is None


def test_a_model_is_saved_straight_from_the_shared_cache(sharing, tmp_path):
    here = sharing.open("here")
    model_id = run_pass(here, seed=1)
    here.save_model(model_id, tmp_path / "one")
    there = sharing.open("there")
    saved = there.save_model(model_id, tmp_path / "two")
    assert "shared_cache" not in json.dumps(saved)
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    one.pop("model_config.json")
    assert b"shared_cache" not in two.pop("model_config.json")
    assert one == two


def test_evaluations_are_shared(sharing):
    here = sharing.open("here")
    here.cache_evaluation("model", {"accuracy": 0.5})
    there = sharing.open("there")
    assert json.loads(there.get_evaluation_json_path("model").read_bytes()) == {"accuracy": 0.5}


def test_a_failed_pass_is_shared_as_one(sharing):
    here = sharing.open("here")
    model_id = here.get_output_model_id(PASS, {}, INPUT, None)
    here.cache_model(model_id, {})
    here.cache_run(PASS, {}, INPUT, model_id, None)
    there = sharing.open("there")
    assert there.load_run_from_model_id(model_id)["output_model_id"] == model_id
    assert there.load_model(model_id) == {}


def test_a_cache_that_must_not_update_the_shared_one_does_not(sharing):
    sharing.open("first").cache_model("known", hf_config("hub/name"))
    here = sharing.open("here", update_shared_cache=False)
    model_id = run_pass(here)
    here.cache_evaluation(model_id, {"latency": 1.0})
    there = sharing.open("there")
    assert there.load_run_from_model_id(model_id) == {}
    assert there.load_model(model_id) is None
    assert there.load_evaluation(model_id) is None
    assert here.load_model("known")["config"]["model_path"] == "hub/name"  # it still reads


def test_a_cache_that_was_told_not_to_share_does_not(sharing):
    here = sharing.open("here")
    here.disable_shared_cache()
    model_id = run_pass(here)
    assert sharing.open("there").load_model(model_id) is None
    assert is_hit(here, model_id)


@pytest.mark.parametrize("url", ["file:///proc/no/such/place", "nosuch://bucket/cache"])
def test_a_shared_cache_that_fails_never_fails_the_pipeline(tmp_path, machines, url, caplog):
    machines.shared = url
    cache = machines.open()
    model_id = run_pass(cache)
    assert is_hit(cache, model_id)
    assert cache.load_model("never") is None
    assert cache.load_run_from_model_id("never") == {}
    cache.cache_evaluation("model", {"a": 1})
    assert cache.load_evaluation("model") == {"a": 1}
    assert cache.save_model(model_id, tmp_path / "out")["type"] == "ONNXModel"
    assert len([record for record in caplog.records if "is not used for" in record.getMessage()]) == 1


def test_a_shared_cache_that_goes_away_is_done_without(tmp_path, machines, caplog):
    shared = tmp_path / "shared"
    machines.shared = shared.as_uri()
    here, there = machines.open("here"), machines.open("there")
    first = run_pass(here, seed=1)
    assert is_hit(there, first)
    shared.rename(tmp_path / "away")
    shared.write_text("no folder")
    second = run_pass(here, config={"bits": 4})
    assert is_hit(here, second)
    assert there.load_model(second) is None
    assert there.load_run_from_model_id(second) == {}
    with pytest.raises((BackendError, IntegrityError, RefNotFound)):
        there.download_shared_cache_model({"config": {}}, first)
    assert "is not used for" in caplog.text


def test_a_download_that_fails_says_so(sharing, tmp_path):
    there = sharing.open("there")
    with pytest.raises(RefNotFound):
        there.download_shared_cache_model({"config": {}}, "never")
    sharing.shared = "file:///proc/no/such/place"
    with pytest.raises((BackendError, ConfigError)):
        sharing.open("third").download_shared_cache_model({"config": {}}, "never")
