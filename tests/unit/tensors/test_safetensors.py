from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from fakes.model_files import BytesSource, safetensors_bytes, safetensors_with_header

from casstore.tensors import find_spans


def spans_of(header, payload=bytes(16)):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return find_spans(BytesSource(safetensors_with_header(raw, payload)))


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_sound_header():
    (span,) = spans_of({"a": entry()})
    assert (span.name, span.dtype, span.shape, span.end - span.begin) == ("a", "F32", (2,), 8)


def test_tied_weights_share_their_range():
    assert [span.name for span in spans_of({"b": entry(), "a": entry()})] == ["a", "b"]


def test_zero_length_tensors_are_kept():
    data = safetensors_bytes({"e": np.zeros((0, 3), "f4"), "x": np.zeros(2, "f4"), "f": np.zeros(0, "i8")})
    assert [(s.name, s.end - s.begin) for s in find_spans(BytesSource(data))] == [
        ("e", 0),
        ("x", 8),
        ("f", 0),
    ]


def test_a_type_that_is_newer_than_this_code_is_kept_by_name():
    (span,) = spans_of({"a": entry(dtype="F3_E1M1", shape=(99,))})
    assert (span.dtype, span.shape) == ("F3_E1M1", (99,))


def test_a_file_without_tensors():
    assert spans_of({}, b"") == ()
    assert spans_of({"__metadata__": {"a": "b"}}, b"") == ()


def test_metadata_is_no_tensor():
    assert [s.name for s in spans_of({"__metadata__": {"dtype": "F32"}, "a": entry()})] == ["a"]


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(offsets=(0, 17), dtype="U8", shape=(17,))},
        {"a": entry(offsets=(-8, 0))},
        {"a": entry(offsets=(8, 0))},
        {"a": entry(offsets=(0, 1 << 70))},
        {"a": entry(offsets=(0, 4))},
        {"a": entry(offsets=(0, 8, 16))},
        {"a": entry(offsets=(0.0, 8.0))},
        {"a": entry(offsets=(False, 8))},
        {"a": entry(shape=(True, 2))},
        {"a": entry(shape=(-1, -2))},
        {"a": entry(shape=(2.0,))},
        {"a": entry(shape=("2",))},
        {"a": entry(dtype="f32")},
        {"a": entry(dtype="")},
        {"a": entry(dtype=4)},
        {"a": entry(dtype="F" * 40)},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "F32", "shape": {"0": 2}, "data_offsets": [0, 8]}},
        {"a": [1, 2]},
        {"a": None},
        {"__metadata__": 3, "a": entry()},
        {"a": entry(), "b": entry(offsets=(4, 12))},
        {"n" * 5000: entry()},
        {"\ud800": entry()},
    ],
)
def test_broken_entries_make_the_file_unknown(header):
    assert spans_of(header) == ()


ENTRY = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}",
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,Infinity]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,1e9999]}}',
        b'{"a":' + ENTRY + b"} trailing",
        b'{"\xff":' + ENTRY + b"}",
        b'{"a":',
        b'{"a":' + b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"9" * 100_000 + b"}",
        b'{"a":-' + b"9" * 5_000_000 + b"}",
        b'{"a":[' + b"[]," * 6_100_000 + b"[]]}",
    ],
    ids=range(13),
)
def test_hostile_headers_make_the_file_unknown(header):
    assert spans_of(header) == ()


@pytest.mark.parametrize("length", [0, 1, 10**6, 1 << 40, (1 << 64) - 1])
def test_a_header_length_that_the_file_cannot_hold(length):
    data = struct.pack("<Q", length) + b'{"a":' + ENTRY + b"}" + bytes(16)
    source = BytesSource(data)
    assert find_spans(source) == ()
    assert all(asked <= 8192 for _, asked in source.reads)


def test_only_the_header_is_read():
    data = safetensors_bytes({"a": np.zeros(1 << 20, "f4")})
    source = BytesSource(data)
    assert len(find_spans(source)) == 1
    assert sum(length for _, length in source.reads) < 1000
