"""Blocks of GGUF are the same with and without compiled kernels, near their floats, and keep the scales that are given.

That they are ggml's own blocks is shown by the vector delta-gguf of the format's page, which ggml made.
"""

from __future__ import annotations

import numpy as np
import pytest
from fakes.implementations import COMPILED, agreed
from fakes.operands import in_parts
from fakes.payloads import decode
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs import Encoding
from casstore.codecs.delta import (
    LITERALS,
    Extent,
    Order,
    Residual,
    block_values,
    encode_delta,
    gguf,
    gguf_step,
    piece_of,
    scales_of,
)
from casstore.codecs.delta.operations import OPERATIONS
from casstore.codecs.delta.operations.gguf import BLOCKS
from casstore.errors import FormatError
from casstore.tensors.dtypes import DTYPES

RULED = [name for name, block in BLOCKS.items() if block.has_rule]


def made(name, values, scales=None):
    step = gguf_step(0, None if scales is None else 1, target=name)
    operation = OPERATIONS[step.operation, step.version]
    arrays = [values] if scales is None else [values, scales]
    operands = [in_parts(array.tobytes()) for array in arrays]
    size = operation.size(step.parameters, [array.nbytes for array in arrays])
    found = np.frombuffer(agreed(lambda: operation.apply(step.parameters, operands)), np.uint8)
    assert len(found) == size == len(values) // BLOCKS[name].elements * BLOCKS[name].size
    return found


def floats(data, count):
    """Return weights, among them blocks of zeros, ties, and numbers that are none."""
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    values = chance.normal(0, 0.05, count)
    ties = chance.integers(-8, 8, count) / 16
    values = np.where(chance.random(count) < data.draw(st.sampled_from([0, 0.5, 1])), ties, values)
    wild = chance.choice(np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e30, 1e-42]), count)
    values = np.where(chance.random(count) < data.draw(st.sampled_from([0, 0, 0.1])), wild, values)
    values[: data.draw(st.sampled_from([0, 0, count, count // 2]))] = data.draw(
        st.sampled_from([0.0, -0.0, 1])
    )
    return values.astype("<f4"), chance


def test_blocks_have_the_sizes_that_tensor_files_have():
    for name, block in BLOCKS.items():
        assert (DTYPES[name].block_elements, DTYPES[name].block_bytes) == (block.elements, block.size)


@pytest.mark.parametrize("name", BLOCKS)
@given(data=st.data())
def test_numpy_and_kernels_agree_whatever_the_scales(name, data):
    block = BLOCKS[name]
    count = data.draw(st.integers(1, 4))
    values, chance = floats(data, block.elements * count)
    scales = chance.integers(0, 256, count * block.scale_bytes, np.uint8)
    if data.draw(st.booleans()):
        # Scales of weights: no infinities, and steps of about the right size.
        scales[1 :: block.scale_bytes] = 0x20
    found = made(name, values, scales)
    assert scales_of(found, target=name).tobytes() == scales.tobytes()


@pytest.mark.parametrize("name", RULED)
@given(data=st.data())
def test_numpy_and_kernels_agree_on_scales_by_rule(name, data):
    values, _ = floats(data, BLOCKS[name].elements * data.draw(st.integers(1, 5)))
    assert made(name, values).any() or not values.any()


@pytest.mark.parametrize("name", RULED)
def test_scales_by_rule_are_used_before_they_are_rounded(name):
    """So blocks from the scales that a file holds differ from them, but hardly ever."""
    values = np.random.default_rng(1).normal(0, 0.05, 1 << 15).astype("<f4")
    found = made(name, values)
    again = made(name, values, scales_of(found, target=name))
    assert 0 < (found != again).mean() < 0.02


def test_floats_come_back_from_their_blocks():
    """A reader of the simplest types finds each float again to within half a step."""
    values = np.random.default_rng(1).normal(0, 0.05, 320).astype("<f4").reshape(-1, 32)
    blocks = made("Q8_0", values.reshape(-1)).reshape(-1, 34)
    steps = blocks[:, :2].copy().view("<f2").astype(np.float32)
    assert np.abs(blocks[:, 2:].view(np.int8) * steps - values).max() <= steps.max() * 0.51
    blocks = made("Q4_0", values.reshape(-1)).reshape(-1, 18)
    steps = blocks[:, :2].copy().view("<f2").astype(np.float32)
    quants = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(int) - 8
    # The number of greatest magnitude has the end of the range; at the other end, one step is missing.
    assert np.abs(quants * steps - values).max() <= np.abs(steps).max() * 1.01


@pytest.mark.parametrize("name", BLOCKS)
def test_what_blocks_stand_for_makes_the_same_blocks(name):
    block, chance = BLOCKS[name], np.random.default_rng(3)
    values = chance.normal(0, 40, (50, block.elements)).astype("<f4")
    scales = chance.integers(1, 50, (50, block.scale_bytes)).astype(np.uint8)
    rows = made(name, values.ravel(), scales.ravel()).reshape(50, -1)
    found, apart = block_values(name, rows)
    again, _ = block_values(name, made(name, found.ravel(), scales.ravel()).reshape(50, -1))
    has_steps = apart > 0
    assert has_steps.mean() > 0.9
    assert np.allclose(found[has_steps], again[has_steps], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
def test_blocks_are_predicted_from_a_model_of_other_floats(source):
    values = np.random.default_rng(2).normal(0, 0.05, 512).astype("<f4")
    base = {"F32": values, "F16": values.astype("<f2"), "BF16": (values.view("<u4") >> 16).astype("<u2")}[
        source
    ]
    wide = {"F32": values, "F16": values.astype("<f2").astype("<f4")}.get(source)
    if wide is None:
        wide = (base.astype("<u4") << 16).view("<f4")
    scales = np.random.default_rng(3).integers(0, 60, 2 * BLOCKS["Q4_K"].scale_bytes, np.uint8)
    plain = made("Q4_K", wide, scales).tobytes()
    piece = gguf(
        0, [Extent(0, 0, base.nbytes)], [Extent(LITERALS, 0, len(scales))], target="Q4_K", source=source
    )
    payload = encode_delta(plain, [base.tobytes()], [piece], side=scales.tobytes())
    assert len(payload) < 250
    assert decode(Encoding.DELTA, payload, len(plain), [base.tobytes()]) == plain


def test_scales_and_residuals_of_blocks_are_compressed_column_by_column():
    chance = np.random.default_rng(4)
    block, count = BLOCKS["Q4_K"], 3000
    values = chance.normal(0, 0.05, count * block.elements).astype("<f4")
    columns = chance.integers(0, 4, (count, block.scale_bytes)) + 16 * np.arange(block.scale_bytes)
    scales = columns.astype(np.uint8).reshape(-1)
    plain = made("Q4_K", values, scales)
    pieces = [gguf(0, [Extent(0, 0, values.nbytes)], [Extent(LITERALS, 0, len(scales))], target="Q4_K")]
    payload = encode_delta(plain, [values], pieces, side=scales.tobytes())
    assert len(payload) < 0.3 * len(scales)
    # A base that is not quite what the blocks were made of misses few scales, by little, and some quants.
    moved = (values * (1 + chance.normal(0, 1e-3, len(values)))).astype("<f4")
    blocks = made("Q8_0", values)
    piece = gguf(0, [Extent(0, 0, values.nbytes)], target="Q8_0", residual=Residual(Order.INTEGER, 1))
    payload = encode_delta(blocks, [moved], [piece])
    assert len(payload) < 0.095 * len(blocks)
    assert decode(Encoding.DELTA, payload, len(blocks), [moved]) == blocks.tobytes()


@pytest.mark.parametrize(
    "parameters",
    [b"", b"\2\0\0", b"\2\0\0\0\0", b"\0\0\0\0", b"\2\2\0\0", b"\2\0\1\0", b"\14\0\0\0", b"\12\0\0\0"],
)
def test_absurd_parameters_are_refused_at_once(parameters):
    step = gguf_step(0, target="Q4_0")
    assert step.parameters == b"\2\0\0\0"
    assert piece_of(0, [[Extent(0, 0, 1024)]], [step]).end == 8 * 18
    with pytest.raises(FormatError):
        piece_of(0, [[Extent(0, 0, 1024)]], [step._replace(parameters=parameters)])


@pytest.mark.parametrize(
    "sizes", [(0, 0), (1023, 16), (512, 16), (1024,), (1024, 15), (1024, 32), (1024, 16, 16)]
)
def test_operands_that_do_not_fit_are_refused(sizes):
    with pytest.raises(FormatError):
        OPERATIONS[6, 1].size(gguf_step(0, 1, target="Q4_K").parameters, sizes)


@pytest.mark.parametrize(
    "arguments",
    [
        (bytes(128), bytearray(17), None, 2),
        (bytes(127), bytearray(18), None, 2),
        (bytes(128), bytearray(18), bytes(3), 2),
        (bytes(128), bytearray(18), None, 1),
        (bytes(128), bytearray(18), None, 20),
        (bytes(1024), bytearray(144), bytes(15), 12),
    ],
)
def test_compiled_blocks_refuse_what_does_not_fit(arguments):
    with pytest.raises(ValueError, match="fit"):
        COMPILED.gguf(*arguments)
