"""Any range of any permutation of any tensor, whole or in parts, is what numpy makes of it."""

from __future__ import annotations

import itertools
import math
import struct
import time
import tracemalloc

import numpy as np
import pytest
from fakes.implementations import COMPILED, agreed
from fakes.payloads import decode
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs import Encoding
from casstore.codecs.delta import Extent, encode_delta, piece_of, transpose, transpose_step
from casstore.codecs.delta.operations import OPERATIONS
from casstore.codecs.delta.operations.transpose import simplified
from casstore.errors import FormatError

MIB = 1 << 20


def made(step, parts):
    """Return what the operation makes, after its check."""
    operation = OPERATIONS[step.operation, step.version]
    size = operation.size(step.parameters, [sum(map(len, parts))])
    found = agreed(lambda: operation.apply(step.parameters, [parts]))
    assert len(found) == size
    return found


@st.composite
def tensors(draw):
    """Return a shape of few or many axes, a permutation, and a width."""
    rank = draw(st.integers(1, 8))
    most = {1: 3000, 2: 150, 3: 24}.get(rank, 5)
    shape = draw(st.lists(st.integers(1, most), min_size=rank, max_size=rank))
    return tuple(shape), tuple(draw(st.permutations(range(rank)))), draw(st.sampled_from([1, 2, 4, 8]))


@given(tensors(), st.data())
def test_ranges_of_permuted_tensors_are_what_numpy_makes(tensor, data):
    shape, permutation, width = tensor
    elements = math.prod(shape)
    seed = data.draw(st.integers(0, 99))
    plain = np.random.default_rng(seed).integers(0, 256, elements * width + 1, np.uint8)[1:]
    first = data.draw(st.integers(0, elements - 1))
    count = data.draw(st.one_of(st.just(elements - first), st.integers(1, elements - first)))
    # Chunks end where elements do, mostly.
    unit = data.draw(st.sampled_from([width, width, 1]))
    cuts = data.draw(st.lists(st.integers(1, max(1, len(plain) // unit - 1)), max_size=5))
    edges = sorted({0, len(plain), *(cut * unit for cut in cuts if cut * unit < len(plain))})
    parts = [plain[begin:end] for begin, end in itertools.pairwise(edges)]
    step = transpose_step(0, width=width, shape=shape, permutation=permutation, first=first, count=count)
    expected = plain.view(f"<u{width}").reshape(shape).transpose(permutation).ravel()[first : first + count]
    assert made(step, parts) == expected.tobytes()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@given(st.data())
def test_large_matrices_in_small_parts(width, data):
    """So that bands, lines and edges of parts meet in all ways."""
    rows, columns = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    plain = np.random.default_rng(rows).integers(0, 256, rows * columns * width, np.uint8)
    size = width * data.draw(st.integers(1, 3 * columns))
    size = max(size, len(plain) // 200 // width * width + width)
    parts = [plain[at : at + size] for at in range(0, len(plain), size)]
    first = data.draw(st.integers(0, rows * columns - 1))
    step = transpose_step(
        0, width=width, shape=(rows, columns), permutation=(1, 0), first=first, count=rows * columns - first
    )
    expected = plain.view(f"<u{width}").reshape(rows, columns).T.ravel()[first:]
    assert made(step, parts) == expected.tobytes()


@given(tensors())
def test_fewer_axes_move_elements_in_the_same_way(tensor):
    shape, permutation, _ = tensor
    plain = np.arange(math.prod(shape))
    fewer, order = simplified(shape, permutation)
    assert len(fewer) == 1 or 1 not in fewer
    assert len(fewer) == 1 or all(one + 1 != other for one, other in itertools.pairwise(order))
    one, other = plain.reshape(shape).transpose(permutation), plain.reshape(fewer).transpose(order)
    assert np.array_equal(one.ravel(), other.ravel())


def test_a_tensor_is_read_from_many_bases_and_comes_back():
    plain = np.random.default_rng(1).normal(size=(70, 90)).astype("<f4")
    whole = plain.tobytes()
    bases = [whole[:9000], whole[9000:20_000], whole[20_000:]]
    extents = [Extent(at, 0, len(base)) for at, base in enumerate(bases)]
    target = np.ascontiguousarray(plain.T).tobytes()[4000:16_000]
    piece = transpose(0, extents, width=4, shape=(70, 90), permutation=(1, 0), first=1000, count=3000)
    payload = encode_delta(target, bases, [piece])
    assert len(payload) < 200
    assert decode(Encoding.DELTA, payload, len(target), bases) == target


def parameters(*, width=4, rank=2, spare=0, first=0, count=6, shape=(2, 3), permutation=(1, 0)):
    return struct.pack("<BBHII", width, rank, spare, first, count) + b"".join(
        [struct.pack(f"<{len(shape)}I", *shape), bytes(permutation)]
    )


HOSTILE = [
    b"",
    parameters()[:-1],
    parameters() + b"\0",
    parameters(width=3),
    parameters(width=0),
    parameters(rank=0, shape=(), permutation=()),
    parameters(rank=9, shape=(1,) * 9, permutation=range(9)),
    parameters(rank=3),
    parameters(spare=1),
    parameters(count=0),
    parameters(count=7),
    parameters(first=6, count=1),
    parameters(first=1 << 31, count=1 << 31),
    parameters(shape=(2, 0), count=1),
    parameters(shape=(1 << 31, 1 << 31)),
    parameters(rank=8, shape=(0xFFFFFFFF,) * 8, permutation=range(8)),
    parameters(shape=(3, 3)),
    parameters(permutation=(0, 0)),
    parameters(permutation=(1, 2)),
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_absurd_parameters_are_refused_at_once(hostile):
    good = transpose_step(0, width=4, shape=(2, 3), permutation=(1, 0), first=0, count=6)
    assert good.parameters == parameters()
    with pytest.raises(FormatError):
        piece_of(0, [[Extent(0, 0, 24)]], [good._replace(parameters=hostile)])


def test_the_cost_is_that_of_the_range():
    parts = [np.zeros(MIB, np.uint8)] * 64
    step = transpose_step(0, width=4, shape=(4096, 4096), permutation=(1, 0), first=0, count=4096)
    begun = time.thread_time()
    tracemalloc.start()
    OPERATIONS[3, 1].apply(step.parameters, [parts])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MIB
    assert time.thread_time() - begun < 1


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.transpose((bytes(24),), bytearray(24), 3, (3, 2), (1, 3), 0),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (3, 3), (1, 3), 0),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (3, 2), (2, 3), 0),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (3, 2), (1, 3), 1),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (3, 2), (1, 3), -1),
        lambda c: c.transpose((bytes(24),), bytearray(4), 4, (3, 2), (1, 3), 7),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (3, 2), (1,), 0),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (3, 0), (1, 3), 0),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (3, 2), (-1, 3), 0),
        lambda c: c.transpose((bytes(22), bytes(2)), bytearray(24), 4, (3, 2), (1, 3), 0),
        lambda c: c.transpose((bytes(24), b""), bytearray(24), 4, (3, 2), (1, 3), 0),
        lambda c: c.transpose((), bytearray(24), 4, (3, 2), (1, 3), 0),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (1 << 40, 1 << 40), (1, 1), 0),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (1 << 62, 2), (1, 1), 0),
        lambda c: c.transpose((bytes(24),), bytearray(24), 4, (), (), 0),
    ],
)
def test_compiled_transposes_refuse_what_does_not_fit(call):
    with pytest.raises(ValueError, match="fit"):
        call(COMPILED)
