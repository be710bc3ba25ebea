from __future__ import annotations

import struct

import numpy as np
import pytest
from fakes.model_files import BytesSource, gguf_bytes

from casstore.tensors import DTYPES, find_spans

PLAIN = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.arange(5, dtype="f2")}


def summary(data):
    return [(s.name, s.dtype, s.shape, s.begin, s.end) for s in find_spans(BytesSource(data))]


@pytest.mark.parametrize("version", [2, 3])
def test_versions(version):
    spans = find_spans(BytesSource(gguf_bytes(PLAIN, version=version)))
    assert [(s.name, s.dtype, s.shape) for s in spans] == [("a", "F32", (2, 3)), ("b", "F16", (5,))]
    assert all(span.begin % 32 == 0 for span in spans)


@pytest.mark.parametrize("version", [0, 1, 4, 2 << 24, 3 << 24])
def test_other_versions_and_mixed_byte_orders_are_unknown(version):
    assert summary(gguf_bytes(PLAIN, version=version)) == []


def test_big_endian_tensors_are_bytes():
    tensors = {"a": PLAIN["a"].astype(">f4"), "i": np.arange(6, dtype="i1").reshape(2, 3)}
    blocks = {"q": ("Q8_0", (2, 32), bytes(range(68)))}
    metadata = {"k": "text", "n": 7, "tokens": ["x", "yy"], "numbers": [1, 2]}
    data = gguf_bytes(tensors | blocks, order=">", metadata=metadata, alignment=64)
    spans = {span.name: span for span in find_spans(BytesSource(data))}
    assert {name: (s.dtype, s.shape) for name, s in spans.items()} == {
        "a": ("U8", (24,)),
        "i": ("I8", (2, 3)),
        "q": ("U8", (68,)),
    }
    assert all(span.begin % 64 == 0 for span in spans.values())
    assert data[spans["q"].begin : spans["q"].end] == bytes(range(68))


@pytest.mark.parametrize("version", [1, 2, 4])
def test_only_version_3_is_big_endian(version):
    assert summary(gguf_bytes(PLAIN, version=version, order=">")) == []


def test_block_types_keep_their_bytes():
    tensors = {}
    for name, dtype in DTYPES.items():
        if dtype.block_elements >= 32:
            length = 6 * dtype.block_bytes
            tensors[name] = (name, (3, 2 * dtype.block_elements), np.random.default_rng(1).bytes(length))
    assert len(tensors) > 20
    data = gguf_bytes(tensors)
    spans = find_spans(BytesSource(data))
    assert {span.name for span in spans} == set(tensors)
    for span in spans:
        assert span.dtype == span.name
        assert data[span.begin : span.end] == tensors[span.name][2]


def test_alignment_comes_from_the_metadata():
    spans = find_spans(BytesSource(gguf_bytes(PLAIN, alignment=256)))
    assert len(spans) == 2
    assert all(span.begin % 256 == 0 for span in spans)


@pytest.mark.parametrize("alignment", [0, 3, 1 << 21])
def test_an_absurd_alignment(alignment):
    data = bytearray(gguf_bytes(PLAIN, alignment=64))
    at = data.index(b"general.alignment") + len(b"general.alignment") + 4
    data[at : at + 4] = struct.pack("<I", alignment)
    assert summary(bytes(data)) == []


def test_an_alignment_is_a_power_of_two():
    assert summary(gguf_bytes(PLAIN, alignment=64)) != []
    assert summary(gguf_bytes(PLAIN, alignment=48)) == []


def test_the_number_of_strings_has_a_limit(monkeypatch):
    monkeypatch.setattr("casstore.tensors.gguf.MAX_STRINGS", 10)
    assert summary(gguf_bytes(PLAIN, metadata={"a": ["x"] * 5, "b": ["y"] * 5})) != []
    assert summary(gguf_bytes(PLAIN, metadata={"a": ["x"] * 5, "b": ["y"] * 6})) == []
    assert summary(gguf_bytes(PLAIN, metadata={"a": [[]] * 11})) == []


def test_the_header_has_a_largest_size(monkeypatch):
    monkeypatch.setattr("casstore.tensors.gguf.MAX_HEADER_BYTES", 1000)
    assert summary(gguf_bytes(PLAIN, metadata={"a": "x" * 100})) != []
    assert summary(gguf_bytes(PLAIN, metadata={"a": "x" * 1000})) == []


def test_metadata_of_every_kind_is_stepped_over():
    values = {
        "text": "x" * 1000,
        "long text": "y" * 100_000,
        "flag": True,
        "count": 7,
        "rate": 0.5,
        "tokens": [f"token {i}" for i in range(50_000)],
        "scores": [0.25] * 10_000,
        "empty": [],
        "nested": [["a", "b"], ["c"]],
    }
    assert [s[0] for s in summary(gguf_bytes(PLAIN, metadata=values))] == ["a", "b"]


def test_a_type_that_is_not_known_reaches_to_the_next_tensor():
    data = gguf_bytes(
        {"a": np.arange(6, dtype="f4"), "new": ("F32", (3,), bytes(50)), "b": np.zeros(4, "f4")}
    )
    assert summary(data) != []
    data = gguf_bytes(
        {"a": np.arange(6, dtype="f4"), "new": ("F32", (3,), bytes(50)), "b": np.zeros(4, "f4")},
        type_numbers={"new": 77},
    )
    found = {span.name: span for span in find_spans(BytesSource(data))}
    assert (found["new"].dtype, found["new"].shape) == ("U8", (64,))
    assert found["new"].end == found["b"].begin


def test_an_unknown_type_at_the_end_reaches_to_the_end_of_the_file():
    data = gguf_bytes({"new": ("F32", (3,), bytes(40))}, type_numbers={"new": 77})
    (span,) = find_spans(BytesSource(data))
    assert span.end == len(data)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ("Q4_0", (2, 33), bytes(36))},
        {"a": ("Q4_0", (64, 1), bytes(36))},
        {"a": ("F32", (100,), bytes(40))},
        {"a": ("F32", (1 << 62, 1 << 62), bytes(40))},
        {"n" * 5000: np.zeros(4, "f4")},
    ],
)
def test_absurd_tensors_make_the_file_unknown(tensors):
    assert summary(gguf_bytes(tensors)) == []


def test_one_name_twice_makes_the_file_unknown():
    data = gguf_bytes({"aa": np.zeros(8, "f4"), "ab": np.zeros(8, "f4")})
    assert len(summary(data)) == 2
    assert summary(data.replace(b"ab", b"aa")) == []


def test_offsets_are_aligned_and_inside():
    data = gguf_bytes(PLAIN)
    at = data.index(b"b" + struct.pack("<I", 1)) + 1 + 4 + 8 + 4
    for offset in (1, 33, 1 << 40, (1 << 64) - 32):
        assert summary(data[:at] + struct.pack("<Q", offset) + data[at + 8 :]) == []


def head(tensors, metadata):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, metadata)


KEY = struct.pack("<Q1s", 1, b"k")


@pytest.mark.parametrize(
    "data",
    [
        head(1 << 60, 0),
        head(0, 1 << 60),
        head(1_000_001, 0),
        head(1, 1) + KEY + struct.pack("<I", 13),
        head(1, 1) + KEY + struct.pack("<IQ", 8, 1 << 63),
        head(1, 1) + KEY + struct.pack("<IIQ", 9, 0, 1 << 63),
        head(1, 1) + KEY + struct.pack("<IIQ", 9, 8, 1 << 63),
        head(1, 1) + KEY + struct.pack("<IIQ", 9, 8, 3_000) + struct.pack("<Q", 1 << 63),
        head(1, 1) + KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 1000,
        head(1, 1) + KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1 << 40) * 10,
        head(1, 0) + KEY + struct.pack("<I", 17),
    ],
    ids=range(11),
)
def test_hostile_headers_make_the_file_unknown(data):
    source = BytesSource(data + bytes(4096))
    assert find_spans(source) == ()
    assert all(offset + length <= source.size for offset, length in source.reads)


def test_a_vocabulary_only_file_has_no_tensors():
    assert summary(gguf_bytes({}, metadata={"tokens": ["a", "b"]})) == []
