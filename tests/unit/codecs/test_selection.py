"""What the encoder chooses for bytes whose best encoding is known, and what that leaves of them."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
from fakes.payloads import decode, encode_batch
from fakes.weights import WEIGHTS, weights

from casstore.codecs import ElementHint, Encoding, batch

# The share that may be left of each kind, encoded in chunks of up to 512 KiB. Order-0 entropy sets the floor.
RATIOS = {
    "fp32": 0.85,
    "bf16": 0.68,
    "fp16": 0.87,
    "fp64": 0.90,
    "int8": 0.87,
    "int64": 0.27,
    "fp32_from_fp16": 0.48,
    "q4_0": 0.94,
    "q8_0": 0.96,
    "q6_k": 0.985,
}
WORDS = [{"id": at, "content": f"token {at * 7919 % 10007}", "special": at % 5 == 0} for at in range(6000)]
TEXT = json.dumps(WORDS, indent=2).encode()


def encode_one(plain, hint=None):
    (encoded,) = encode_batch(plain, [(0, len(plain))], [hint])
    assert len(encoded.payload) <= len(plain)
    assert decode(encoded.encoding, encoded.payload, len(plain)) == plain
    return encoded


def stride_of(encoded):
    assert encoded.encoding is Encoding.PLANES
    return struct.unpack_from("<H", encoded.payload, 2)[0]


def uses_sign(encoded):
    return bool(encoded.payload[1] & 1)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_shrink_by_what_their_type_allows(kind):
    data, width = weights(kind, 3)
    plain = data[: 512 << 10]
    encoded = encode_one(plain, ElementHint(width))
    assert encoded.encoding is (Encoding.ZSTD if kind == "int8" else Encoding.PLANES)
    assert len(encoded.payload) < RATIOS[kind] * len(plain)


def test_the_sign_leaves_the_exponent_of_bfloat16_where_that_pays():
    used = {}
    for kind in ("bf16", "fp16", "fp32"):
        data, width = weights(kind, 3)
        used[kind] = uses_sign(encode_one(data[: 256 << 10], ElementHint(width)))
    assert used == {"bf16": True, "fp16": False, "fp32": False}


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_without_a_hint_the_width_is_found(kind, shift):
    data, width = weights(kind, 4)
    plain = data[shift : shift + (256 << 10)]
    blind = encode_one(plain)
    hinted = encode_one(plain, ElementHint(width, -shift % width))
    assert stride_of(blind) == width
    assert len(blind.payload) < 1.005 * len(hinted.payload)


@pytest.mark.parametrize(
    "hint", [ElementHint(1), ElementHint(2), ElementHint(8), ElementHint(18), ElementHint(300)]
)
@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_a_wrong_hint_costs_little(kind, hint):
    data, width = weights(kind, 5)
    plain = data[: 256 << 10]
    right = len(encode_one(plain, ElementHint(width)).payload)
    assert len(encode_one(plain, hint).payload) < 1.12 * right


@pytest.mark.parametrize("hint", [None, ElementHint(1), ElementHint(2), ElementHint(4), ElementHint(18)])
def test_text_is_zstd_whatever_the_hint(hint):
    encoded = encode_one(TEXT[: 256 << 10], hint)
    assert encoded.encoding is Encoding.ZSTD
    assert len(encoded.payload) < 0.15 * (256 << 10)


@pytest.mark.parametrize("hint", [None, ElementHint(1), ElementHint(4), ElementHint(34, 5)])
@pytest.mark.parametrize("size", [1, 100, 5000, 1 << 18])
def test_noise_is_stored_raw(hint, size):
    noise = os.urandom(size)
    encoded = encode_one(noise, hint)
    assert encoded.encoding is Encoding.RAW
    assert encoded.payload == noise


@pytest.mark.parametrize(
    "hint", [None, ElementHint(1), ElementHint(2), ElementHint(4, 3), ElementHint(144, 9)]
)
@pytest.mark.parametrize("unit", [b"\0", b"\x80", struct.pack("<f", 1.0), struct.pack("<e", 0.5), b"0123456"])
def test_constants_are_tiny(unit, hint):
    plain = (unit * (512 << 10))[: 512 << 10]
    assert len(encode_one(plain, hint).payload) < 400


def test_a_chunk_that_is_zero_but_for_a_few_bytes_is_small():
    plain = bytearray(512 << 10)
    plain[99_999:100_099] = os.urandom(100)
    assert len(encode_one(bytes(plain), ElementHint(4)).payload) < 400


def test_repeated_rows_are_found_in_tensors_too():
    row = np.random.default_rng(1).normal(0, 1, 96).astype("<f4").tobytes()
    assert len(encode_one(row * 1000, ElementHint(4)).payload) < 0.02 * len(row * 1000)


def test_adjacent_chunks_with_the_same_elements_share_a_choice():
    f4, shifted, f2 = ElementHint(4), ElementHint(4, 3), ElementHint(2)
    cuts = [
        (0, 100),
        (100, 101),
        (201, 99),
        (300, 50),
        (360, 40),
        (400, 8),
        (408, 8),
        (416, 1 << 23),
        (1 << 24, 4),
    ]
    hints = [f4, f4, shifted, f4, f4, None, None, f2, f2]
    assert list(batch._stretches(cuts, hints)) == [(0, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9)]
    assert list(batch._stretches([], [])) == []


def test_chunks_of_one_tensor_may_differ():
    size = 256 << 10
    data, width = weights("fp32", 8)
    parts = [data[:size], bytes(size), os.urandom(size), data[size : 2 * size], (data[:400] * 999)[:size]]
    cuts = [(at * size, size) for at in range(len(parts))]
    encoded_batch = encode_batch(b"".join(parts), cuts, [ElementHint(width)] * len(parts))
    left = [len(encoded.payload) / size for encoded in encoded_batch]
    assert max(left[0], left[3]) < RATIOS["fp32"]
    assert left[1] < 0.002
    assert left[2] == 1.0
    assert left[4] < 0.1
    for plain, encoded in zip(parts, encoded_batch, strict=True):
        assert decode(encoded.encoding, encoded.payload, size) == plain


def test_block_types_keep_their_phase_from_chunk_to_chunk():
    data, width = weights("q4_0", 9)
    size = 12_345
    cuts = [(begin, size) for begin in range(0, len(data) - size, size)]
    hints = [ElementHint(width, -begin % width) for begin, _ in cuts]
    encoded_batch = encode_batch(data, cuts, hints)
    assert {stride_of(encoded) for encoded in encoded_batch} == {width}
    phases = [struct.unpack_from("<H", encoded.payload, 4)[0] for encoded in encoded_batch]
    assert phases == [hint.phase for hint in hints]
    assert sum(len(encoded.payload) for encoded in encoded_batch) < 0.96 * len(encoded_batch) * size


def test_an_empty_chunk_is_raw():
    encoded = encode_one(b"")
    assert (encoded.encoding, len(encoded.payload)) == (Encoding.RAW, 0)


def test_encoding_twice_gives_the_same_bytes():
    for kind in WEIGHTS:
        data, width = weights(kind, 6)
        plain = data[: 200 << 10]
        first, second = (encode_one(plain, ElementHint(width)) for _ in range(2))
        assert (first.encoding, bytes(first.payload)) == (second.encoding, bytes(second.payload))
