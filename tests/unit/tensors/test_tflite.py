from __future__ import annotations

import struct

import numpy as np
import pytest
from fakes.model_files import BytesSource, tflite_bytes

from casstore.tensors import find_spans

A = np.arange(24, dtype="f4").reshape(4, 6)
B = np.arange(5, dtype="i1")
PLAIN = {"a": A, "b": B}


def summary(data):
    return [(s.name, s.dtype, s.shape) for s in find_spans(BytesSource(data))]


@pytest.mark.parametrize("behind", [False, True])
def test_constants_have_spans(behind):
    data = tflite_bytes(PLAIN, behind=behind)
    assert summary(data) == [("a", "F32", (4, 6)), ("b", "I8", (5,))]
    assert [data[s.begin : s.end] for s in find_spans(BytesSource(data))] == [A.tobytes(), B.tobytes()]


def test_subgraphs_may_share_buffers():
    assert [name for name, _, _ in summary(tflite_bytes(PLAIN, subgraphs=2))] == ["a", "a#2", "b", "b#2"]


def test_tensors_that_the_shape_does_not_describe_are_bytes():
    data = tflite_bytes(
        {"sparse": ("F32", (100,), bytes(24)), "text": A, "four": ("I4", (3,), b"ab")},
        type_numbers={"text": 5},
    )
    assert summary(data) == [("sparse", "U8", (24,)), ("text", "U8", (96,)), ("four", "I4", (3,))]


def test_empty_buffers_and_placeholders_have_no_span():
    assert summary(tflite_bytes({"e": np.zeros((0, 3), "f4"), "a": A})) == [("a", "F32", (4, 6))]
    assert summary(tflite_bytes({"e": np.zeros(1, "i1"), "a": A}, behind=True)) == [("a", "F32", (4, 6))]


def test_a_tensor_without_a_name_has_its_buffers():
    assert summary(tflite_bytes({"": A})) == [("buffer/1", "F32", (4, 6))]


def test_a_list_of_fields_may_lie_behind_its_table():
    # The list of the model's fields moves to the end of the file.
    data = bytearray(tflite_bytes(PLAIN))
    (table,) = struct.unpack_from("<I", data)
    (back,) = struct.unpack_from("<i", data, table)
    fields = data[table - back : table - back + 14]
    data += bytes(-len(data) % 4)
    struct.pack_into("<i", data, table, table - len(data))
    assert summary(bytes(data + fields)) == summary(tflite_bytes(PLAIN))
    assert summary(bytes(data)) == []


@pytest.mark.parametrize(
    "tensors",
    [
        {"n" * 5000: A},
        {"a": ("F32", (1,) * 17, bytes(4))},
        {"a": ("F32", (-1, -1), bytes(4))},
    ],
)
def test_absurd_tensors_make_the_file_unknown(tensors):
    assert summary(tflite_bytes(tensors)) == []


def test_a_name_that_is_not_utf_8_makes_the_file_unknown():
    assert summary(tflite_bytes({"name": A})) != []
    assert summary(tflite_bytes({"name": A}).replace(b"name", b"nam\xff")) == []


def test_the_numbers_of_tensors_and_subgraphs_have_limits(monkeypatch):
    assert len(summary(tflite_bytes(PLAIN, subgraphs=3))) == 6
    monkeypatch.setattr("casstore.tensors.tflite.MAX_SUBGRAPHS", 2)
    assert summary(tflite_bytes(PLAIN, subgraphs=3)) == []
    monkeypatch.setattr("casstore.tensors.tflite.MAX_SPANS", 5)
    assert summary(tflite_bytes(PLAIN, subgraphs=2)) == []
    assert len(summary(tflite_bytes(PLAIN))) == 2


def test_a_walk_to_and_fro_ends(monkeypatch):
    data = tflite_bytes({f"t{number}": np.zeros(5000, "f4") for number in range(200)})
    assert len(summary(data)) == 200
    monkeypatch.setattr("casstore.tensors.window.MAX_PAGES", 100)
    assert summary(data) == []


def test_buffers_are_not_read():
    source = BytesSource(tflite_bytes({f"t{number}": np.zeros(1 << 18, "f4") for number in range(8)}))
    assert len(find_spans(source)) == 8
    assert sum(length for _, length in source.reads) < 400_000
