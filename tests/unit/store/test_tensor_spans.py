"""Which tensors an add finds in files, and how often it reads them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from fakes.model_files import npy_bytes, onnx_bytes, onnx_external_bytes, safetensors_bytes

from casstore import tensors
from casstore.store.adding.sources import find_sources, open_source
from casstore.store.adding.tensor_spans import find_external_spans, find_file_spans

TENSORS = {"a": np.arange(40_000, dtype="f4").reshape(4, 10_000), "b": np.arange(9, dtype="f2")}


def spans_of(folder):
    """Return the names of the tensors of each file, found as an add finds them."""
    files = find_sources(str(folder)).files
    told = find_external_spans(files, files)
    found = {}
    for file in files:
        descriptor = open_source(file)
        try:
            spans = find_file_spans(file, descriptor, told.get(file.path, ()))
        finally:
            os.close(descriptor)
        found[file.path] = sorted(span.name for span in spans)
    return found


@pytest.mark.parametrize("name", ["model.onnx", "MODEL.ONNX", "model.pb"])
@pytest.mark.parametrize(
    ("location", "place"),
    [("w.data", "w.data"), ("sub/w.data", "sub/w.data"), ("sub\\w.data", "sub/w.data"), ("s\\w", "s\\w")],
)
def test_a_graph_tells_of_its_data_file_whatever_it_is_called(tmp_path, name, location, place):
    folder = tmp_path / "m"
    (folder / "deep" / place).parent.mkdir(parents=True)
    (folder / "deep" / place).write_bytes(onnx_external_bytes(TENSORS))
    (folder / "deep" / name).write_bytes(onnx_bytes(TENSORS, external=location))
    assert spans_of(folder) == {f"deep/{place}": ["a", "b"], f"deep/{name}": []}


def test_a_graph_with_tensors_of_its_own(tmp_path):
    (tmp_path / "g.pb").write_bytes(onnx_bytes(TENSORS))
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(TENSORS))
    (tmp_path / "other.onnx").write_bytes(safetensors_bytes(TENSORS))
    (tmp_path / "x.npy").write_bytes(npy_bytes(TENSORS["a"]))
    names = ["a", "b"]
    assert spans_of(tmp_path) == {"g.pb": names, "model.onnx": names, "other.onnx": names, "x.npy": ["array"]}


def test_absurd_external_tensors_leave_a_file_its_own(tmp_path):
    (tmp_path / "w.data").write_bytes(safetensors_bytes({"own": np.zeros(9, "f4")}))
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(TENSORS, external="w.data"))
    assert spans_of(tmp_path) == {"w.data": ["own"], "model.onnx": []}


@pytest.mark.parametrize("external", [None, "w.data"])
def test_a_graph_is_walked_once(tmp_path, monkeypatch, external):
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(TENSORS, external=external))
    (tmp_path / "w.data").write_bytes(onnx_external_bytes(TENSORS))
    walks = []
    find = tensors.onnx_spans.find
    monkeypatch.setattr(tensors.onnx_spans, "find", lambda source: walks.append(source) or find(source))
    monkeypatch.setattr(tensors.onnx_spans, "spans", lambda source: walks.append(source) or [])
    spans_of(tmp_path)
    assert [source.location for source in walks].count(str(tmp_path / "model.onnx")) == 1


def test_the_tensors_of_a_graph_are_checked_once(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(TENSORS))
    checks = []
    check = tensors.checked_spans
    monkeypatch.setattr(tensors, "checked_spans", lambda *given: checks.append(given) or check(*given))
    assert spans_of(tmp_path) == {"model.onnx": ["a", "b"]}
    assert len(checks) == 1


def test_small_files_are_not_opened_to_look_for_graphs(tmp_path, monkeypatch):
    for number in range(50):
        (tmp_path / f"{number}.json").write_bytes(b"{}")
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(TENSORS))
    opened = []
    monkeypatch.setattr(
        "casstore.store.adding.tensor_spans.open_source",
        lambda file: opened.append(file.path) or open_source(file),
    )
    files = find_sources(str(tmp_path)).files
    find_external_spans(files, files)
    assert opened == ["model.onnx"]
    opened.clear()
    find_external_spans([], files)
    assert opened == []
