"""Merges of adapters are computed in the steps of the format's page, for any range of the weights."""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
import pytest
from fakes.implementations import COMPILED, agreed
from fakes.operands import in_parts
from fakes.payloads import decode
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs import Encoding
from casstore.codecs.delta import Extent, Merge, encode_delta, lora, lora_step, piece_of
from casstore.codecs.delta.operations import OPERATIONS
from casstore.errors import FormatError

ROUND = {
    "F32": lambda x: x.astype(np.float32),
    "F16": lambda x: x.astype(np.float16).astype(np.float32),
    "BF16": lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32),
}
F32 = np.float32


def by_the_page(weights, a, b, scale, *, rule, form, block=512):
    """Return the whole matrix."""
    r, s = ROUND[form], F32(scale)
    if rule & Merge.SCALE_FIRST:
        b, s = r(s * b), F32(1)
    product = None
    for begin in range(0, len(a), block):
        part = np.zeros((b.shape[0], a.shape[1]), F32)
        for k in range(begin, min(len(a), begin + block)):
            part = (part.astype(float) + np.outer(b[:, k].astype(float), a[k].astype(float))).astype(F32)
        product = part if product is None else product + part
    if rule & Merge.ROUND_PRODUCT:
        product = r(product)
    if rule & Merge.FUSED:
        return r((weights.astype(float) + product.astype(float) * float(s)).astype(F32))
    scaled = product * s
    if rule & Merge.ROUND_SCALED:
        scaled = r(scaled)
    return r(weights + scaled)


def made(step, arrays):
    operation = OPERATIONS[step.operation, step.version]
    operands = [in_parts(array.tobytes()) for array in arrays]
    assert operation.size(step.parameters, [array.nbytes for array in arrays]) == arrays[0].nbytes
    return agreed(lambda: operation.apply(step.parameters, operands))


@pytest.mark.parametrize("form", ROUND)
@given(data=st.data())
def test_ranges_of_merged_weights_are_those_of_the_page(form, data):
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    # Tiles end at 512 columns.
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 3, 40, 511, 513]))
    rank = data.draw(st.sampled_from([1, 2, 8, 33]))
    weights = ROUND[form](chance.normal(0, 0.1, (rows, columns)))
    a, b = chance.normal(0, 0.1, (rank, columns)).astype(F32), chance.normal(0, 0.1, (rows, rank)).astype(F32)
    if data.draw(st.booleans()):
        weights[0, 0], a[0, -1], b[-1, 0] = np.nan, np.inf, 1e38
    rule, scale = Merge(data.draw(st.integers(0, 15))), data.draw(st.sampled_from([1, 2, 0.5, 0.3, -1.7]))
    block = data.draw(st.integers(1, rank))
    with np.errstate(all="ignore"):
        whole = by_the_page(weights, a, b, scale, rule=rule, form=form, block=block)
    first = data.draw(st.integers(0, rows * columns - 1))
    count = data.draw(st.integers(1, rows * columns - first))
    begin, end = first // columns, -(-(first + count) // columns)
    step = lora_step(
        0,
        1,
        2,
        rank=rank,
        columns=columns,
        scale=scale,
        block=block,
        first=first % columns,
        rule=rule,
        rounding=form,
    )
    found = made(step, [weights.reshape(-1)[first : first + count], a, b[begin:end]])
    expected = whole.reshape(-1)[first : first + count]
    expected = np.where(np.isnan(expected), np.nan, expected).astype("<f4")
    assert found == expected.tobytes()


@pytest.mark.parametrize("element", ["F32", "BF16"])
def test_a_chunk_of_merged_weights_comes_back(element):
    kind = {"F32": F32, "BF16": ml_dtypes.bfloat16}[element]
    chance = np.random.default_rng(1)
    weights = chance.normal(0, 0.1, (64, 96)).astype(kind)
    a, b = chance.normal(0, 0.1, (8, 96)).astype(kind), chance.normal(0, 0.1, (64, 8)).astype(kind)
    merged = by_the_page(weights.astype(F32), a.astype(F32), b.astype(F32), 2, rule=Merge.PLAIN, form=element)
    plain = merged.reshape(-1)[1000:3000].astype(kind).tobytes()
    bases = [array.tobytes() for array in (weights, a, b)]
    width = weights.itemsize
    piece = lora(
        0,
        [Extent(0, 1000 * width, 3000 * width)],
        [Extent(1, 0, len(bases[1]))],
        [Extent(2, 10 * 8 * width, 32 * 8 * width)],
        rank=8,
        columns=96,
        scale=2,
        first=1000 % 96,
        element=element,
    )
    payload = encode_delta(plain, bases, [piece])
    assert len(payload) < 300
    assert decode(Encoding.DELTA, payload, len(plain), bases) == plain


def test_the_product_of_an_adapter_is_numpys():
    """Those who merge multiply matrices, and BLAS adds the terms of small ranks in this order."""
    chance = np.random.default_rng(3)
    a, b = chance.normal(0, 0.1, (16, 384)).astype(F32), chance.normal(0, 0.1, (50, 16)).astype(F32)
    weights = chance.normal(0, 0.1, (50, 384)).astype(F32)
    merged = weights + F32(2) * (b @ a)
    found = np.frombuffer(made(lora_step(0, 1, 2, rank=16, columns=384, scale=2), [weights, a, b]), "<f4")
    # Where BLAS has no fused instruction, it rounds once more.
    assert np.abs(found - merged.reshape(-1)).max() < 1e-6


def parameters(*, rounding=2, rule=0, rank=2, columns=3, first=0, scale=1.0, block=2, spare=0):
    return struct.pack("<BBHIIfHH", rounding, rule, rank, columns, first, scale, block, spare)


HOSTILE = [
    b"",
    parameters()[:-1],
    parameters() + b"\0",
    parameters(rounding=1),
    parameters(rounding=5),
    parameters(rounding=0),
    parameters(rule=16),
    parameters(rank=0),
    parameters(rank=1),
    parameters(rank=513),
    parameters(block=0),
    parameters(block=3),
    parameters(spare=1),
    parameters(columns=0),
    parameters(columns=2),
    parameters(columns=0xFFFFFFFF),
    parameters(first=3),
    parameters(first=1),
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_absurd_parameters_are_refused_at_once(hostile):
    good = lora_step(0, 1, 2, rank=2, columns=3, scale=1)
    assert good.parameters == parameters()
    inputs = [[Extent(0, 0, 24)], [Extent(0, 0, 24)], [Extent(0, 0, 16)]]
    assert piece_of(0, inputs, [good]).end == 24
    with pytest.raises(FormatError):
        piece_of(0, inputs, [good._replace(parameters=hostile)])


@pytest.mark.parametrize(
    "sizes", [(24, 24), (24, 24, 16, 16), (0, 24, 0), (25, 24, 16), (24, 20, 16), (24, 24, 8)]
)
def test_operands_that_do_not_fit_are_refused(sizes):
    with pytest.raises(FormatError):
        OPERATIONS[7, 1].size(parameters(), sizes)


@pytest.mark.parametrize(
    "arguments",
    [
        (bytes(24), bytes(24), bytes(16), bytearray(20), 2, 0, 2, 2, 3, 0, 1.0),
        (bytes(24), bytes(20), bytes(16), bytearray(24), 2, 0, 2, 2, 3, 0, 1.0),
        (bytes(24), bytes(24), bytes(8), bytearray(24), 2, 0, 2, 2, 3, 0, 1.0),
        (bytes(24), bytes(24), bytes(17), bytearray(24), 2, 0, 2, 2, 3, 0, 1.0),
        (bytes(24), bytes(24), bytes(16), bytearray(24), 1, 0, 2, 2, 3, 0, 1.0),
        (bytes(24), bytes(24), bytes(16), bytearray(24), 2, 16, 2, 2, 3, 0, 1.0),
        (bytes(24), bytes(24), bytes(16), bytearray(24), 2, 0, 0, 0, 3, 0, 1.0),
        (bytes(24), bytes(24), bytes(16), bytearray(24), 2, 0, 2, 2, 0, 0, 1.0),
        (bytes(24), bytes(24), bytes(16), bytearray(24), 2, 0, 2, 2, 3, 3, 1.0),
        (bytes(24), bytes(24), bytes(16), bytearray(24), 2, 0, 2, 2, 3, -1, 1.0),
        (bytes(24), bytes(24), bytes(16), bytearray(24), 2, 0, 513, 2, 3, 0, 1.0),
        (bytes(24), bytes(24), bytes(16), bytearray(24), 2, 0, 2, 0, 3, 0, 1.0),
        (bytes(24), bytes(24), bytes(16), bytearray(24), 2, 0, 2, 3, 3, 0, 1.0),
    ],
)
def test_compiled_merges_refuse_what_does_not_fit(arguments):
    with pytest.raises(ValueError, match="fit"):
        COMPILED.lora(*arguments)
