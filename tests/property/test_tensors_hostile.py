"""Arbitrary and mutated files: nothing raises, nothing is read or found outside the file, no two spans overlap partly."""

from __future__ import annotations

import json

import pytest
from fakes.counts import EXAMPLES
from fakes.hostile_files import SEEDS, check
from fakes.model_files import pickle_of, safetensors_with_header, torch_legacy_bytes, torch_zip_of
from hypothesis import example, given, settings
from hypothesis import strategies as st


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
