"""Whatever the files, the tensors in them and the cuts: a chunk that is encoded by its plan comes back."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from fakes.counts import EXAMPLES
from fakes.payloads import decode
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.codecs import Encoding
from casstore.codecs.delta import Axis, Rule, cast_step, combine_steps, encode_delta
from casstore.codecs.delta.operations.gguf_blocks import quantise_blocks
from casstore.digest import digest
from casstore.format.layout import Layout
from casstore.format.spans import pack_spans
from casstore.store.adding.bases.planning.chunk_plan import plan_chunk
from casstore.store.adding.bases.rules.block_types import Blocks
from casstore.store.adding.bases.rules.quantising import Quantised, Scales
from casstore.store.adding.bases.rules.relation import Elementwise, Relation, Transposed, same
from casstore.store.adding.bases.tensors.base_tensors import BaseFile
from casstore.store.adding.bases.tensors.sketch import WIDTHS
from casstore.tensors import TensorSpan

DTYPES = ["F32", "BF16", "I8", "F64"]


@st.composite
def families(draw):
    """Return a file and a like one with the tensors in another order: each as bytes and spans."""
    kinds = draw(st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(1, 40)), min_size=1, max_size=8))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    data = [rng.integers(0, 256, elements * WIDTHS[dtype]).astype(np.uint8) for dtype, elements in kinds]
    files = []
    for _ in range(2):
        spans, parts, at = [], [], 0
        for number in draw(st.permutations(range(len(kinds)))):
            gap = draw(st.integers(0, 5))
            own = data[number].copy()
            own[:: draw(st.integers(1, 9))] ^= draw(st.integers(0, 3))
            parts += [rng.integers(0, 256, gap).astype(np.uint8), own]
            dtype, elements = kinds[number]
            spans.append(TensorSpan(f"t{number}", dtype, (elements,), at + gap, at + gap + len(own)))
            at += gap + len(own)
        files.append((np.concatenate(parts).tobytes(), spans))
    return files


def cut(draw, size):
    """Return the edges of chunks of a file."""
    inner = draw(st.lists(st.integers(1, max(1, size - 1)), max_size=6))
    return sorted({0, size, *(at for at in inner if at < size)})


@given(families(), st.data())
def test_chunks_come_back(files, data):
    (base, base_spans), (target, spans) = files
    edges = cut(data.draw, len(base))
    chunks = [base[begin:end] for begin, end in itertools.pairwise(edges)]
    layout = Layout(
        file_id=digest(base),
        size=len(base),
        ids=b"".join(map(digest, chunks)),
        lengths=np.array([len(chunk) for chunk in chunks], "<u4"),
        spans=pack_spans(base_spans),
    )
    file = BaseFile(digest(b"layout"), layout, [0] * len(chunks), may_read=False)
    plain = dict(zip(map(digest, chunks), chunks, strict=True))
    relations = [
        Relation(span, same(tensor))
        for span in spans
        if (tensor := file.by_name.get(span.name)) is not None and data.draw(st.booleans())
    ]
    edges = cut(data.draw, len(target))
    for begin, end in itertools.pairwise(edges):
        plan = plan_chunk(begin, memoryview(target[begin:end]), relations)
        predicted = any(
            min(end, relation.span.end) - max(begin, relation.span.begin) >= 2 * relation.width
            for relation in relations
        )
        assert plan is not None or not predicted
        if plan is not None:
            bases = [plain[chunk] for chunk in plan.bases]
            payload = encode_delta(target[begin:end], bases, plan.pieces)
            assert decode(Encoding.DELTA, payload, end - begin, bases) == target[begin:end]


def file_of(draw, tensors):
    """Return a base file of these arrays, cut anywhere, and its chunks by id."""
    spans, parts, at = [], [], 0
    for name, (dtype, array) in tensors.items():
        spans.append(TensorSpan(name, dtype, array.shape, at, at + array.nbytes))
        parts.append(array.tobytes())
        at += array.nbytes
    data = b"".join(parts)
    edges = cut(draw, len(data))
    chunks = [data[begin:end] for begin, end in itertools.pairwise(edges)]
    layout = Layout(
        file_id=digest(data),
        size=len(data),
        ids=b"".join(map(digest, chunks)),
        lengths=np.array([len(chunk) for chunk in chunks], "<u4"),
        spans=pack_spans(spans),
    )
    file = BaseFile(digest(b"derived"), layout, [0] * len(chunks), may_read=False)
    return file, dict(zip(map(digest, chunks), chunks, strict=True))


def cast_down(tensor, dtype):
    return Elementwise((tensor,), (cast_step(0, source="F32", target=dtype),), WIDTHS[dtype])


def quantised_by_column(tensor, columns, *, transposed):
    scales = np.linspace(0.001, 0.02, columns, dtype="<f4")
    zeros = (np.arange(columns) % 7).astype(np.int8)
    return Quantised(
        tensor,
        transposed,
        "I8",
        Scales(scales.tobytes(), zeros.tobytes()),
        Axis(1, columns),
        Rule.DIVIDE,
        (-128, 127),
    )


def quantised_as(array, columns):
    scales = np.linspace(0.001, 0.02, columns, dtype="<f4")
    zeros = (np.arange(columns) % 7).astype(np.float32)
    return np.clip(np.rint(array / scales) + zeros, -128, 127).astype(np.int8)


SCALE = np.array([0.01], "<f2").view(np.uint8)

DERIVED = {
    "a cast": lambda a, _, file: ("F16", a.astype("<f2"), cast_down(file.by_name["a"], "F16")),
    "a transpose": lambda a, _, file: ("F32", a.T, Transposed(file.by_name["a"], (), 4)),
    "a transposed cast": lambda a, _, file: (
        "F16",
        a.T.astype("<f2"),
        Transposed(file.by_name["a"], (cast_step(0, source="F32", target="F16"),), 2),
    ),
    "a mean": lambda a, b, file: (
        "F32",
        (a + b) / np.float32(2),
        Elementwise(
            (file.by_name["a"], file.by_name["b"]),
            combine_steps([0, 1], inputs=2, weights=[1, 1], divisor=2),
            4,
        ),
    ),
    "integers": lambda a, _, file: (
        "I8",
        quantised_as(a, a.shape[1]),
        quantised_by_column(file.by_name["a"], a.shape[1], transposed=False),
    ),
    "transposed integers": lambda a, _, file: (
        "I8",
        quantised_as(a.T, a.shape[0]),
        quantised_by_column(file.by_name["a"], a.shape[0], transposed=True),
    ),
    "blocks": lambda a, _, file: (
        "Q4_0",
        quantise_blocks("Q4_0", a.reshape(-1, 32), None),
        Blocks(file.by_name["a"], "Q4_0", given=False),
    ),
    "blocks with their scales": lambda a, _, file: (
        "Q8_0",
        quantise_blocks("Q8_0", a.reshape(-1, 32), np.tile(SCALE, (a.size // 32, 1))),
        Blocks(file.by_name["a"], "Q8_0", given=True),
    ),
}


@settings(max_examples=EXAMPLES // 2)
@given(st.sampled_from(sorted(DERIVED)), st.integers(2, 9), st.integers(1, 4), st.integers(0, 99), st.data())
def test_any_part_of_a_derived_tensor_is_predicted_exactly(how, rows, blocks, seed, data):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(0, 0.5, (rows, 32 * blocks)).astype("<f4") for _ in range(2))
    file, plain = file_of(data.draw, {"b": ("F32", b), "a": ("F32", a)})
    dtype, made, operation = DERIVED[how](a, b, file)
    before, after = rng.bytes(data.draw(st.integers(0, 9))), rng.bytes(data.draw(st.integers(0, 9)))
    own = np.ascontiguousarray(made).tobytes()
    target = before + own + after
    relation = Relation(TensorSpan("t", dtype, made.shape, len(before), len(before) + len(own)), operation)
    edges = cut(data.draw, len(target))
    for begin, end in itertools.pairwise(edges):
        plan = plan_chunk(begin, memoryview(target[begin:end]), [relation])
        if plan is not None:
            bases = [plain[chunk] for chunk in plan.bases]
            # Without residuals, so that only what is exact is accepted.
            pieces = [dataclasses.replace(piece, residual=None) for piece in plan.pieces]
            payload = encode_delta(target[begin:end], bases, pieces, side=plan.side)
            assert decode(Encoding.DELTA, payload, end - begin, bases) == target[begin:end]
