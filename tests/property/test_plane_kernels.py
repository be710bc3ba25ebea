"""Payloads of planes and probes of samples: compiled kernels give what the code in Python gives, byte for byte."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs import kernels, planes
from casstore.codecs.planes import Plan, RunPlan
from casstore.codecs.sample import Sample
from casstore.codecs.zstd import Method
from tests.fakes.implementations import COMPILED, using


@pytest.fixture(autouse=True)
def _compiled():
    assert COMPILED is not None, "the kernels were not compiled: is there a compiler?"
    with using(COMPILED):
        yield


@st.composite
def elements(draw):
    """Draw bytes of elements in which some columns are skewed, constant, or noise, and where chunks begin."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    stride = draw(st.sampled_from([2, 3, 4, 8, 18, 34, 144]))
    phase = draw(st.integers(0, stride - 1))
    counts = draw(st.lists(st.integers(2, 4000), min_size=1, max_size=4))
    body = np.zeros((sum(counts), stride), np.uint8)
    for column in range(stride):
        kind = draw(st.sampled_from(["noise", "skewed", "one", "one for some"]))
        if kind == "noise":
            body[:, column] = random.integers(0, 256, len(body))
        elif kind == "skewed":
            body[:, column] = np.clip(random.normal(100, 2, len(body)), 0, 255)
        else:
            body[:, column] = 7
            if kind == "one for some":
                body[: counts[0], column] = random.integers(0, 3, counts[0])
    tail = draw(st.integers(0, stride - 1))
    edges = [0, *(phase + stride * count for count in itertools.accumulate(counts))]
    edges[-1] += tail
    data = np.concatenate([random.integers(0, 256, phase), body.reshape(-1), random.integers(0, 256, tail)])
    return data.astype(np.uint8), edges, stride, phase


@st.composite
def runs_of(draw, stride):
    """Draw how elements are stored; the last two runs are single columns where the sign moves."""
    sign = stride in (2, 4) and draw(st.booleans())
    widths, left = [], stride - 2 * sign
    while left:
        widths.append(draw(st.integers(1, left)))
        left -= widths[-1]
    widths += [1, 1] * sign
    methods = st.sampled_from([None, Method.LITERALS])
    return Plan(stride, sign, tuple(RunPlan(width, draw(methods)) for width in widths))


@given(drawn=elements(), lead=st.integers(0, 9), data=st.data())
def test_payloads_are_those_that_python_composes(drawn, lead, data):
    stretch, edges, stride, phase = drawn
    plan = data.draw(runs_of(stride))
    room = len(stretch) + lead * (len(edges) - 1)
    found = np.full(room + 5, 99, np.uint8)
    sizes = planes.encode_planes(stretch, edges, phase, plan, found, lead=lead)
    position = 0
    for (is_planes, size), parts, (begin, end) in zip(
        sizes, planes.compose(stretch, edges, phase, plan), itertools.pairwise(edges), strict=True
    ):
        expected = stretch[begin:end] if parts is None else np.concatenate(parts)
        assert is_planes == (parts is not None)
        assert (found[position : position + lead] == 99).all()
        position += lead
        assert size == len(expected)
        assert found[position : position + size].tobytes() == expected.tobytes()
        position += size
    assert (found[room:] == 99).all()


@pytest.mark.parametrize(
    "change",
    [
        {"edges": (0, 40, 63)},
        {"edges": (1, 64)},
        {"edges": (0, 1, 64)},
        {"edges": (0,)},
        {"edges": (0, 41, 64)},
        {"phase": 4},
        {"phase": -1},
        {"stride": 513},
        {"stride": 1},
        {"runs": ((1, True), (2, True))},
        {"runs": ((5, True),)},
        {"runs": ()},
        {"sign": True, "runs": ((2, True), (2, True))},
        {"lead": -1},
        {"lead": 33},
        {"out": np.empty(63, np.uint8)},
        {"memory": np.empty(64, np.uint8)},
    ],
)
def test_what_does_not_fit_is_refused(change):
    given_ = {
        "stretch": np.zeros(64, np.uint8),
        "memory": np.empty(4096, np.uint8),
        "out": np.empty(96, np.uint8),
        "edges": (0, 32, 64),
        "phase": 0,
        "stride": 4,
        "sign": False,
        "runs": ((2, False), (2, True)),
        "lead": 16,
    }
    assert COMPILED.planes(*given_.values())
    with pytest.raises(ValueError, match=r"elements|room"):
        COMPILED.planes(*(given_ | change).values())


@given(drawn=elements())
def test_probes_of_columns_are_those_of_the_columns_alone(drawn):
    stretch, _, stride, phase = drawn
    sample = Sample.of(stretch, stride, phase)
    fields = (1,) * stride if stride <= 8 else (1, 1, stride - 2)
    found = kernels.probe_columns(sample, fields)
    starts = itertools.accumulate(fields, initial=0)
    assert found.columns == [
        kernels.probe_literals(sample.column(start, width))
        for start, width in zip(starts, fields, strict=False)
    ]
    moved = [kernels.probe_literals(sample.moved_column(at)) for at in range(2 * (stride == 2))]
    assert found.moved == moved


@pytest.mark.parametrize(
    "change",
    [
        {"phase": -1},
        {"phase": 65},
        {"phase": 1},
        {"step": 17},
        {"step": -1},
        {"pieces": 0},
        {"pieces": 1 << 62},
        {"rows": 0},
        {"rows": 1 << 62},
        {"stride": 0},
        {"stride": 1 << 62},
        {"fields": ()},
        {"fields": (1,)},
        {"fields": (1, 2)},
        {"fields": (1,) * 17},
        {"fields": (0, 2)},
    ],
)
def test_samples_outside_the_data_are_refused(change):
    given_ = {
        "data": np.zeros(64, np.uint8),
        "stride": 2,
        "phase": 0,
        "step": 16,
        "pieces": 4,
        "rows": 8,
        "fields": (1, 1),
        "move_sign": True,
    }
    assert len(COMPILED.probe_columns(*given_.values())) == 4
    with pytest.raises(ValueError, match=r"sample|fields"):
        COMPILED.probe_columns(*(given_ | change).values())
