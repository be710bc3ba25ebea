from __future__ import annotations

import json

import numpy as np
import pytest
from fakes.model_files import (
    BytesSource,
    torch_export_bytes,
    torch_export_meta,
    torch_zip_bytes,
    zip_bytes,
)

from casstore.tensors import find_spans

A = np.arange(24, dtype="f4").reshape(4, 6)
B = np.arange(5, dtype="f2")
WHOLE = [("program/data/weights/weight_0", "U8", (96,))]


def summary(data):
    return [(s.name, s.dtype, s.shape) for s in find_spans(BytesSource(data))]


def described(**metas):
    return torch_export_bytes({"w": A}, configs={"weights": json.dumps({"config": metas}).encode()})


def test_weights_have_the_names_of_the_state_dict():
    data = torch_export_bytes({"fc.weight": A, "fc.bias": B})
    assert summary(data) == [("fc.weight", "F32", (4, 6)), ("fc.bias", "F16", (5,))]
    span, _ = find_spans(BytesSource(data))
    assert data[span.begin : span.end] == A.tobytes()


def test_tied_weights_and_views():
    first = torch_export_meta("weight_0", "F32", (2, 6))
    second = torch_export_meta("weight_0", "F32", (2, 6), offset=12)
    assert summary(described(a=first, b=second)) == [("a", "F32", (2, 6)), ("b", "F32", (2, 6))]
    whole = torch_export_meta("weight_0", "F32", (4, 6))
    assert summary(described(a=whole, b=whole)) == [("a", "F32", (4, 6)), ("b", "F32", (4, 6))]
    strided = torch_export_meta("weight_0", "F32", (6, 4), strides=(1, 6))
    assert summary(described(a=strided)) == [("program/data/weights/weight_0", "F32", (24,))]


def test_pickled_weights_are_torch_zips():
    data = torch_export_bytes(
        {"w": B}, pickled={"sub": torch_zip_bytes({"x": A}), "broken": b"PK\3\4 no zip"}
    )
    assert summary(data) == [("w", "F16", (5,)), ("sub.x", "F32", (4, 6))]


def test_archives_from_before_torch_2_8():
    data = zip_bytes(
        {
            "version": b"5",
            "serialized_state_dict.pt": torch_zip_bytes({"w": A}),
            "serialized_constants.pt": torch_zip_bytes({"c": B}),
            "serialized_example_inputs.pt": b"no zip",
        }
    )
    assert summary(data) == [("w", "F32", (4, 6)), ("constants.c", "F16", (5,))]
    span, _ = find_spans(BytesSource(data))
    assert data[span.begin : span.end] == A.tobytes()


META = torch_export_meta("weight_0", "F32", (4, 6))
TENSOR = META["tensor_meta"]


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"config": 3}',
        b'{"config": {"w": 3, "v": {"path_name": 5}}}',
        b'{"config": {"w": {"path_name": "weight_0", "tensor_meta": 7}}}',
        *(
            json.dumps({"config": {"w": META | {"tensor_meta": TENSOR | change}}}).encode()
            for change in (
                {"dtype": "F32"},
                {"dtype": True},
                {"layout": 1},
                {"sizes": 3},
                {"sizes": [{"as_int": -4}, {"as_int": -6}]},
                {"sizes": [{"as_expr": "s0"}, {"as_int": 6}]},
                {"sizes": [4, 6]},
                {"strides": [{"as_int": 6}]},
                {"storage_offset": None},
                {"sizes": [{"as_int": 1}] * 17, "strides": [{"as_int": 1}] * 17},
                {"sizes": [{"as_int": 10**30}, {"as_int": 6}]},
            )
        ),
        json.dumps({"config": {"w": META | {"path_name": "../weight_0"}}}).encode(),
    ],
    ids=range(21),
)
def test_where_the_json_is_odd_the_storages_are_bytes(config):
    assert summary(torch_export_bytes({"w": A}, configs={"weights": config})) == WHOLE


def test_a_tensor_beyond_its_storage_leaves_it_whole():
    meta = torch_export_meta("weight_0", "F32", (5, 6))
    assert summary(described(w=meta)) == [("program/data/weights/weight_0", "F32", (24,))]


def test_the_json_has_a_largest_size(monkeypatch):
    assert summary(torch_export_bytes({"w": A})) == [("w", "F32", (4, 6))]
    monkeypatch.setattr("casstore.tensors.torch.exported_program.MAX_MARKS", 10)
    assert summary(torch_export_bytes({"w": A})) == WHOLE
    monkeypatch.undo()
    monkeypatch.setattr("casstore.tensors.torch.exported_program.MAX_CONFIG_BYTES", 10)
    assert summary(torch_export_bytes({"w": A})) == WHOLE


def test_big_endian_weights_are_bytes():
    assert summary(torch_export_bytes({"w": A}, byteorder="big")) == WHOLE


def test_another_format_is_unknown():
    assert summary(torch_export_bytes({"w": A}, format_text=b"pt3")) == []


def test_compressed_weights_are_left_out():
    data = torch_export_bytes({"w": A, "b": B}, deflate=["program/data/weights/weight_0"])
    assert summary(data) == [("b", "F16", (5,))]


def test_weights_are_not_read():
    source = BytesSource(torch_export_bytes({f"w{number}": np.zeros(1 << 17, "f4") for number in range(8)}))
    assert len(find_spans(source)) == 8
    assert sum(length for _, length in source.reads) < 100_000
