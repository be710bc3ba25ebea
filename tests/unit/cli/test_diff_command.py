"""casstore diff: its table, JSON, and plot."""

from __future__ import annotations

import numpy as np
import pytest
from fakes.command_line import run, run_json
from fakes.families import base_tensors, tuned
from fakes.model_files import safetensors_bytes

from casstore import Store
from casstore.cli.support import diff_plot

BASE = base_tensors()
LARGE, SMALL = "layer.1.value.weight", "layer.0.query.bias"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store with a model, a fine-tune of it, and one with another name for a tensor and one more."""
    folder = tmp_path_factory.mktemp("diff")
    place = folder / "store"
    run("init", place)
    moved = tuned(BASE)
    more = dict(BASE)
    more["renamed"] = more.pop(LARGE)
    more["\x1b[31mred"] = np.zeros(3, "<f4")
    for name, tensors in (("base", BASE), ("tuned", BASE | {LARGE: moved[LARGE]}), ("more", more)):
        path = folder / name / "model.safetensors"
        path.parent.mkdir()
        path.write_bytes(safetensors_bytes(tensors))
        run("add", path.parent, "--ref", name, "--store", place, "-q")
    return place


def lines_of(label, place, *arguments):
    printed = run("diff", *arguments, "--store", place)[0]
    lines = [line.split("\t") for line in printed.splitlines()]
    return [line[1:] for line in lines if line[0] == label]


def test_a_table_of_what_differs(place):
    (line,) = lines_of("tensor", place, "base", "tuned")
    name, change, differing, largest, mean, *rest = line
    assert (name, change, rest) == (LARGE, "changed", ["F32 192x256", "F32 192x256", "-"])
    assert 49_000 < int(differing) <= 192 * 256
    assert float(mean) < float(largest) < 1e-3
    assert lines_of("change", place, "base", "tuned") == [["same", str(len(BASE) - 1)], ["changed", "1"]]
    assert lines_of("file", place, "base", "tuned") == [
        ["model.safetensors", "changed", "1.2 MiB", "1.2 MiB"]
    ]
    everything = lines_of("tensor", place, "base", "tuned", "--all")
    assert [line[0] for line in everything] == list(BASE)
    assert lines_of("tensor", place, "base", "base") == lines_of("file", place, "base", "base") == []


def test_names_of_tensors(place):
    """A new name is shown although all else is the same; no name can steer a terminal."""
    found = {line[0]: line for line in lines_of("tensor", place, "base", "more")}
    assert found["renamed"][1] == "same"
    assert found["renamed"][-1] == LARGE
    assert found["\\x1b[31mred"][1] == "added"
    assert len(found) == 2
    assert run("diff", "base", "tuned", "-q", "--store", place)[0] == f"{LARGE}\n"


def test_json(place):
    found = run_json("diff", "base", "more", "--store", place)
    assert found["counts"] == {"same": len(BASE), "added": 1}
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert tensors["renamed"]["renamed"] is True
    assert tensors["renamed"]["a"]["name"] == LARGE
    assert tensors["renamed"]["b"] == {
        "name": "renamed", "dtype": "F32", "shape": [192, 256], "file": "model.safetensors", "size": 196_608,
    }  # fmt: skip
    assert (tensors[SMALL]["differing"], tensors[SMALL]["max_abs"]) == (0, 0)
    assert len(found["model_id_a"]) == 64


def test_a_plot(place, tmp_path):
    path = tmp_path / "change.png"
    said = run("diff", "base", "tuned", "--plot", path, "--store", place)[1]
    assert said == f"casstore: drew {path}.\n"
    assert path.read_bytes().startswith(b"\x89PNG")
    _, said = run("diff", "base", "tuned", "--plot", tmp_path / "none" / "x.png", "--store", place, code=1)
    assert said.startswith("casstore: The plot could not be written")
    _, said = run("diff", "base", "tuned", "--plot", tmp_path / "x.zip", "--store", place, code=1)
    assert "not supported" in said


def test_layers_are_in_their_order(place):
    with Store(place) as store:
        layers = diff_plot.layers_of(store.diff("base", "tuned").tensors)
    assert [layer.name for layer in layers] == ["embeddings", "0", "1"]
    assert [layer.mean > 0 for layer in layers] == [False, False, True]
    assert layers[2].elements == sum(array.size for name, array in BASE.items() if ".1." in name)
    moved = np.abs(tuned(BASE)[LARGE].astype("<f8") - BASE[LARGE])
    assert layers[2].largest == moved.max()
    assert layers[2].mean == pytest.approx(moved.sum() / layers[2].elements)


def test_without_matplotlib(place, tmp_path, monkeypatch):
    monkeypatch.setattr(diff_plot, "find_spec", lambda _: None)
    _, said = run("diff", "base", "tuned", "--plot", tmp_path / "x.png", "--store", place, code=1)
    assert "pip install 'casstore[plot]'" in said


def test_a_model_that_is_not_there(place):
    assert "nothing" in run("diff", "base", "nothing", "--store", place, code=1)[1]
