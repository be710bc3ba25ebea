"""What a pipeline may hand over, or meet, that no cache wants: it goes on, and one line says what was not cached."""

from __future__ import annotations

import enum
import json
import logging
import math
import re
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes.machines import INPUT, PASS, is_hit, run_pass
from fakes.pipeline_models import hf_config, hf_folder, onnx_config, onnx_file, tree, write

from casstore.cache.config import CacheConfig
from casstore.cache.olive_cache import OliveCache
from casstore.cache.values import MAX_ITEMS

TESTS = str(Path(__file__).parent.parent)


def run_python(program, *arguments, timeout=100):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), TESTS, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def cyclic():
    value = {"a": [1]}
    value["a"].append(value)
    return value


def deep():
    value = current = {}
    for _ in range(10_000):
        current["x"] = {}
        current = current["x"]
    return value


class Broken:
    def to_json(self):
        raise RuntimeError("no")


# Models


def test_a_model_whose_file_is_missing_is_not_cached(cache, tmp_path, caplog):
    config = onnx_config(tmp_path / "gone.onnx")
    cache.cache_model("model", config)
    assert cache.models.record("model") is None
    assert "gone.onnx" in caplog.text
    assert cache.load_model("model") == config  # the engine still gets what its pass returned


def test_a_model_whose_external_data_is_missing_is_not_cached(cache, tmp_path, caplog):
    source = onnx_file(tmp_path / "g.onnx", data="weights.bin")
    (tmp_path / "weights.bin").unlink()
    cache.cache_model("model", onnx_config(source))
    assert cache.models.record("model") is None
    assert "weights.bin" in caplog.text


def test_files_outside_the_working_area_are_taken_in(machines, tmp_path):
    cache = machines.open()
    source = onnx_file(tmp_path / "elsewhere" / "g.onnx", seed=4, data="g.data")
    before = tree(source.parent)
    cache.cache_model("model", onnx_config(source))
    for path in source.parent.iterdir():
        path.unlink()
    found = Path(cache.load_model("model")["config"]["model_path"])
    assert tree(found.parent) == before
    assert not source.exists()


@pytest.mark.parametrize(
    "value",
    [
        cyclic(),
        deep(),
        [0] * (MAX_ITEMS + 1),
        object(),
        b"bytes",
        {(1, 2): "a tuple as key"},
        "lone surrogate \ud800",
        float,
        open,
        {1: "a", "1": "b"},
        Broken(),
    ],
    ids=[
        "cyclic",
        "deep",
        "huge",
        "object",
        "bytes",
        "key",
        "surrogate",
        "class",
        "function",
        "two keys",
        "broken",
    ],
)
def test_values_that_cannot_be_kept_are_named_and_the_pipeline_goes_on(cache, value, caplog):
    cache.cache_model("model", {"type": "HfModel", "config": {"model_path": "hub/name", "value": value}})
    assert cache.models.record("model") is None
    ids = {cache.get_output_model_id(PASS, {"value": value}, INPUT, None) for _ in range(2)}
    assert len(ids) == 2  # never found again, and never mistaken for another one
    assert all(re.fullmatch("[0-9a-f]{64}", model_id) for model_id in ids)
    model_id = ids.pop()
    cache.cache_model(model_id, hf_config("hub/name"))
    cache.cache_run(PASS, {"value": value}, INPUT, model_id, None)
    cache.cache_evaluation("model", {"value": value})
    assert cache.load_evaluation("model") is None
    cache.cache_olive_config({"value": value})
    assert cache.load_run_from_model_id(model_id) == {}
    assert PASS in caplog.text
    assert len(caplog.text) < 20_000  # a huge value is not printed


def test_a_number_that_no_record_holds_stops_nothing(cache):
    cache.cache_model("model", {"type": "HfModel", "config": {"model_path": "hub/name", "value": 2**70}})
    assert cache.load_model("model")["config"]["value"] == 2**70
    model_id = cache.get_output_model_id(PASS, {"value": 2**70}, INPUT, None)
    cache.cache_model(model_id, hf_config("hub/name"))
    cache.cache_run(PASS, {"value": 2**70}, INPUT, model_id, None)
    assert cache.load_run_from_model_id(model_id) == {}
    assert cache.problems


def test_values_with_a_plain_form_are_kept(cache):
    class Mode(enum.Enum):
        FAST = "fast"

    class Word(str, enum.Enum):
        CPU = "cpu"

    config = {
        "path": Path("a/b"),
        "mode": Mode.FAST,
        "word": Word.CPU,
        "number": np.float32(0.5),
        "array": np.arange(3),
        "tuple": (1, 2),
        "set": {3},
        "none": None,
    }
    model_id = cache.get_output_model_id(PASS, config, INPUT, None)
    assert cache.get_output_model_id(PASS, dict(reversed(config.items())), INPUT, None) == model_id
    cache.cache_model(model_id, {"type": "HfModel", "config": {"model_path": "hub/name", **config}})
    cache.cache_run(PASS, config, INPUT, model_id, None)
    expected = {
        "path": "a/b", "mode": "fast", "word": "cpu", "number": 0.5, "array": [0, 1, 2], "tuple": [1, 2],
        "set": [3], "none": None,
    }  # fmt: skip
    assert cache.load_run_from_model_id(model_id)["pass_config"] == expected
    assert cache.load_model(model_id)["config"] == {"model_path": "hub/name", **expected}
    assert not cache.problems


def test_metrics_that_are_no_numbers_come_back(cache):
    result = {"loss": math.nan, "best": math.inf, "worst": -math.inf, "nested": [math.nan]}
    cache.cache_evaluation("model", result)
    found = cache.load_evaluation("model")
    assert math.isnan(found["loss"])
    assert (found["best"], found["worst"]) == (math.inf, -math.inf)
    shown = json.loads(cache.get_evaluation_json_path("model").read_bytes())
    assert math.isnan(shown["loss"])
    model_id = cache.get_output_model_id(PASS, {"lr": math.nan}, INPUT, None)
    assert cache.get_output_model_id(PASS, {"lr": -math.nan}, INPUT, None) == model_id
    cache.cache_model(model_id, hf_config("hub/name"))
    cache.cache_run(PASS, {"lr": math.nan}, INPUT, model_id, None, metrics=result)
    assert math.isnan(cache.load_run(model_id).metrics["loss"])


def test_a_nan_twice_is_one_record(cache):
    for _ in range(2):
        cache.cache_evaluation("model", {"loss": math.nan})
    assert len(cache.local.history("evaluations/model")) == 1


# Several writers


def test_writers_with_the_same_result_leave_one_record(machines):
    caches = [machines.open() for _ in range(4)]
    model_id = run_pass(caches[0], seed=1)
    start = threading.Barrier(len(caches), timeout=60)

    def work(cache):
        start.wait()
        for _ in range(3):
            cache.cache_run(PASS, {"bits": 8}, INPUT, model_id, None)

    with ThreadPoolExecutor(len(caches)) as pool:
        list(pool.map(work, caches))
    assert len(caches[0].local.history(f"runs/{model_id}")) == 1


def test_different_results_are_both_kept_and_the_newest_counts(machines, tmp_path, caplog):
    cache = machines.open()
    model_id = run_pass(cache, seed=1)
    other = machines.open()
    folder = tmp_path / "again"
    onnx_file(folder / "graph.onnx", seed=2, data="graph.data")
    other.cache_model(model_id, onnx_config(folder, onnx_file_name="graph.onnx"))
    other.cache_run(PASS, {"bits": 8}, INPUT, model_id, None)
    assert "has a different result" in caplog.text
    records = cache.local.history(f"models/{model_id}")
    assert len({record.target for record in records}) == 2
    assert len(cache.local.history(f"runs/{model_id}")) == 2
    fresh = machines.open()
    assert is_hit(fresh, model_id)
    assert tree(Path(fresh.load_model(model_id)["config"]["model_path"])) == tree(folder)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fakes.machines import Machines, is_hit, run_pass

machines = Machines(Path(sys.argv[2]))
cache = machines.open(clean_cache=sys.argv[4] == "clean")
print("ready", flush=True)
sys.stdin.readline()
for number in range(5):
    model_id = run_pass(cache, seed=int(sys.argv[3]), config={"number": number})
    assert sys.argv[4] == "clean" or is_hit(cache, model_id)
    print(model_id)
machines.close()
"""


@pytest.mark.parametrize(("seeds", "mode"), [((1, 1), "keep"), ((1, 2), "keep"), ((1, 1), "clean")])
def test_two_processes_write_the_same_runs(machines, seeds, mode):
    """With different results one of them wins; with clean_cache they may clean away what the other wrote."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), TESTS, str(machines.root), str(seed), mode],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in seeds
    ]  # fmt: skip
    for child in children:
        assert child.stdout.readline() == "ready\n"
    told = []
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        out, err = child.communicate(timeout=100)
        assert child.returncode == 0, err
        assert "Traceback" not in err
        told.append(out.split())
    assert told[0] == told[1]
    assert len(set(told[0])) == 5
    cache = machines.open()
    for model_id in told[0]:
        assert is_hit(cache, model_id)
        assert set(tree(Path(cache.load_model(model_id)["config"]["model_path"]))) == {
            "graph.onnx",
            "graph.data",
        }


def test_two_that_make_one_model_at_a_time_do_not_write_to_one_folder(machines):
    one, two = machines.open(), machines.open()
    model_id = one.get_output_model_id(PASS, {}, INPUT, None)
    folders = [cache.get_model_cache_path(model_id) for cache in (one, two, one, two)]
    assert folders[0] == folders[2] == one.dirs.runs / model_id / "models"
    assert folders[1] == folders[3] != folders[0]
    for seed, cache in enumerate((one, two)):
        onnx_file(cache.get_model_cache_path(model_id) / "g.onnx", seed=seed)
        cache.cache_model(
            model_id, onnx_config(cache.get_model_cache_path(model_id), onnx_file_name="g.onnx")
        )
        cache.cache_run(PASS, {}, INPUT, model_id, None)
    for path in folders:
        assert path.is_dir()  # both go on being used
    machines.close()
    one = machines.open(max_checkout_bytes=0)
    one.close()
    assert not any(path.name == "g.onnx" for path in one.dirs.runs.rglob("*"))  # and neither is forgotten
    one = machines.open()
    assert one.get_model_cache_path(model_id) == folders[0]
    assert is_hit(one, model_id)


def test_a_cache_is_cleaned_while_another_one_works(machines):
    working = machines.open()
    model_id = run_pass(working, seed=1)
    machines.open(clean_cache=True)
    working.load_model(model_id)  # a miss or the model, never an error
    assert run_pass(working, seed=1) == model_id
    assert is_hit(working, model_id)


# Disks


@pytest.mark.parametrize("kind", ["kernel", "file in the way", "dead link"])
def test_a_cache_directory_that_cannot_be_used_is_done_without(tmp_path, caplog, kind):
    place = {
        "kernel": Path("/proc/casstore-cache"),
        "file in the way": write(tmp_path / "file") / "cache",
        "dead link": tmp_path / "link",
    }[kind]
    (tmp_path / "link").symlink_to("/proc/nowhere/at/all")
    with CacheConfig(cache_dir=place).create_cache() as cache:
        model_id = run_pass(cache, seed=1)
        cache.cache_evaluation(model_id, {"a": 1})
        assert cache.load_model(model_id)["type"] == "ONNXModel"
        assert cache.save_model(model_id, tmp_path / "out")["type"] == "ONNXModel"
        temporary = cache.get_cache_dir()
        assert temporary.is_dir()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    assert "so nothing is kept" in caplog.text
    assert not temporary.exists()


FULL = """
import json, logging, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
from fakes.machines import INPUT, PASS, Machines, is_hit, run_pass
from fakes.pipeline_models import hf_config, write

machines = Machines(Path(sys.argv[2]))
cache = machines.open()
small = run_pass(cache, seed=1)
ids = []
for number in range(3):
    model_id = cache.get_output_model_id(PASS, {"number": number}, INPUT, None)
    folder = cache.get_model_cache_path(model_id)
    import numpy as np
    write(folder / "model.bin", np.random.default_rng(number).bytes(3 << 20))
    ids.append(model_id)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for number, model_id in enumerate(ids):
    config = {"type": "PyTorchModel", "config": {"model_path": str(cache.get_model_cache_path(model_id))}}
    cache.cache_model(model_id, config)
    cache.cache_run(PASS, {"number": number}, INPUT, model_id, None)
    assert cache.load_model(model_id) == config
    cache.cache_evaluation(model_id, {"a": 1})
assert is_hit(cache, small)
machines.close()
print("done")
"""


def test_a_disk_that_is_full_stops_caching_and_nothing_else(machines):
    done = run_python(FULL, machines.root)
    out, err = done.communicate(timeout=100)
    assert done.returncode == 0, err
    assert out.endswith("done\n")
    assert "Could not cache the model" in out
    cache = machines.open()
    model_id = cache.get_output_model_id(PASS, {"number": 0}, INPUT, None)
    assert cache.load_run_from_model_id(model_id) == {}
    assert cache.load_model(model_id) is None
    leftovers = [
        path for path in cache.dirs.store.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20
    ]
    assert leftovers == []


# The caller's own objects


def test_configs_that_are_handed_over_stay_as_they_are(cache, tmp_path):
    config = hf_config(hf_folder(tmp_path / "bert"), shared_cache=True, model_attributes={"a": [1]})
    before = json.dumps(config)
    cache.cache_model("model", config)
    assert json.dumps(config) == before
    found = cache.load_model("model")
    found["config"]["model_attributes"]["a"].append(2)
    assert cache.load_model("model")["config"]["model_attributes"]["a"] == [1]
    cache.save_model("model", tmp_path / "out")
    assert cache.load_model("model")["config"]["model_path"] == str(tmp_path / "bert")


def test_anything_else_as_a_cache_config_is_refused():
    for value in (3, ["a"], {"unknown": 1}):
        with pytest.raises(Exception, match="config"):
            OliveCache(value)
