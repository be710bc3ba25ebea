"""Quantising gives the integers that the format's page says, which are those of ONNX, with and without compiled kernels."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from fakes.implementations import COMPILED, agreed
from fakes.operands import in_parts
from fakes.payloads import decode
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from casstore.codecs import Encoding
from casstore.codecs.delta import (
    LITERALS,
    Axis,
    Extent,
    Rule,
    encode_delta,
    piece_of,
    quantise,
    quantise_step,
    transpose_step,
)
from casstore.codecs.delta.operations import OPERATIONS
from casstore.codecs.delta.operations.quantise import INTEGERS
from casstore.errors import FormatError

F32 = np.float32


def packed(values, target):
    """Return integers as a tensor of that type has them."""
    if INTEGERS[target].bits == 4:
        low = [int(value) & 15 for value in values] + [0] * (len(values) % 2)
        return bytes(one | other << 4 for one, other in zip(low[::2], low[1::2], strict=True))
    return (
        np.array(values, f"<i{INTEGERS[target].bits // 8 * 2}")
        .astype(f"<u{INTEGERS[target].bits // 8}")
        .tobytes()
    )


def made(step, operands):
    operation = OPERATIONS[step.operation, step.version]
    arrays = [in_parts(data) for data in operands]
    size = operation.size(step.parameters, [len(data) for data in operands])
    found = agreed(lambda: operation.apply(step.parameters, arrays))
    assert len(found) == size
    return found


def by_the_page(value, scale, zero, *, rule, low, high):
    """Return one integer, computed one float at a time."""
    with np.errstate(all="ignore"):
        scaled = value * (F32(1) / scale) if rule & Rule.RECIPROCAL else value / scale
        if scale == 0:
            scaled = F32(0)
        if rule & Rule.ZERO_FIRST:
            scaled = F32(scaled + F32(zero))
            zero = 0
    if math.isnan(scaled):
        return low
    exact = float(scaled)
    if math.isinf(exact) or abs(exact) > 1e6:
        return high if exact > 0 else low
    whole = (
        (math.floor(abs(exact) + 0.5) * math.copysign(1, exact)) if rule & Rule.HALF_AWAY else round(exact)
    )
    return int(min(max(whole + zero, low), high))


@st.composite
def tensors(draw):
    """Return floats, an axis with its number of scales, and the place of the first float."""
    chance = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    # Tiles end at 1024 elements.
    count = draw(st.one_of(st.integers(1, 60), st.integers(1, 60), st.integers(1020, 1030)))
    inner = draw(st.sampled_from([1, 1, 3, 32, 5000]))
    channels = draw(st.sampled_from([1, 2, 7, 64]))
    outer = draw(st.sampled_from([0, 0, 5, inner * channels, 100]))
    first = draw(st.sampled_from([0, 2, 40] if outer else [0, 2, 1000, 77_777]))
    scales = channels * ((first + count - 1) // outer + 1 if outer else 1)
    values = chance.normal(0, 1, count).astype("<f4")
    ties = (chance.integers(-40, 40, count) / 2).astype("<f4")
    values = np.where(chance.random(count) < 0.5, values, ties)
    if draw(st.booleans()):
        edges = np.array([np.nan, np.inf, -np.inf, 1e38, -0.0, 1e-45], "<f4")
        values = np.where(chance.random(count) < 0.1, chance.choice(edges, count), values).astype("<f4")
    widths = chance.choice(np.array([1, 0.5, 0.031, 0.1, 1e-3, 0, 1e-42], "<f4"), scales)
    return values.astype("<f4"), widths, Axis(inner, channels, outer), first, chance


@pytest.mark.parametrize("target", INTEGERS)
@given(tensor=tensors(), data=st.data())
def test_integers_are_those_of_the_page(target, tensor, data):
    values, scales, axis, first, chance = tensor
    kind = INTEGERS[target]
    rule = Rule(data.draw(st.integers(0, 7)))
    low, high = data.draw(
        st.sampled_from([kind.range, (-3, 5), (0, 0)] if kind.signed else [kind.range, (1, 9)])
    )
    zeros = (
        chance.integers(kind.range[0], kind.range[1] + 1, len(scales)) if data.draw(st.booleans()) else None
    )
    step = quantise_step(
        0,
        1,
        None if zeros is None else 2,
        target=target,
        axis=axis,
        first=first,
        rule=rule,
        limits=(low, high),
    )
    operands = [values.tobytes(), scales.tobytes()] + ([] if zeros is None else [packed(zeros, target)])
    expected = []
    for at, value in enumerate(values, first):
        channel = at // axis.inner % axis.channels + (at // axis.outer * axis.channels if axis.outer else 0)
        zero = 0 if zeros is None else int(zeros[channel])
        expected.append(by_the_page(value, scales[channel], zero, rule=rule, low=low, high=high))
    assert made(step, operands) == packed(expected, target)


ONNX = {"I8": TensorProto.INT8, "U8": TensorProto.UINT8, "I4": TensorProto.INT4, "U4": TensorProto.UINT4}
ONNX |= {"I16": TensorProto.INT16, "U16": TensorProto.UINT16}


@pytest.mark.parametrize("target", ONNX)
@pytest.mark.parametrize("axis", ["tensor", "rows", "columns", "blocks of rows", "blocks of columns"])
def test_integers_are_those_of_onnx(target, axis):
    chance = np.random.default_rng(3)
    values = chance.normal(0, 1, (48, 64)).astype(F32)
    shape, options, rule = {
        "tensor": ((), {}, Axis()),
        "rows": ((48,), {"axis": 0}, Axis(64, 48)),
        "columns": ((64,), {"axis": 1}, Axis(1, 64)),
        "blocks of rows": ((48, 4), {"axis": 1, "block_size": 16}, Axis(16, 48 * 4)),
        "blocks of columns": ((3, 64), {"axis": 0, "block_size": 16}, Axis(1, 64, 16 * 64)),
    }[axis]
    scales = chance.uniform(0.01, 0.03, shape).astype(F32)
    low, high = INTEGERS[target].range
    zeros = chance.integers(low // 2, high // 2, shape, endpoint=True)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], **options)
    zero_point = helper.make_tensor("z", ONNX[target], shape, np.atleast_1d(zeros).ravel().tolist())
    graph = helper.make_graph(
        [node],
        "quantise",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (48, 64)),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, shape),
        ],
        [helper.make_tensor_value_info("y", ONNX[target], (48, 64))],
        [zero_point],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (theirs,) = ReferenceEvaluator(model).run(None, {"x": values, "s": scales})
    step = quantise_step(0, 1, 2, target=target, axis=rule)
    operands = [values.tobytes(), scales.tobytes(), packed(np.atleast_1d(zeros).ravel(), target)]
    assert made(step, operands) == packed(theirs.ravel().astype(int), target)


def test_a_transposed_weight_is_quantised_from_bases_and_literals():
    weight = np.random.default_rng(5).normal(0, 0.1, (64, 96)).astype("<f4")
    scales = (np.abs(weight).max(axis=1) / 127).astype("<f4")
    exported = np.clip(np.rint(weight.T / scales), -127, 127).astype(np.int8)
    plain = exported.tobytes()[1000:5000]
    steps = [
        transpose_step(0, width=4, shape=(64, 96), permutation=(1, 0), first=1000, count=4000),
        quantise_step(2, 1, target="I8", axis=Axis(1, 64), first=1000),
    ]
    inputs = [[Extent(0, 0, 64 * 96 * 4)], [Extent(LITERALS, 0, 64 * 4)]]
    piece = piece_of(0, inputs, steps)
    payload = encode_delta(plain, [weight.tobytes()], [piece], side=scales.tobytes())
    assert len(payload) < 500
    assert decode(Encoding.DELTA, payload, len(plain), [weight.tobytes()]) == plain


def test_the_last_places_that_are_allowed_are_counted_across_parts():
    step = quantise_step(0, 1, target="I8", axis=Axis(1, 3), first=1 << 62)
    values, scales = np.full(8, 12, "<f4").view(np.uint8), np.array([1, 2, 3], "<f4").view(np.uint8)
    found = agreed(lambda: OPERATIONS[4, 1].apply(step.parameters, [[values[:12], values[12:]], [scales]]))
    assert list(found) == [12 // (1 + ((1 << 62) + at) % 3) for at in range(8)]


def parameters(*, code=1, rule=0, spare=0, low=-128, high=127, channels=1, first=0, inner=1, outer=0):
    return struct.pack("<BBHiiIQQQ", code, rule, spare, low, high, channels, first, inner, outer)


HOSTILE = [
    b"",
    parameters()[:-1],
    parameters() + b"\0",
    parameters(code=0),
    parameters(code=7),
    parameters(rule=8),
    parameters(spare=1),
    parameters(low=-129),
    parameters(high=128),
    parameters(low=5, high=4),
    parameters(channels=0),
    parameters(channels=3),
    parameters(channels=0xFFFFFFFF),
    parameters(inner=0),
    parameters(outer=1),
    parameters(outer=3),
    parameters(first=(1 << 64) - 1),
    parameters(first=1 << 40, outer=1),
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_absurd_parameters_are_refused_at_once(hostile):
    step = quantise_step(0, 1, target="I8")
    assert step.parameters == parameters()
    inputs = [[Extent(0, 0, 40)], [Extent(0, 0, 8)]]
    assert piece_of(0, inputs, [step]).end == 10
    with pytest.raises(FormatError):
        piece_of(0, inputs, [step._replace(parameters=hostile)])


@pytest.mark.parametrize(
    "sizes", [(40,), (40, 3), (39, 4), (0, 4), (40, 0), (40, 8, 1), (40, 8, 3), (40, 8, 2, 2)]
)
def test_operands_that_do_not_fit_are_refused(sizes):
    with pytest.raises(FormatError):
        OPERATIONS[4, 1].size(parameters(), sizes)


def test_what_is_quantised_in_one_call():
    plain = np.array([1, 2, 3], np.int8).tobytes()
    base = np.array([0.5, 1, 1.5], "<f4").tobytes()
    piece = quantise(0, [Extent(0, 0, 12)], [Extent(LITERALS, 0, 4)], target="I8")
    payload = encode_delta(plain, [base], [piece], side=np.array([0.5], "<f4").tobytes())
    assert decode(Encoding.DELTA, payload, 3, [base]) == plain


@pytest.mark.parametrize(
    "arguments",
    [
        (bytes(12), bytearray(3), bytes(4), bytes(4), 5, -8, 7, 0, 0, 1, 1, 0),
        (bytes(12), bytearray(4), bytes(4), bytes(4), 8, -8, 7, 0, 0, 1, 1, 0),
        (bytes(12), bytearray(3), bytes(4), bytes(8), 8, -8, 7, 0, 0, 1, 1, 0),
        (bytes(12), bytearray(3), bytes(4), bytes(4), 8, 8, 7, 0, 0, 1, 1, 0),
        (bytes(12), bytearray(3), bytes(4), bytes(4), 8, -8, 7, 8, 0, 1, 1, 0),
        (bytes(12), bytearray(3), bytes(4), bytes(4), 8, -8, 7, 0, 0, 0, 1, 0),
        (bytes(12), bytearray(3), bytes(4), bytes(4), 8, -8, 7, 0, 0, 1, 0, 0),
        (bytes(12), bytearray(3), bytes(4), bytes(4), 8, -8, 7, 0, 0, 1, 2, 0),
        (bytes(12), bytearray(3), bytes(4), bytes(4), 8, -8, 7, 0, 0, 1, 1, 2),
        (bytes(12), bytearray(3), bytes(4), bytes(4), 8, -8, 7, 0, (1 << 63) + 1, 1, 1, 0),
        (bytes(12), bytearray(3), b"", b"", 8, -8, 7, 0, 0, 1, 1, 0),
    ],
)
def test_compiled_quantising_refuses_what_does_not_fit(arguments):
    with pytest.raises(ValueError, match="fit"):
        COMPILED.quantise(*arguments)
