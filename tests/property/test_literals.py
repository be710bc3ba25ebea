"""Frames of literals alone: every zstd decoder reads them, and they are as small as a Huffman code makes them."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
import zstandard
from fakes.implementations import COMPILED, agreed
from fakes.payloads import encode_batch
from fakes.weights import WEIGHTS, weights
from hypothesis import given
from hypothesis import strategies as st

from casstore import _build
from casstore.codecs import ElementHint, kernels
from casstore.codecs.zstd import Method, compress, compress_all, decompress_all
from casstore.digest import digest

SIZES = st.one_of(
    st.integers(0, 2000),
    st.sampled_from([255, 256, 65791, 65792, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 300_000]),
    st.integers(2000, 400_000),
)


@st.composite
def skewed(draw):
    """Draw bytes as they occur in planes, at any place: exponents, few values, many values, parts that differ."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(SIZES)
        kind = draw(st.sampled_from(["exponents", "few", "rare", "one", "noise", "high", "all"]))
        if kind == "exponents":
            part = np.clip(random.normal(draw(st.integers(0, 255)), draw(st.floats(0.3, 30)), size), 0, 255)
        elif kind == "few":
            part = random.choice(random.choice(256, draw(st.integers(1, 20)), replace=False), size)
        elif kind == "rare":
            part = np.where(random.random(size) < 0.99, 7, random.integers(0, 256, size))
        elif kind == "one":
            part = np.full(size, draw(st.integers(0, 255)))
        elif kind == "noise":
            part = random.integers(0, 256, size)
        elif kind == "high":
            part = random.integers(draw(st.integers(129, 254)), 256, size)
        else:
            # Counts that double: longer codes than a literal may have.
            part = np.minimum(random.geometric(0.5, size) - 1, 255)
        parts.append(part.astype(np.uint8))
    return np.concatenate(parts)


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    """Use the compiled kernels, also where CASSTORE_KERNELS=numpy turns them off."""
    assert COMPILED is not None, "the kernels were not compiled: is there a compiler?"
    monkeypatch.setattr(_build, "kernels", COMPILED)


@given(st.lists(skewed(), min_size=1, max_size=3))
def test_every_frame_decodes_to_its_bytes_and_none_is_longer(parts):
    frames = kernels.literal_frames(parts)
    for part, frame in zip(parts, frames, strict=True):
        if len(frame) == len(part):
            assert frame is part
            continue
        assert len(frame) < len(part)
        assert zstandard.ZstdDecompressor().decompress(frame.tobytes()) == part.tobytes()
        (plain,) = decompress_all([(memoryview(frame), len(part))])
        assert plain.tobytes() == part.tobytes()


@given(skewed())
def test_a_probe_says_how_long_the_frame_will_be(part):
    (frame,) = kernels.literal_frames([part])
    size = kernels.probe_literals(part).size
    if size:
        assert len(frame) <= size <= len(frame) + 16 * (len(part) // (128 << 10) + 1)
    else:
        assert len(frame) > len(part) - 32 * (len(part) // (128 << 10) + 1)


def best_code(data):
    """Return the bytes that Huffman's own code takes, with codes of any length: the sum of all joined counts, in bits."""
    counts = [int(count) for count in np.bincount(data) if count]
    heapq.heapify(counts)
    total = 0
    while len(counts) > 1:
        joined = heapq.heappop(counts) + heapq.heappop(counts)
        total += joined
        heapq.heappush(counts, joined)
    return total / 8


@pytest.mark.parametrize("spread", [0.7, 2, 8, 25])
@pytest.mark.parametrize("middle", [60, 190])
def test_frames_are_as_small_as_a_code_of_whole_bits_can_be(spread, middle):
    random = np.random.default_rng(3)
    data = np.clip(random.normal(middle, spread, 512 << 10), 0, 255).astype(np.uint8)
    (frame,) = kernels.literal_frames([data])
    # Codes have 11 bits at most, and each block a table.
    assert len(frame) < 1.003 * best_code(data) + 4 * 150
    assert len(frame) < 1.005 * len(compress(data, Method.HUFFMAN))


def test_two_values_by_chance_take_a_bit_each():
    data = np.random.default_rng(5).integers(0, 2, 256 << 10).astype(np.uint8) * 93
    (frame,) = compress_all([data], Method.LITERALS)
    assert len(frame) < len(data) / 8 + 200
    assert len(compress(data, Method.HUFFMAN)) > 1.4 * len(frame)


def test_repeats_are_seen_whatever_their_distance():
    random = np.random.default_rng(6)
    noise = random.integers(0, 256, 4096).astype(np.uint8)
    assert kernels.probe_literals(noise).repeats == 0
    for distance in (301, 302, 303, 304, 1000, 1001):
        again = noise.copy()
        again[distance : 2 * distance] = again[:distance]
        assert kernels.probe_literals(again).repeats > distance / 3


@given(skewed())
def test_numpy_writes_the_frames_that_compiled_kernels_write(part):
    def frame_and_probe():
        (frame,) = kernels.literal_frames([part])
        return frame.tobytes() + repr(kernels.probe_literals(part)).encode()

    agreed(frame_and_probe)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_machine_without_compiled_kernels_writes_the_same_bytes(kind):
    data, width = weights(kind, 3)
    cuts = [(0, len(data) // 2), (len(data) // 2, len(data) - len(data) // 2)]
    hints = [ElementHint(width, -offset % width) if width > 1 else None for offset, _ in cuts]

    def encoded():
        return b"".join(
            bytes([item.encoding]) + bytes(item.payload) for item in encode_batch(data, cuts, hints)
        )

    assert len(agreed(encoded)) <= len(data) + len(cuts)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("squares", 200_000, "624f527327fb453c"),
        ("many", 70_000, "a945cadd9c456b05"),
        ("three", 4_000, "a64759ef5f0ec644"),
    ],
)
def test_frames_stay_as_they_are(name, size, expected):
    number = np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)
    values = {
        "squares": np.sqrt(number % 10_000),
        "many": np.minimum(number % 300, number // 7 % 160),
        "three": number % 7 // 3,
    }
    part = values[name].astype(np.uint8)
    frame = agreed(lambda: kernels.literal_frames([part])[0])
    assert zstandard.ZstdDecompressor().decompress(frame) == part.tobytes()
    assert digest(frame).hex()[:16] == expected


@given(skewed())
def test_columns_have_the_entropy_that_numpy_finds(part):
    found = np.frombuffer(agreed(lambda: np.array(kernels.column_bits(part), np.int64).tobytes()), np.int64)
    whole, counts = found[0] / 65536, np.bincount(part)
    shares = counts[counts > 0] / max(len(part), 1)
    expected = -(shares * np.log2(shares)).sum() * len(part) + max(np.count_nonzero(counts) - 1, 0) / (
        2 * np.log(2)
    )
    assert abs(whole - expected) <= 0.001 * len(part) + 1


def test_frames_without_room_are_refused():
    with pytest.raises(ValueError, match="room"):
        COMPILED.literals((bytes(2000), bytes(2000)), bytearray(COMPILED.literals_room(2000)))
    with pytest.raises(ValueError, match="large"):
        COMPILED.column_bits(np.empty(16 << 20, np.uint8))
    with pytest.raises(TypeError):
        COMPILED.literals((bytes(100), "text"), bytearray(1000))
