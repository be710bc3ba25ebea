"""From samples, the rule that made a tensor is found again, and what a delta of all of it would take."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from casstore.codecs.delta import Extent, Order, Residual, encode_delta, piece_of, same
from casstore.codecs.delta.fit import (
    estimate,
    fit_cast,
    fit_combine,
    fit_gguf,
    fit_lora,
    fit_mean,
    fit_quantise,
    fit_same,
    fit_tasks,
    residual_for,
)
from casstore.codecs.delta.operations import OPERATIONS
from casstore.codecs.delta.operations.gguf import BLOCKS, gguf_step
from casstore.codecs.delta.operations.quantise import Rule

F32, F16, BF16 = np.float32, np.float16, ml_dtypes.bfloat16
TYPES = {"F64": np.float64, "F32": F32, "F16": F16, "BF16": BF16, "F8_E5M2": ml_dtypes.float8_e5m2}


def weights(seed, kind=F32, count=4096):
    return np.random.default_rng(seed).normal(0, 0.05, count).astype(kind)


def predicted_exactly(fit, target, bases):
    """Whether the rule of a fit makes the whole target from whole bases."""
    inputs = [[Extent(at, 0, base.nbytes)] for at, base in enumerate(bases)]
    piece = piece_of(0, inputs, fit.steps)
    try:
        encode_delta(target.tobytes(), [base.tobytes() for base in bases], [piece])
    except ValueError:
        return False
    return True


def test_nothing_is_left_of_an_exact_prediction():
    data = np.arange(1000, dtype=np.uint8).tobytes()
    for _ in range(3):
        np.full(1000, 7, np.uint8)  # Memory that was used is used again.
        assert estimate(data, data, Residual(Order.FLOAT, 4)) == 0


@pytest.mark.parametrize("moved", [1e-4, 1e-2, 1])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_the_estimate_is_near_what_a_delta_takes(dtype, moved):
    kind, count = TYPES[dtype], 1 << 17
    base = weights(0, kind, count)
    target = (base.astype(F32) * (1 + moved * weights(1, F32, count) * 20)).astype(kind)
    residual = residual_for(dtype)
    payload = encode_delta(
        target.tobytes(), [base.tobytes()], [same(0, [Extent(0, 0, base.nbytes)], residual)]
    )
    stored = len(payload) / base.nbytes
    for count, near in ((4096, 0.02), (256, 0.06)):
        places = np.random.default_rng(2).choice(len(base), count, replace=False)
        fit = fit_same(target[places].tobytes(), base[places].tobytes(), dtype=dtype)
        assert fit.residual == residual
        assert fit.share == pytest.approx(stored, abs=near)


def test_nothing_is_left_of_equals_and_all_of_strangers():
    one, other = weights(0).tobytes(), np.random.default_rng(1).bytes(4 * 4096)
    assert estimate(one, one, Residual(Order.FLOAT, 4)) == 0
    assert estimate(one, other, Residual(Order.FLOAT, 4)) > 0.98


@pytest.mark.parametrize(
    ("source", "target"),
    [("F32", "BF16"), ("F32", "F16"), ("F64", "F32"), ("F16", "F32"), ("BF16", "F16"), ("F16", "F8_E5M2")],
)
def test_casts_are_found(source, target):
    base = weights(3, TYPES[source])
    made = base.astype(F32).astype(TYPES[target])
    fit = fit_cast(made.tobytes(), base.tobytes(), source=source, dtype=target)
    assert fit.share == 0
    assert predicted_exactly(fit, made, [base])


def test_truncation_and_saturation_are_found():
    base = weights(3)
    cut = (base.view("<u4") >> 16).astype("<u2")
    fit = fit_cast(cut.tobytes(), base.tobytes(), source="F32", dtype="BF16")
    assert fit.share == 0
    assert predicted_exactly(fit, cut, [base])
    large = (base * 1e6).astype(F32)
    full = np.clip(large, -57344, 57344).astype(ml_dtypes.float8_e5m2)
    fit = fit_cast(full.tobytes(), large.tobytes(), source="F32", dtype="F8_E5M2")
    assert fit.share == 0
    assert predicted_exactly(fit, full, [large])


def test_what_cannot_be_cast_is_refused():
    for source, target in (("F32", "F32"), ("I8", "F32"), ("F32", "Q8_0")):
        with pytest.raises(ValueError, match="no cast"):
            fit_cast(b"", b"", source=source, dtype=target)


MEANS = {
    "divided": lambda x: (x[0] + x[1] + x[2]) / F32(3),
    "shares": lambda x: x[0] * F32(1 / 3) + x[1] * F32(1 / 3) + x[2] * F32(1 / 3),
}


@pytest.mark.parametrize("how", MEANS)
def test_means_are_found(how):
    bases = [weights(seed) for seed in range(3)]
    made = MEANS[how](bases)
    assert made.dtype == F32
    fit = fit_mean(made.tobytes(), [base.tobytes() for base in bases], dtype="F32")
    assert fit.share == 0
    assert predicted_exactly(fit, made, bases)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("pair", [(0.5, 0.5), (0.7, 0.3), (0.85, 0.15), (1.3, -0.3)])
def test_weighted_pairs_are_found(dtype, pair):
    kind = TYPES[dtype]
    bases = [weights(seed, kind) for seed in range(2)]
    made = kind(pair[0]) * bases[0] + kind(pair[1]) * bases[1]
    fit = fit_combine(made.tobytes(), [base.tobytes() for base in bases], dtype=dtype)
    assert fit.share == 0
    assert predicted_exactly(fit, made, bases)


def test_interpolation_is_found():
    one, other = weights(0), weights(1)
    for share in (0.25, 0.8):
        made = one + F32(share) * (other - one) if share < 0.5 else other - F32(1 - share) * (other - one)
        fit = fit_combine(made.tobytes(), [one.tobytes(), other.tobytes()], dtype="F32")
        assert fit.share == 0
        assert predicted_exactly(fit, made, [one, other])


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_task_arithmetic_is_found(dtype):
    kind = TYPES[dtype]
    bases = [weights(seed, kind) for seed in range(3)]
    for scale in (1, 0.5, 0.3):
        step = (F32(scale) * (bases[1] - bases[2]).astype(F32)).astype(kind)
        made = (bases[0] + step).astype(kind)
        fit = fit_tasks(made.tobytes(), [base.tobytes() for base in bases], dtype=dtype)
        assert fit.share < (0.001 if dtype == "F32" or scale != 0.3 else 0.05)
    with pytest.raises(ValueError, match="one and some pairs"):
        fit_tasks(made.tobytes(), [made.tobytes()] * 2, dtype=dtype)


@pytest.mark.parametrize("dtype", ["F32", "F64", "BF16", "F16"])
def test_task_vectors_that_are_added_before_they_are_scaled_are_found(dtype):
    """As the authors of task arithmetic do it (https://arxiv.org/abs/2212.04089)."""
    kind = TYPES[dtype]
    wide = F32 if np.dtype(kind).itemsize == 2 else kind
    base, one, other = (weights(seed, kind) for seed in range(3))
    vectors = ((one - base) + (other - base)).astype(wide)
    made = (base + (wide(0.8) * vectors).astype(kind)).astype(kind)
    bases = [base, one, base, other, base]
    fit = fit_tasks(made.tobytes(), [item.tobytes() for item in bases], dtype=dtype)
    assert fit.share == 0
    assert predicted_exactly(fit, made, bases)


def test_bases_that_are_equal_have_a_mean():
    base = weights(0)
    fit = fit_combine(base.tobytes(), [base.tobytes()] * 2, dtype="F32")
    assert fit.share == 0


def test_values_that_are_not_finite_do_no_harm():
    bases = [weights(0), weights(1)]
    bases[0][:3] = np.nan, np.inf, -np.inf
    made = bases[0] * F32(0.7) + bases[1] * F32(0.3)
    fit = fit_combine(made.tobytes(), [base.tobytes() for base in bases], dtype="F32")
    assert fit.share < 0.05


RULES = {
    Rule.DIVIDE: lambda x, s, z: np.rint(x / s) + z,
    Rule.RECIPROCAL: lambda x, s, z: np.rint(x * (F32(1) / s)) + z,
    Rule.ZERO_FIRST: lambda x, s, z: np.rint(x / s + z),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("target", ["I8", "U4", "U16"])
def test_rules_of_quantising_are_found(rule, target):
    values = weights(5)
    scale = F32((values.max() - values.min()) / {"I8": 255, "U4": 15, "U16": 65535}[target])
    zero = F32({"I8": 3, "U4": 8, "U16": 32000}[target])
    low, high = {"I8": (-127, 127), "U4": (0, 15), "U16": (0, 65535)}[target]
    made = np.clip(RULES[rule](values, scale, zero), low, high).astype(int)
    fit = fit_quantise(made, values, np.array([scale]), np.array([zero]), target=target)
    assert fit.share == 0
    assert fit.limits in {(low, high), (-128, 127)}
    worse = fit_quantise(made, weights(6), np.array([scale]), np.array([zero]), target=target)
    assert worse.share > 0.3


@pytest.mark.parametrize("target", ["Q8_0", "Q4_1", "Q4_K", "IQ4_NL"])
def test_whether_blocks_have_scales_by_rule_is_found(target):
    block = BLOCKS[target]
    values = weights(7, F32, 256 * 64)
    floats = [values.view(np.uint8)]
    chance = np.random.default_rng(8)
    scales = chance.integers(0x20, 0x24, 256 * 64 // block.elements * block.scale_bytes, np.uint8)
    given = OPERATIONS[6, 1].apply(gguf_step(0, 1, target=target).parameters, [floats, [scales]])
    fit = fit_gguf(given, values, target=target)
    assert fit.given
    assert 0.01 < fit.share < 0.06
    if block.has_rule:
        ruled = OPERATIONS[6, 1].apply(gguf_step(0, target=target).parameters, [floats])
        fit = fit_gguf(ruled, values, target=target)
        assert (fit.share, fit.given) == (0, False)
    assert fit_gguf(given, weights(9, F32, 256 * 64), target=target).share > 0.3


@pytest.mark.parametrize("scale", [2, 0.5, 1 / 3, 0.1])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_merges_of_adapters_are_found(dtype, scale):
    kind = TYPES[dtype]
    base, a = weights(0, kind, 40 * 96).reshape(40, 96), weights(1, kind, 8 * 96).reshape(8, 96)
    b = weights(2, kind, 40 * 8).reshape(40, 8)
    product = b.astype(F32) @ a.astype(F32)
    made = (base.astype(F32) + F32(scale) * product).astype(kind)
    arrays = [array.tobytes() for array in (made, base, a, b)]
    fit = fit_lora(*arrays, rank=8, dtype=dtype)
    assert fit.share < 0.001
    assert fit.scale == pytest.approx(scale, rel=1e-6)
    assert fit_lora(arrays[1], *arrays[1:], rank=8, dtype=dtype) is None
    stranger = weights(5, kind, 40 * 96).tobytes()
    assert fit_lora(stranger, *arrays[1:], rank=8, dtype=dtype) is None
