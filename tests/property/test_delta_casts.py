"""Casts give the bits that the format's page says, with and without compiled kernels; the oracle is exact arithmetic."""

from __future__ import annotations

import bisect
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from fakes.implementations import COMPILED, agreed
from fakes.operands import in_parts
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs.delta import Extent
from casstore.codecs.delta.operations import OPERATIONS
from casstore.codecs.delta.operations.cast import cast_step
from casstore.codecs.delta.operations.floats import FORMATS, Rounding
from casstore.codecs.delta.predict import piece_of
from casstore.errors import FormatError

TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
NARROW = [name for name, form in FORMATS.items() if form.width < 4]
WIDER = [("F16", "F32"), ("BF16", "F32"), ("F32", "F64"), *((name, "F32") for name in NARROW[2:])]
EDGES = [0, 1, 0x7FFFFF, 0x800000, 0x33000000, 0x33000001, 0x38FFFFFF, 0x477FEFFF, 0x477FF000, 0x43E7FFFF]
EDGES += [0x43E80000, 0x43E80001, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FA00000, 0x7FC00000, 0x7FFFFFFF]


def cast(words, source, target, **how):
    """Return bit patterns after a cast."""
    step = cast_step(0, source=source, target=target, **how)
    operation = OPERATIONS[step.operation, step.version]
    data = words.tobytes()
    assert operation.size(step.parameters, [len(data)]) == len(words) * FORMATS[target].width
    found = agreed(lambda: operation.apply(step.parameters, [in_parts(data)]))
    return np.frombuffer(found, FORMATS[target].words)


def patterns(data, name):
    """Return bit patterns of which many are edges, ties, and values in the range of narrow formats."""
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    form = FORMATS[name]
    count = data.draw(st.integers(1, 70))
    any_bits = np.frombuffer(chance.bytes(count * form.width), form.words)
    scale = 2.0 ** chance.integers(-30, 20, count)
    values = (chance.normal(0, 1, count) * scale).astype(TYPES[name]).view(form.words)
    ties = (chance.integers(-99, 99, count) * scale).astype(TYPES[name]).view(form.words)
    edges = np.array(EDGES, "<u4")[chance.integers(len(EDGES), size=count)] | (
        chance.integers(2, size=count).astype("<u4") << np.uint32(31)
    )
    if name == "F64":
        with np.errstate(invalid="ignore"):
            edges = edges.view("<f4").astype("<f8").view("<u8")
    return np.choose(chance.integers(4, size=count), [any_bits, values, ties, edges.astype(form.words)])


def values_of(name):
    """Return the finite values of a format of one or two bytes that are no less than zero, ascending: value k has pattern k."""
    form = FORMATS[name]
    words = np.arange(form.largest + 1, dtype=np.uint32).astype(form.words)
    return words.view(TYPES[name]).astype(np.float64).tolist()


VALUES = {name: values_of(name) for name in NARROW}


def expected(value, name, rounding, *, saturate):
    """Return the pattern without sign of the magnitude of a number, by comparing it with all that the format has."""
    form, values = FORMATS[name], VALUES[name]
    value = abs(value)
    if math.isinf(value):
        return form.largest if saturate else form.beyond
    at = bisect.bisect_right(values, value) - 1
    if values[at] == value:
        return at
    # Beyond the largest, the next would follow at the same distance.
    above = values[at + 1] if at + 1 < len(values) else 2 * Fraction(values[-1]) - Fraction(values[-2])
    twice = 2 * Fraction(value) - Fraction(values[at]) - Fraction(above)
    up = twice > 0 or (twice == 0 and (rounding is Rounding.NEAREST_AWAY or at % 2 == 1))
    if rounding is Rounding.TOWARD_ZERO:
        up = False
    if at == len(values) - 1:
        whole = rounding is Rounding.TOWARD_ZERO or saturate or (not up and value < above)
        return form.largest if whole else form.beyond
    return at + up


@pytest.mark.parametrize("target", NARROW)
@pytest.mark.parametrize("source", ["F32", "F64"])
@given(data=st.data())
def test_narrowing_rounds_as_exact_arithmetic_does(source, target, data):
    rounding, saturate = data.draw(st.sampled_from(Rounding)), data.draw(st.booleans())
    words = patterns(data, source)
    found = cast(words, source, target, rounding=rounding, saturate=saturate)
    top = 8 * FORMATS[target].width - 1
    for value, pattern in zip(words.view(TYPES[source]).tolist(), found.tolist(), strict=True):
        if math.isnan(value):
            assert math.isnan(np.array([pattern], found.dtype).view(TYPES[target]).astype(float)[0])
            continue
        sign = math.copysign(1, value) < 0
        magnitude = expected(value, target, rounding, saturate=saturate)
        one_zero = FORMATS[target].one_zero
        assert pattern == (magnitude if one_zero and magnitude in {0, 0x80} else magnitude | sign << top), (
            value
        )


@pytest.mark.parametrize("target", [*NARROW, "F32"])
@given(data=st.data())
def test_what_is_no_nan_is_as_other_libraries_have_it(target, data):
    source = "F64" if target == "F32" else "F32"
    words = patterns(data, source)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = words.view(TYPES[source]).astype(TYPES[target])
    ours = cast(words, source, target).view(TYPES[target])
    nan = np.isnan(theirs.astype(np.float64))
    assert np.array_equal(nan, np.isnan(ours.astype(np.float64)))
    assert theirs[~nan].tobytes() == ours[~nan].tobytes()


def test_nans_keep_their_upper_bits_and_get_quiet():
    words = np.array([0x7F800001, 0xFF812345, 0x7FC00000, 0xFFFFFFFF], "<u4")
    assert cast(words, "F32", "BF16").tolist() == [0x7FC0, 0xFFC1, 0x7FC0, 0xFFFF]
    assert cast(words, "F32", "F16").tolist() == [0x7E00, 0xFE09, 0x7E00, 0xFFFF]
    assert cast(words, "F32", "F8_E5M2").tolist() == [0x7E, 0xFE, 0x7E, 0xFF]
    assert cast(words, "F32", "F8_E4M3").tolist() == [0x7F, 0xFF, 0x7F, 0xFF]
    assert cast(words, "F32", "F8_E4M3FNUZ").tolist() == [0x80] * 4
    wide = words.astype("<u8") << np.uint64(29) & np.uint64(0xFFFFFFFFFFFFF)
    wide |= np.uint64(0x7FF) << np.uint64(52)
    assert cast(wide | np.uint64(1), "F64", "F32").tolist() == [
        0x7FC00001,
        0x7FC12345,
        0x7FC00000,
        0x7FFFFFFF,
    ]


@pytest.mark.parametrize(("source", "target"), WIDER)
@given(data=st.data())
def test_widening_keeps_every_value_and_the_bits_of_nans(source, target, data):
    form = FORMATS[source]
    words = patterns(data, source) if form.width == 4 else np.arange(1 << 8 * form.width).astype(form.words)
    found = cast(words, source, target)
    with np.errstate(invalid="ignore"):
        theirs = words.view(TYPES[source]).astype(TYPES[target])
    nan = np.isnan(theirs)
    assert theirs[~nan].tobytes() == found.view(TYPES[target])[~nan].tobytes()
    assert np.isnan(found.view(TYPES[target])[nan]).all()
    drop = FORMATS[target].mantissa - form.mantissa
    kept = found[nan].astype(np.uint64) >> np.uint64(drop) & np.uint64((1 << form.mantissa) - 1)
    low = words[nan] & np.array((1 << form.mantissa) - 1, form.words)
    assert form.nan is not None or kept.tolist() == low.tolist()


GOOD = cast_step(0, source="F32", target="BF16").parameters


@pytest.mark.parametrize(
    "parameters",
    [
        b"",
        GOOD[:3],
        GOOD + b"\0",
        bytes([2, 2, 0, 0]),
        bytes([0, 3, 0, 0]),
        bytes([2, 9, 0, 0]),
        bytes([2, 4, 3, 0]),
        bytes([2, 4, 0, 2]),
        bytes([3, 4, 0, 0]),
        bytes([3, 5, 0, 0]),
        bytes([3, 2, 1, 0]),
        bytes([3, 2, 0, 1]),
        bytes([3, 1, 0, 0]),
    ],
)
def test_casts_that_are_none_are_refused(parameters):
    step = cast_step(0, source="F32", target="BF16")
    with pytest.raises(FormatError):
        piece_of(0, [[Extent(0, 0, 8)]], [step._replace(parameters=parameters)])


@pytest.mark.parametrize(("operands", "size"), [((0,), 6), ((0, 0), 8)])
def test_operands_that_do_not_fit_are_refused(operands, size):
    step = cast_step(0, source="F32", target="BF16")._replace(operands=operands)
    with pytest.raises(FormatError):
        piece_of(0, [[Extent(0, 0, size)]], [step])


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.cast(bytes(8), bytearray(4), 2, 2, 0, False),
        lambda c: c.cast(bytes(8), bytearray(4), 0, 3, 0, False),
        lambda c: c.cast(bytes(8), bytearray(4), 2, 9, 0, False),
        lambda c: c.cast(bytes(8), bytearray(4), 3, 4, 0, False),
        lambda c: c.cast(bytes(8), bytearray(4), 2, 3, 3, False),
        lambda c: c.cast(bytes(8), bytearray(5), 2, 3, 0, False),
        lambda c: c.cast(bytes(9), bytearray(4), 2, 3, 0, False),
        lambda c: c.cast(bytes(2), bytearray(8), 3, 1, 0, False),
    ],
)
def test_compiled_casts_refuse_what_does_not_fit(call):
    with pytest.raises(ValueError, match=r"fit|no such"):
        call(COMPILED)
