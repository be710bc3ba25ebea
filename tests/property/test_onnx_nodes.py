"""Nodes of ONNX graphs: compiled kernels find the tensors that the walk in Python finds, and refuse the same files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from casstore.tensors.onnx import walk
from casstore.tensors.onnx.walk import Walk
from casstore.tensors.span import Unrecognised
from tests.fakes.implementations import COMPILED, using

NAMES = st.one_of(st.sampled_from(["", "out", "weight*2", "Zü"]), st.text("ab*2RZ", max_size=300))
NUMBERS = st.integers(-(1 << 40), 1 << 40)


@st.composite
def tensors(draw):
    values = np.arange(draw(st.integers(0, 40)), dtype="<f4")
    tensor = numpy_helper.from_array(values, draw(NAMES))
    if draw(st.booleans()):
        tensor.dims.append(1)
    return tensor


@st.composite
def nodes(draw, depth=0):
    outputs = draw(st.lists(NAMES, max_size=3))
    node = helper.make_node("Op", draw(st.lists(NAMES, max_size=3)), outputs, name=draw(NAMES))
    for at in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["number", "list", "text", "tensor", "tensors", "graph"]))
        if kind == "graph" and depth < 6:
            value = helper.make_graph(draw(st.lists(nodes(depth=depth + 1), max_size=2)), "inner", [], [])
        elif kind == "tensor":
            value = draw(tensors())
        elif kind == "tensors":
            value = [draw(tensors())]
        elif kind == "list":
            value = draw(st.lists(NUMBERS, min_size=1, max_size=5))
        else:
            value = draw(NUMBERS) if kind == "number" else draw(st.binary(max_size=60))
        node.attribute.append(helper.make_attribute(f"a{at}", value))
    return node


@st.composite
def models(draw):
    graph = helper.make_graph(
        draw(st.lists(nodes(), max_size=6)), "g", [], [], draw(st.lists(tensors(), max_size=3))
    )
    model = helper.make_model(graph, ir_version=8)
    if draw(st.booleans()):
        function = onnx.FunctionProto(name="f", domain="d", node=draw(st.lists(nodes(), max_size=2)))
        model.functions.append(function)
    return bytearray(model.SerializeToString())


class Memory:
    def __init__(self, data):
        self.data = bytes(data)
        self.size = len(data)

    def read(self, offset, length):
        return self.data[offset : offset + length]


def walked(data, kernels):
    found = Walk(Memory(data))
    with using(kernels):
        try:
            return found.tensors(), found._fields_left
        except Unrecognised as error:
            return str(error)


@given(data=models(), changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=3))
def test_both_find_the_same(data, changes):
    for place, value in changes:
        data[place % len(data)] = value
    assert COMPILED is not None, "the kernels were not compiled: is there a compiler?"
    assert walked(data, COMPILED) == walked(data, None)


@pytest.mark.parametrize("limit", [0, 5, 20, 200])
@given(data=models())
def test_both_stop_at_the_same_number_of_fields(limit, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "MAX_FIELDS", limit)
        assert walked(data, COMPILED) == walked(data, None)


def test_both_find_the_same_at_the_end_of_a_window():
    """Names that are cut off there, in nodes that come last before it."""
    for extra in range(40):
        nodes = b"\x0a\x03\x2a\x01\x0f" * 1635 + b"\x12\x0b" + b"a" * 11 + b"\x0a\x02\x2a\x00" * extra
        data = b"\x08\x07\x3a" + _varint(len(nodes)) + nodes
        for cut in range(8):
            assert walked(data[: len(data) - cut], COMPILED) == walked(data[: len(data) - cut], None)


def _varint(value):
    return bytes(
        [value & 0x7F | 0x80, *([value >> 7 & 0x7F | 0x80, value >> 14] if value >> 14 else [value >> 7])]
    )


@pytest.mark.parametrize(("begin", "end"), [(-1, 3), (2, 1), (0, 4)])
def test_a_message_outside_the_data_is_refused(begin, end):
    with pytest.raises(ValueError, match="message"):
        COMPILED.skip_nodes(b"abc", begin, end, 10)
