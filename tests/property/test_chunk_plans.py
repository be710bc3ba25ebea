"""Whatever the files, the tensors in them and the cuts: a chunk that is encoded by its plan comes back."""

from __future__ import annotations

import itertools

import numpy as np
from fakes.payloads import decode
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs import Encoding
from casstore.codecs.delta import encode_delta
from casstore.digest import digest
from casstore.format.layout import Layout
from casstore.format.spans import pack_spans
from casstore.store.adding.bases.base_tensors import BaseFile
from casstore.store.adding.bases.chunk_plan import plan_chunk
from casstore.store.adding.bases.relation import Relation, same
from casstore.store.adding.bases.sketch import WIDTHS
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
