"""Arbitrary and mutated files: nothing raises, nothing is read or found outside the file, no two spans overlap partly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes.counts import EXAMPLES
from fakes.model_files import (
    BytesSource,
    View,
    gguf_bytes,
    npy_bytes,
    onnx_bytes,
    pickle_of,
    safetensors_bytes,
    safetensors_with_header,
    tflite_bytes,
    torch_export_bytes,
    torch_legacy_bytes,
    torch_views_bytes,
    torch_zip_bytes,
    torch_zip_of,
    zip_bytes,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from casstore.tensors import as_array, clip_spans, find_context_files, find_external_spans, find_spans

TENSORS = {
    "layer.0.weight": np.arange(12, dtype="f4").reshape(3, 4),
    "layer.0.bias": np.arange(3, dtype="f2"),
    "ids": np.arange(4, dtype="i8"),
    "bf16": ("BF16", (2, 2), bytes(range(8))),
}
FUSED = {"0": np.arange(16, dtype="f4")}
SEEDS = {
    "safetensors": safetensors_bytes(TENSORS, metadata={"format": "pt"}),
    "torch": torch_zip_bytes(TENSORS),
    "torch unpadded": torch_zip_bytes(TENSORS, align=1),
    "torch zip64": torch_zip_bytes(TENSORS, zip64=True, align=1),
    "torch legacy": torch_legacy_bytes(TENSORS),
    "torch export": torch_export_bytes(
        {"w": TENSORS["layer.0.bias"]},
        pickled={"p": torch_zip_bytes({"x": TENSORS["ids"]}, align=1)},
        align=1,
    ),
    "torch export before 2.8": zip_bytes(
        {"serialized_state_dict.pt": torch_zip_bytes({"x": TENSORS["ids"]}, align=1)}, align=1
    ),
    "torch views": torch_views_bytes(
        FUSED, {"a": View("0", "F32", 0, (2, 4), (4, 1)), "b": View("0", "F32", 8, (8,), (1,))}, align=1
    ),
    "onnx": onnx_bytes(TENSORS),
    "onnx packed": onnx_bytes(TENSORS, packed_dims=True),
    "onnx external": onnx_bytes(TENSORS, external="model.data"),
    "gguf": gguf_bytes(TENSORS, metadata={"a": "b", "tokens": ["x", "yy"], "n": 3}, alignment=8),
    "gguf big-endian": gguf_bytes(TENSORS, metadata={"a": "b", "tokens": ["x"]}, alignment=8, order=">"),
    "gguf blocks": gguf_bytes({"q": ("Q4_0", (2, 32), bytes(36)), "k": ("Q6_K", (256,), bytes(210))}),
    "tflite": tflite_bytes(TENSORS),
    "tflite behind": tflite_bytes(TENSORS, behind=True, subgraphs=2),
    "npy": npy_bytes(TENSORS["layer.0.weight"]),
    "npz": zip_bytes({f"{name}.npy": npy_bytes(TENSORS[name]) for name in ("ids", "layer.0.bias")}, align=1),
    "npy fortran": npy_bytes(np.asfortranarray(TENSORS["layer.0.weight"])),
}


class StrictSource(BytesSource):
    """Refuses to be asked for bytes beyond its end or for more than a header could need."""

    def read(self, offset, length):
        assert 0 <= offset <= offset + length <= self.size
        return super().read(offset, length)


def check_invariants(spans, size):
    covered = (0, 0)
    assert len({span.name for span in spans}) == len(spans)
    for span in spans:
        assert 0 <= span.begin <= span.end <= size
        assert span.begin >= covered[1] or (span.begin, span.end) == covered
        if span.begin < span.end:
            covered = (span.begin, span.end)
        assert span.dtype
        span.name.encode()
        assert len(span.shape) <= 16
        assert min(span.shape, default=0) >= 0


def check(data):
    source = StrictSource(data)
    spans = find_spans(source)
    check_invariants(spans, len(data))
    for span in spans:
        as_array(data[span.begin : span.end], span.dtype, span.shape)
    for name in find_context_files(StrictSource(data)):
        assert name
        assert ".." not in name.split("/")
    for location, external in find_external_spans(StrictSource(data)).items():
        assert ".." not in location.split("/")
        check_invariants(clip_spans(external, 256), 256)
    return spans


@given(st.binary(max_size=400))
def test_arbitrary_bytes(data):
    check(data)


PREFIXES = [
    torch_legacy_bytes({})[:15],
    torch_legacy_bytes({})[:20],
    b"GGUF\3\0\0\0",
    b"GGUF\0\0\0\3",
    b"GGUF\0\0\0\3" + (1).to_bytes(8, "big") + bytes(8),
    b"GGUF\3\0\0\0" + (1).to_bytes(8, "little") + bytes(8),
    b"PK\3\4",
    b"\x93NUMPY\1\0",
    b"\x10\0\0\0TFL3",
    b"\x0c\0\0\0TFL3\4\0\4\0\4\0\0\0",
    b"\x08\x0a",
    b"\x08\x0a\x3a",
    b"\x20\0\0\0\0\0\0\0{",
]


@given(st.sampled_from(PREFIXES), st.binary(max_size=300))
def test_arbitrary_bytes_behind_a_magic(prefix, data):
    check(prefix + data)


@st.composite
def mutations(draw, seed):
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "set", "cut", "drop", "insert", "copy", "splice", "large"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x2D, 0x39]))
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=20))
            case "copy":
                begin = draw(st.integers(0, max(0, len(data) - 1)))
                length = draw(st.integers(1, 60))
                data[at : at + length] = data[begin : begin + length]
            case "splice":
                other = SEEDS[draw(st.sampled_from(sorted(SEEDS)))]
                data[at:] = other[draw(st.integers(0, len(other) - 1)) :]
            case "large":
                width = draw(st.sampled_from([2, 4, 8]))
                value = draw(
                    st.sampled_from([(1 << 8 * width) - 1, 1 << (8 * width - 1), 1 << (4 * width), 0])
                )
                data[at : at + width] = value.to_bytes(width, "little")
    return bytes(data)


@pytest.mark.parametrize("seed", SEEDS)
@settings(max_examples=max(150, EXAMPLES))
@given(st.data())
def test_mutated_files(seed, data):
    check(data.draw(mutations(SEEDS[seed])))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_header_byte_flipped(seed):
    # Deterministic, for what random mutation reaches rarely: each bit pattern once at every early place.
    data = SEEDS[seed]
    for at in range(min(len(data), 700)):
        for value in (0, 0xFF, data[at] ^ 0x01, data[at] ^ 0x80):
            check(data[:at] + bytes([value]) + data[at + 1 :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.integers(-2, 40) | st.integers()
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "I4", "NEW", ""]) | JSON,
        "shape": st.lists(NUMBERS, max_size=3) | JSON,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    }
)


@given(st.dictionaries(st.text(max_size=4), ENTRIES | JSON, max_size=4))
def test_safetensors_headers_of_any_json(header):
    check(safetensors_with_header(json.dumps(header).encode(), bytes(40)))


PICKLE_PIECES = [
    *(bytes([opcode]) for opcode in range(256)),
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"X\7\0\0\0storage",
    b"X\1\0\0\x000",
    b"K\0",
    b"K\4",
    b"K\1",
    b"\x85",
    b"\x86",
    b"Q",
    b"R",
    b"(",
    b"t",
    b"h\0",
    b"q\0",
]
VIEW = (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"
    b"K\0K\4\x85K\1\x85\x89NtR"
)


@settings(max_examples=max(400, EXAMPLES))
@given(st.lists(st.sampled_from([*PICKLE_PIECES, VIEW]), max_size=40))
@example([b"]", VIEW, b"a"])
def test_arbitrary_pickles(pieces):
    spans = check(torch_zip_of(pickle_of(b"".join(pieces)), {"0": bytes(16), "1": bytes(7)}, align=1))
    # The zip says where storages are, whatever the pickle says about them.
    assert sum(span.end - span.begin for span in {(s.begin, s.end): s for s in spans}.values()) <= 23
    assert any(span.end - span.begin == 7 for span in spans)
