"""What sketches tell of tensors: compiled kernels give the numbers that numpy gives, and those are about the true ones."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs import logarithms
from casstore.codecs.delta import Order
from casstore.store.adding.bases.planning.file_relations import read_ranges
from casstore.store.adding.bases.tensors import likeness
from tests.fakes.implementations import COMPILED, using


def both(call):
    """Return what `call` returns, which is the same with and without compiled kernels."""
    assert COMPILED is not None, "the kernels were not compiled: is there a compiler?"
    found = []
    for kernels in (COMPILED, None):
        with using(kernels):
            found.append(call())
    compiled, numpy = found
    assert np.array_equal(compiled, numpy) if isinstance(numpy, np.ndarray) else compiled == numpy
    return numpy


@st.composite
def elements(draw, least=1):
    """Draw elements, others that are equal, near or far, and the order of their type."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    width = draw(st.sampled_from([1, 2, 4, 8]))
    count = draw(st.integers(least, 300))
    words = random.integers(0, 256, count * width, np.uint8).view(f"<u{width}")
    kind = draw(st.sampled_from(["equal", "near", "far", "one", "edges"]))
    others = words.copy()
    if kind == "near":
        others += random.integers(0, 5, count).astype(others.dtype)
    elif kind == "far":
        others = random.integers(0, 256, count * width, np.uint8).view(f"<u{width}")
    elif kind == "one":
        others[random.integers(0, count)] ^= 1
    elif kind == "edges":
        edges = np.array(
            [0, 1, (1 << (8 * width - 1)) - 1, 1 << (8 * width - 1), (1 << (8 * width)) - 1], np.uint64
        )
        words, others = (random.choice(edges, count).astype(f"<u{width}") for _ in range(2))
    return words, others, draw(st.sampled_from(Order))


@given(st.lists(st.integers(1, (1 << 64) - 1), min_size=1, max_size=50))
def test_logarithms_are_nearly_exact(values):
    numbers = np.array(values, np.uint64)
    exact = np.array([np.log2(float(value)) for value in values])
    found = logarithms.logs(numbers) / logarithms.ONE
    assert np.all(np.abs(found - exact) < 1e-4)


@given(elements())
def test_entropies_agree(drawn):
    words, _, _ = drawn
    found = both(lambda: likeness.share_of(likeness.entropy(words), words))
    count, width = len(words), words.dtype.itemsize
    exact = 0.0
    for column in words.view(np.uint8).reshape(count, width).T:
        seen = np.bincount(column)
        shares = seen[seen > 0] / count
        exact += min(8, -(shares * np.log2(shares)).sum() + (len(shares) - 1) / (2 * count * np.log(2)))
    assert found == pytest.approx(exact / (8 * width), abs=1e-3)


@given(elements(), st.integers(0, 300), st.integers(0, 70))
def test_comparisons_agree(drawn, first, bits):
    words, others, order = drawn
    first = min(first, len(words))
    limit = bits * first * logarithms.ONE
    found = both(lambda: likeness.compare(words, others, order, first=first, limit=limit))
    residuals = likeness.differences(words, others, order)
    if found is None:
        assert np.log2(residuals[:first].astype(float) + 1).sum() > bits * first - 0.1
    elif not residuals.any():
        assert found == 0
    else:
        assert found == likeness.entropy(residuals)


@given(elements(), st.integers(0, 4))
def test_distances_agree(drawn, rows):
    words, others, order = drawn
    table = np.stack([np.roll(others, row) for row in range(rows)]) if rows else others[None][:0]
    found = both(lambda: likeness.distances(words, table, order))
    for row, distance in zip(table, found, strict=True):
        exact = np.log2(likeness.differences(words, row, order).astype(np.float64) + 1).mean()
        assert distance == pytest.approx(exact, abs=1e-3)


@given(elements(least=16))
def test_signs_agree(drawn):
    words, _, _ = drawn
    found = both(lambda: likeness.top_bits(words, 16))
    step = len(words) // 16
    tops = [int(words[step * at]) >> (8 * words.dtype.itemsize - 1) for at in range(16)]
    assert found == sum(top << at for at, top in enumerate(tops))


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 60)), max_size=20))
def test_ranges_of_a_file_agree(ranges):
    data = bytes(range(100))
    descriptor = os.memfd_create("ranges")
    try:
        os.write(descriptor, data)
        found = both(lambda: bytes(read_ranges(descriptor, np.array(ranges, np.int64).reshape(-1, 2), "it")))
    finally:
        os.close(descriptor)
    assert found == b"".join(data[at : at + length].ljust(length, b"\0") for at, length in ranges)


def test_the_kernels_refuse_what_does_not_fit():
    assert COMPILED is not None
    four, three = np.zeros(4, "<u4"), np.zeros(3, "<u4")
    room = np.zeros(1, np.uint64)
    refused = [
        lambda: COMPILED.sketch_entropy(four, 3),
        lambda: COMPILED.sketch_entropy(four[:0], 4),
        lambda: COMPILED.sketch_compare(four, three, 4, True, 1, 0),
        lambda: COMPILED.sketch_compare(four, four, 4, True, 5, 0),
        lambda: COMPILED.sketch_compare(four, four, 4, True, -1, 0),
        lambda: COMPILED.sketch_distances(four, three, room, 4, True),
        lambda: COMPILED.sketch_distances(four, np.zeros(8, "<u4"), room, 4, True),
        lambda: COMPILED.sketch_signs(four, 4, 5),
        lambda: COMPILED.sketch_signs(four, 4, 0),
        lambda: COMPILED.read_ranges(0, np.array([0, 9]), bytearray(8)),
        lambda: COMPILED.read_ranges(0, np.array([0, -1]), bytearray(8)),
        lambda: COMPILED.read_ranges(0, np.array([-1, 8]), bytearray(8)),
        lambda: COMPILED.read_ranges(0, np.array([0]), bytearray(8)),
    ]
    for call in refused:
        with pytest.raises(ValueError, match=r"elements|ranges|room"):
            call()
    with pytest.raises(OSError, match="Bad file descriptor"):
        COMPILED.read_ranges(-1, np.array([0, 8]), bytearray(8))
