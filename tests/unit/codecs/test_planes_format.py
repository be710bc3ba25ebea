"""Payloads follow format/README.md: a second decoder, written from that page byte by byte, reads them alike."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard
from fakes.weights import WEIGHTS, weights
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs import ElementHint, Encoding, decode_into, encode_batch
from casstore.codecs.regroup import Columns, RunData, merge_runs


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


@given(data=st.data())
def test_taking_runs_and_merging_them_is_exact_for_all_bit_patterns(data):
    stride = data.draw(st.sampled_from(sorted(SPLITS)))
    split = data.draw(st.sampled_from(SPLITS[stride]))
    sign = stride in {2, 4} and split[-2:] == (1, 1) and data.draw(st.booleans())
    body = np.frombuffer(data.draw(st.binary(min_size=stride, max_size=40 * stride)), np.uint8)
    body = body[: len(body) // stride * stride]
    count = len(body) // stride
    runs = []
    columns = Columns(body, stride=stride, sign=sign)
    start = 0
    for width in split:
        out = np.empty(count * width, np.uint8)
        columns.take(start, width, out)
        constant = data.draw(st.booleans()) and bool((out.reshape(-1, width) == out[:width]).all())
        runs.append(RunData(start, width, out[:width] if constant else out, constant))
        start += width
    unaligned = np.empty(len(body) + 1, np.uint8)[1:]
    merge_runs(runs, stride=stride, sign=sign, out=unaligned)
    assert unaligned.tobytes() == body.tobytes()


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
