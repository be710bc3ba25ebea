"""Payloads follow format/README.md: a second decoder, written from that page byte by byte, reads them alike."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
import zstandard
from fakes.implementations import COMPILED, using
from fakes.payloads import decode_into, encode_batch
from fakes.weights import WEIGHTS, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore import _build
from casstore.codecs import ElementHint, Encoding, kernels, regroup
from casstore.codecs.kernels import RunData


def decode_by_the_page(payload, raw):
    version, flags, stride, phase, runs, zero = struct.unpack_from("<BBHHBB", payload)
    assert (version, zero) == (1, 0)
    assert flags in {0, 1}
    count = (raw - phase) // stride
    table = [struct.unpack_from("<HBBI", payload, 8 + 8 * at) for at in range(runs)]
    at = 8 + 8 * runs
    head = payload[at : at + phase]
    at += phase
    tail = payload[at : at + (raw - phase) % stride]
    at += len(tail)
    elements = [bytearray() for _ in range(count)]
    for columns, mode, zero, stored in table:
        assert zero == 0
        body = payload[at : at + stored]
        at += stored
        if mode == 1:
            body = zstandard.ZstdDecompressor().decompress(body)
        elif mode == 2:
            body *= count
        assert len(body) == columns * count
        for row, element in enumerate(elements):
            element.extend(body[row * columns : (row + 1) * columns])
    assert at == len(payload)
    if flags & 1:
        assert stride in {2, 4}
        for element in elements:
            top = element[-1] << 7 | (element[-2] & 0x7F) | (element[-2] & 0x80) << 8
            element[-2:] = struct.pack("<H", top)
    return head + b"".join(elements) + tail


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("shift", [0, 3])
def test_what_the_encoder_writes_reads_by_the_page(kind, shift):
    data, width = weights(kind, 7)
    plain = data[shift : shift + 30_001]
    hint = ElementHint(width, -shift % width) if width > 1 else ElementHint(8)
    (encoded,) = encode_batch(plain, [(0, len(plain))], [hint])
    if encoded.encoding is Encoding.PLANES:
        assert decode_by_the_page(bytes(encoded.payload), len(plain)) == plain
    else:
        assert kind == "int8"


SPLITS = {2: [(1, 1), (2,)], 4: [(2, 1, 1), (1, 1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 2), (1, 3), (4,)]}
SPLITS |= {8: [(2, 2, 2, 1, 1), (3, 5), (8,)], 18: [(1, 1, 16)], 7: [(2, 2, 3)]}


@pytest.fixture(params=["compiled", "numpy"])
def implementation(request, monkeypatch):
    """Run with one implementation after the other; CI installs the compiled one."""
    if request.param == "compiled":
        assert COMPILED is not None, "the kernels were not compiled: is there a compiler?"
    monkeypatch.setattr(_build, "kernels", COMPILED if request.param == "compiled" else None)


def drawn_elements(data):
    """Return a stride, the widths of its runs, whether the sign moves, and whole elements at any address."""
    stride = data.draw(st.sampled_from(sorted(SPLITS)))
    split = data.draw(st.sampled_from(SPLITS[stride]))
    sign = stride in {2, 4} and split[-2:] == (1, 1) and data.draw(st.booleans())
    # Tiles end at 2048 elements.
    count = data.draw(st.one_of(st.integers(1, 40), st.integers(2040, 2060), st.just(4097)))
    seed, shift = data.draw(st.integers(0, 1 << 32)), data.draw(st.integers(0, 3))
    constant = data.draw(st.booleans())
    body = np.random.default_rng(seed).integers(0, 256, shift + count * stride, np.uint8)[shift:]
    if constant:
        body = np.resize(body[:stride], count * stride)
    return stride, split, sign, body


def runs_of(body, *, stride, split, sign):
    out = np.empty(len(body), np.uint8)
    kernels.split_runs(body, stride=stride, sign=sign, columns=split, out=out)
    edges = np.cumsum([0, *split]) * (len(body) // stride)
    return [out[begin:end] for begin, end in itertools.pairwise(edges.tolist())]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_taking_runs_and_merging_them_is_exact_for_all_bit_patterns(implementation, data):
    stride, split, sign, body = drawn_elements(data)
    runs = []
    for width, out in zip(split, runs_of(body, stride=stride, split=split, sign=sign), strict=True):
        assert kernels.repeats(out, width) == bool((out.reshape(-1, width) == out[:width]).all())
        constant = kernels.repeats(out, width) and data.draw(st.booleans())
        runs.append(RunData(width, out[:width] if constant else out, constant))
    unaligned = np.empty(len(body) + 1, np.uint8)[1:]
    kernels.merge_runs(runs, stride=stride, sign=sign, out=unaligned)
    assert unaligned.tobytes() == body.tobytes()
    assert kernels.merges_to(runs, stride=stride, sign=sign, expected=unaligned)
    unaligned[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not kernels.merges_to(runs, stride=stride, sign=sign, expected=unaligned)


@given(data=st.data())
def test_compiled_kernels_give_the_bytes_that_numpy_gives(data):
    assert COMPILED is not None, "the kernels were not compiled: is there a compiler?"
    stride, split, sign, body = drawn_elements(data)
    with using(COMPILED):
        compiled = runs_of(body, stride=stride, split=split, sign=sign)
    columns = regroup.Columns(body, stride=stride, sign=sign)
    start = 0
    for width, run in zip(split, compiled, strict=True):
        out = np.empty(len(run), np.uint8)
        columns.take(start, width, out)
        assert out.tobytes() == run.tobytes()
        start += width


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 4097])
def test_equality_sees_every_byte(implementation, length):
    one = bytearray(range(251)) * (length // 251 + 1)
    one = one[:length]
    assert kernels.equal(memoryview(one), memoryview(bytes(one)))
    for at in {0, length // 2, length - 1} if length else ():
        other = bytearray(one)
        other[at] ^= 1
        assert not kernels.equal(memoryview(one), memoryview(other))


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.split(bytes(7), bytearray(8), 4, False, (4,)),
        lambda c: c.split(bytes(8), bytearray(7), 4, False, (4,)),
        lambda c: c.split(bytes(8), bytearray(8), 4, False, (2, 3)),
        lambda c: c.split(bytes(8), bytearray(8), 4, False, (2,)),
        lambda c: c.split(bytes(8), bytearray(8), 4, False, (4, 0)),
        lambda c: c.split(bytes(8), bytearray(8), 8, True, (6, 1, 1)),
        lambda c: c.split(bytes(8), bytearray(8), 0, False, ()),
        lambda c: c.merge(bytearray(8), 4, False, ((2, bytes(4), False), (2, bytes(3), False))),
        lambda c: c.merge(bytearray(8), 4, False, ((2, bytes(4), True), (2, bytes(4), False))),
        lambda c: c.merge(bytearray(8), 4, True, ((2, bytes(4), False), (2, bytes(4), False))),
        lambda c: c.merge(bytearray(9), 4, False, ((4, bytes(8), False),)),
        lambda c: c.merges_to(bytes(8), 4, False, ((2, bytes(4), False), (2, bytes(3), False))),
        lambda c: c.merges_to(bytes(9), 4, False, ((4, bytes(8), False),)),
        lambda c: c.repeats(b"", 1),
        lambda c: c.repeats(b"ab", 3),
    ],
)
def test_compiled_kernels_refuse_what_does_not_fit(call):
    with pytest.raises(ValueError, match=r"cover|period"):
        call(COMPILED)


@given(data=st.data())
def test_the_decoder_reads_what_the_page_allows_and_no_encoder_writes(data):
    stride = data.draw(st.sampled_from(sorted(SPLITS)))
    split = data.draw(st.sampled_from(SPLITS[stride]))
    sign = stride in {2, 4} and split[-2:] == (1, 1) and data.draw(st.booleans())
    count = data.draw(st.integers(1, 50))
    phase, tail = data.draw(st.integers(0, stride - 1)), data.draw(st.integers(0, stride - 1))
    table, bodies = [], []
    for columns in split:
        mode = data.draw(st.integers(0, 2))
        size = columns if mode == 2 else columns * count
        body = data.draw(st.binary(min_size=size, max_size=size))
        body = zstandard.ZstdCompressor(level=1).compress(body) if mode == 1 else body
        table.append(struct.pack("<HBBI", columns, mode, 0, len(body)))
        bodies.append(body)
    header = struct.pack("<BBHHBB", 1, int(sign), stride, phase, len(split), 0)
    edges = data.draw(st.binary(min_size=phase + tail, max_size=phase + tail))
    payload = b"".join((header, *table, edges, *bodies))
    out = bytearray(phase + count * stride + tail)
    decode_into(Encoding.PLANES, payload, out)
    assert bytes(out) == decode_by_the_page(payload, len(out))
