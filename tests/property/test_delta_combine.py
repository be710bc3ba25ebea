"""Combinations of tensors round after each step, in the order that the format's page says, with and without kernels."""

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
from casstore.codecs.delta import Combination, Extent, combine, combine_step, encode_delta, mean
from casstore.codecs.delta.operations import OPERATIONS
from casstore.errors import FormatError

F16, BF16 = np.float16, ml_dtypes.bfloat16
ROUND = {
    "F64": lambda x: x.astype(np.float64),
    "F32": lambda x: x.astype(np.float32),
    "F16": lambda x: x.astype(F16).astype(np.float32),
    "BF16": lambda x: x.astype(BF16).astype(np.float32),
}
FUSED = {Combination.FUSED_SUM, Combination.FUSED_TASKS}
SUMS = {Combination.SUM, Combination.FUSED_SUM}


def made(step, arrays):
    operation = OPERATIONS[step.operation, step.version]
    operands = [in_parts(array.tobytes()) for array in arrays]
    assert operation.size(step.parameters, [array.nbytes for array in arrays]) == arrays[0].nbytes
    return agreed(lambda: operation.apply(step.parameters, operands))


def by_the_page(values, weights, divisor, how, *, element, form):
    """Return numbers, computed step by step by other libraries."""
    kind = np.float64 if element == "F64" else np.float32
    r = ROUND[form]
    weights = [kind(weight) for weight in weights]

    def step(total, weight, value):
        if how in FUSED:
            # Exact in 64 bits, so that two roundings are left: to 64 and to 32 bits.
            wide = total.astype(np.float64) + np.float64(weight) * value.astype(np.float64)
            return r(wide.astype(np.float32))
        return r(total + r(weight * value))

    first, *others = values
    if how in SUMS:
        total = r(weights[0] * first)
        for weight, value in zip(weights[1:], others, strict=True):
            total = step(total, weight, value)
        return r(total / kind(divisor))
    total = 0 * np.ones_like(first) if how is Combination.JOINT_TASKS else first
    for weight, one, other in zip(weights, others[::2], others[1::2], strict=True):
        total = step(total, weight, r(one - other))
    return r(total + first) if how is Combination.JOINT_TASKS else total


@pytest.mark.parametrize("form", ROUND)
@pytest.mark.parametrize("how", Combination)
@given(data=st.data())
def test_each_step_rounds_once(how, form, data):
    element = "F64" if form == "F64" else "F32"
    if element == "F64" and how in FUSED:
        with pytest.raises(FormatError):
            made(combine_step([0], weights=[1], combination=how, element=element), [np.zeros(1)])
        return
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    # Tiles end at 1024 elements.
    count = data.draw(st.sampled_from([1, 7, 40, 1025]))
    number = data.draw(st.integers(1, 5))
    if how not in SUMS:
        number += 1 - number % 2
    kind = f"<f{8 if element == 'F64' else 4}"
    arrays = []
    for _ in range(number):
        array = chance.normal(0, 1, count).astype(kind)
        wild = chance.choice(np.array([np.nan, np.inf, -np.inf, 1e38, -0.0, 1e-40, 7e4]), count)
        array = np.where(chance.random(count) < 0.1, wild, array)
        with np.errstate(over="ignore"):
            arrays.append(ROUND[form](array.astype(kind)))
    weights = chance.choice([1, 0.5, 0.3, 1 / 3, -0.7, 0], number if how in SUMS else number // 2).tolist()
    divisor = data.draw(st.sampled_from([1, 2, 3, 0.7])) if how in SUMS else 1
    step = combine_step(
        range(number), weights=weights, divisor=divisor, combination=how, element=element, rounding=form
    )
    found = np.frombuffer(made(step, arrays), kind)
    with np.errstate(all="ignore"):
        expected = by_the_page(arrays, weights, divisor, how, element=element, form=form)
    expected = np.where(np.isnan(expected), np.nan, expected).astype(kind)
    assert found.tobytes() == expected.tobytes()


def test_means_come_back_from_two_models():
    chance = np.random.default_rng(2)
    one, other = chance.normal(0, 1, (2, 500)).astype("<f4")
    plain = ((one + other) / 2).tobytes()
    bases = [one.tobytes(), other.tobytes()]
    payload = encode_delta(plain, bases, [mean(0, [[Extent(0, 0, 2000)], [Extent(1, 0, 2000)]])])
    assert len(payload) < 200
    assert decode(Encoding.DELTA, payload, 2000, bases) == plain


@pytest.mark.parametrize("element", ["BF16", "F16"])
def test_narrow_tensors_are_combined_as_their_own_arithmetic_does(element):
    kind = {"BF16": BF16, "F16": F16}[element]
    chance = np.random.default_rng(2)
    base, tuned, other = chance.normal(0, 1, (3, 500)).astype(kind)
    plain = (base + kind(0.75) * (tuned - other)).tobytes()
    bases = [array.tobytes() for array in (base, tuned, other)]
    extents = [[Extent(at, 0, 1000)] for at in range(3)]
    piece = combine(0, extents, weights=[0.75], combination=Combination.TASKS, element=element)
    assert decode(Encoding.DELTA, encode_delta(plain, bases, [piece]), 1000, bases) == plain


def parameters(*, element=2, rounding=2, how=1, spare=0, weights=(0.5, 0.5, 1)):
    return struct.pack("<BBBB", element, rounding, how, spare) + np.array(weights, "<f4").tobytes()


HOSTILE = [
    b"",
    parameters()[:3],
    parameters()[:-1],
    parameters() + b"\0",
    parameters(element=0),
    parameters(element=3),
    parameters(element=1),
    parameters(rounding=1),
    parameters(rounding=5),
    parameters(rounding=99),
    parameters(how=0),
    parameters(how=6),
    parameters(how=3, weights=(0.5,)),
    parameters(spare=1),
    parameters(weights=()),
    parameters(weights=(0.5, 0.5)),
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_absurd_parameters_are_refused_at_once(hostile):
    assert combine_step([0, 1], weights=[0.5, 0.5]).parameters == parameters()
    assert OPERATIONS[5, 1].size(parameters(), (8, 8)) == 8
    with pytest.raises(FormatError):
        OPERATIONS[5, 1].size(hostile, (8, 8))


@pytest.mark.parametrize("sizes", [(8, 4), (6, 6), (8,), (8, 8, 8)])
def test_operands_that_do_not_fit_are_refused(sizes):
    with pytest.raises(FormatError):
        OPERATIONS[5, 1].size(parameters(), sizes)


@pytest.mark.parametrize(
    "arguments",
    [
        ((), bytearray(4), 2, 2, 1, bytes(8)),
        ((bytes(4),), bytearray(4), 2, 2, 1, bytes(8)),
        ((bytes(4),), bytearray(4), 2, 2, 3, bytes(8)),
        ((bytes(4), bytes(4)), bytearray(4), 2, 2, 3, bytes(8)),
        ((bytes(4), bytes(8)), bytearray(4), 2, 2, 1, bytes(24)),
        ((bytes(6),), bytearray(6), 2, 2, 1, bytes(16)),
        ((bytes(4),), bytearray(4), 3, 3, 1, bytes(16)),
        ((bytes(8),), bytearray(8), 1, 1, 2, bytes(16)),
        ((bytes(8),), bytearray(8), 1, 2, 1, bytes(16)),
        ((bytes(4),), bytearray(4), 2, 5, 1, bytes(16)),
        ((bytes(4),), bytearray(4), 2, 2, 6, bytes(16)),
    ],
)
def test_compiled_combinations_refuse_what_does_not_fit(arguments):
    with pytest.raises(ValueError, match="fit"):
        COMPILED.combine(*arguments)
