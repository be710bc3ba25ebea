"""Fuzz target for the operations of deltas: parameters and sizes are refused, or the result has the size that was announced.

An input is the operation, the number of operands, three bytes for the size of each, and the parameters; what the operands hold
follows from that. With compiled kernels and without, results are the same.
"""

from __future__ import annotations

import zlib

import numpy as np
from fakes.implementations import COMPILED, using

from casstore.codecs.delta import (
    Axis,
    Combination,
    Merge,
    Rounding,
    Rule,
    cast_step,
    combine_step,
    gguf_step,
    lora_step,
    quantise_step,
    transpose_step,
)
from casstore.codecs.delta.operations import OPERATIONS
from casstore.codecs.delta.operations.gguf import BLOCKS
from casstore.errors import FormatError

_MAX_OPERAND = 1 << 16


def fuzz_operation(data):
    if len(data) < 2 or (data[0], 1) not in OPERATIONS:
        return None
    operation, number = OPERATIONS[data[0], 1], data[1] % 6 + 1
    parameters = data[2 + 3 * number :]
    sizes = [int.from_bytes(data[at : at + 3], "little") for at in range(2, 2 + 3 * number, 3)]
    try:
        size = operation.size(parameters, sizes)
    except FormatError:
        return None
    if max(sizes) > _MAX_OPERAND or size > 8 * _MAX_OPERAND:
        return None
    chance = np.random.default_rng(zlib.crc32(data))
    parts = []
    for length in sizes:
        floats = chance.normal(0, 1, length // 4 + 1).astype("<f4").view(np.uint8)[:length]
        operand = chance.integers(0, 256, length, np.uint8) if chance.random() < 0.5 else floats
        cut = int(chance.integers(0, length + 1))
        parts.append([operand] if cut in {0, length} else [operand[:cut], operand[cut:]])
    found = []
    for kernels in {COMPILED, None}:
        with using(kernels):
            found.append(bytes(operation.apply(parameters, parts)))
    assert all(len(one) == size for one in found)
    assert len(set(found)) == 1
    return operation


def _seed(step, *sizes):
    head = bytes([step.operation, len(sizes) - 1])
    return head + b"".join(size.to_bytes(3, "little") for size in sizes) + step.parameters


def _seeds():
    yield _seed(cast_step(0, source="F32", target="F16"), 400)
    yield _seed(
        cast_step(0, source="F64", target="F8_E4M3", rounding=Rounding.NEAREST_AWAY, saturate=True), 800
    )
    yield _seed(cast_step(0, source="BF16", target="F32"), 200)
    yield _seed(transpose_step(0, width=4, shape=(20, 30), permutation=(1, 0), first=7, count=500), 2400)
    yield _seed(transpose_step(0, width=1, shape=(3, 4, 5), permutation=(2, 0, 1), first=0, count=60), 60)
    yield _seed(quantise_step(0, 1, 2, target="I8", axis=Axis(10, 4), first=5), 400, 16, 4)
    yield _seed(
        quantise_step(0, 1, target="U4", axis=Axis(1, 5, 50), rule=Rule.RECIPROCAL | Rule.HALF_AWAY), 400, 40
    )
    yield _seed(quantise_step(0, 1, 2, target="U16", rule=Rule.ZERO_FIRST, limits=(1, 9)), 400, 4, 2)
    yield _seed(combine_step((0, 1, 2), weights=[1, 2, 3], divisor=6), 400, 400, 400)
    yield _seed(
        combine_step((0, 1, 2), weights=[0.3], combination=Combination.FUSED_TASKS, rounding="F16"), 8, 8, 8
    )
    yield _seed(combine_step((0, 1), weights=[0.3, 0.7], element="F64"), 16, 16)
    for name, block in BLOCKS.items():
        yield _seed(gguf_step(0, 1, target=name), 4 * 2 * block.elements, 2 * block.scale_bytes)
        if block.has_rule:
            yield _seed(gguf_step(0, target=name), 4 * 2 * block.elements)
    rule = Merge.ROUND_PRODUCT | Merge.SCALE_FIRST
    yield _seed(lora_step(0, 1, 2, rank=3, columns=10, scale=0.5, first=4), 200, 120, 72)
    yield _seed(lora_step(0, 1, 2, rank=2, columns=10, scale=0.5, rule=rule, rounding="BF16"), 200, 80, 40)


TARGETS = {"delta-operations": (fuzz_operation, list(_seeds()))}
