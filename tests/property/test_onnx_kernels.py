"""ONNX graphs: compiled kernels find the tensors that the walk in Python finds, read the same bytes, and refuse the same files."""

from __future__ import annotations

import random

import pytest
from fakes.model_files import onnx_model, proto_field, proto_varint
from hypothesis import given
from hypothesis import strategies as st

from casstore.tensors.onnx import walk, wire
from casstore.tensors.onnx.walk import Walk
from casstore.tensors.span import Unrecognised
from tests.fakes.implementations import COMPILED, using

ODD = [
    b"\x7b\x08\x01\x7c",  # A group.
    b"\x09" + bytes(8),  # A dimension of eight bytes.
    b"\x25" + bytes(4),  # A float that is not packed.
    proto_field(8, b"\xff"),
    proto_field(1, b"\x81"),
    proto_field(9, b"again"),
    proto_field(12, "documentation"),
    proto_field(99, 1),
    proto_field(3000, 1),
    b"\x80\x01\x01",
    b"\0\0",
]


class Models:
    """Makes models as exporters write them, and some as nobody does, from a seed: faster than by drawing each field."""

    def __init__(self, seed):
        self._random = random.Random(seed)

    def model(self):
        extra = []
        if self._is(0.3):
            function = proto_field(1, "f") + b"".join(proto_field(7, self._node(0)) for _ in range(2))
            extra.append(proto_field(25, function))
        return bytearray(onnx_model(self._graph(0), *extra))

    def _graph(self, depth):
        fields = [proto_field(1, self._node(depth)) for _ in range(self._count(5))]
        fields.append(proto_field(2, self._name()))
        fields += [proto_field(5, self._tensor()) for _ in range(self._count(5))]
        fields += [proto_field(self._one([11, 12, 13, 14, 16]), b"info") for _ in range(self._count(4))]
        if self._is(0.2):
            fields.append(proto_field(15, proto_field(1, self._tensor())))
            self._random.shuffle(fields)
        return b"".join(fields)

    def _node(self, depth):
        fields = [
            proto_field(1, self._name()),
            *(proto_field(2, self._name()) for _ in range(self._count(2))),
        ]
        fields += self._perhaps(proto_field(4, "Op"))
        return b"".join([*fields, *(proto_field(5, self._attribute(depth)) for _ in range(self._count(3)))])

    def _attribute(self, depth):
        kind = self._one(["number", "list", "text", "tensor", "tensor", "tensor", "tensors", "graph"])
        fields = [proto_field(1, self._name())]
        if kind == "graph" and depth < 6:
            fields.append(proto_field(6, self._graph(depth + 1)))
        elif kind in ("tensor", "tensors"):
            fields.append(proto_field(5 if kind == "tensor" else 10, self._tensor()))
        elif kind == "list":
            fields += [proto_field(8, self._number()) for _ in range(self._count(5))]
        else:
            fields.append(
                proto_field(3, self._number()) if kind == "number" else proto_field(4, self._name())
            )
        return b"".join([*fields, proto_field(20, 4)])

    def _tensor(self):
        dims = [self._number() for _ in range(self._one([0, 1, 2, 4, 16 + self._is(0.05)]))]
        fields = [proto_field(1, dim) for dim in dims]
        if self._is(0.2):
            fields = [proto_field(1, b"".join(map(proto_varint, dims)))]
        fields += self._perhaps(proto_field(2, self._one([1, 7, 11, 14, self._number()])))
        fields += self._perhaps(proto_field(4, self._payload()), 0.2)
        fields += self._perhaps(proto_field(8, self._name()))
        fields += self._perhaps(proto_field(9, self._payload()))
        fields += self._perhaps(proto_field(10, self._payload()), 0.2)
        if self._is(0.2):
            fields += [
                proto_field(13, self._entry()) for _ in range(self._one([1, 2, 3, 3, 64 + self._is(0.1)]))
            ]
        fields += self._perhaps(proto_field(14, self._count(2)), 0.3)
        if self._is(0.1):
            fields += [self._one(ODD) for _ in range(self._count(2))]
            self._random.shuffle(fields)
        return b"".join(fields)

    def _entry(self):
        key, value = self._one(["location", "offset", self._name()]), self._name()
        odd = self._perhaps(self._one([proto_field(1, ""), proto_field(2, 7), proto_field(3, "x")]), 0.01)
        return b"".join([proto_field(1, key), proto_field(2, value), *odd])

    def _payload(self):
        """Return bytes, of which some are more than what is read at once."""
        return bytes(self._count(60) if self._is(0.7) else 3900 + self._count(5000))

    def _name(self):
        name = self._one(["", "out", "weight*2", "Zü", "aR" * self._count(150)])
        return "x" * 4097 if self._is(0.002) else name

    def _number(self):
        return self._random.getrandbits(self._one([2, 6, 8, 30, 64]))

    def _count(self, most):
        return self._random.randint(0, most)

    def _is(self, share):
        return self._random.random() < share

    def _one(self, values):
        return self._random.choice(values)

    def _perhaps(self, field, share=0.8):
        return [field] if self._is(share) else []


MODELS = st.builds(lambda seed: Models(seed).model(), st.integers(0, (1 << 32) - 1))


class Memory:
    def __init__(self, data):
        self.data = bytes(data)
        self.size = len(data)
        self.reads = []

    def read(self, offset, length):
        self.reads.append((offset, length))
        return self.data[offset : offset + length]


def walked(data, kernels):
    """Return what a walk finds, how much of its limits it leaves, and what it reads, or why it refuses the file."""
    source = Memory(data)
    found = Walk(source)
    with using(kernels):
        try:
            return found.tensors(), found.left, found._tensors_left, source.reads
        except Unrecognised as error:
            return str(error), source.reads


@given(data=MODELS, changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=3))
def test_both_find_the_same(data, changes):
    for place, value in changes:
        data[place % len(data)] = value
    assert COMPILED is not None, "the kernels were not compiled: is there a compiler?"
    assert walked(data, COMPILED) == walked(data, None)


@given(data=MODELS, cut=st.integers(0, 1 << 20))
def test_both_refuse_what_was_cut_off(data, cut):
    data = data[: cut % len(data)]
    assert walked(data, COMPILED) == walked(data, None)


@pytest.mark.parametrize("limit", [0, 5, 20, 200])
@given(data=MODELS)
def test_both_stop_at_the_same_number_of_fields(limit, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "MAX_FIELDS", limit)
        assert walked(data, COMPILED) == walked(data, None)


@pytest.mark.parametrize("limit", [0, 1, 3])
@given(data=MODELS)
def test_both_stop_at_the_same_number_of_tensors(limit, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "MAX_SPANS", limit)
        assert walked(data, COMPILED) == walked(data, None)


def test_both_find_the_same_at_the_end_of_a_window():
    """Names that are cut off there, in nodes that come last before it."""
    for extra in range(40):
        nodes = b"\x0a\x03\x2a\x01\x0f" * 1635 + b"\x12\x0b" + b"a" * 11 + b"\x0a\x02\x2a\x00" * extra
        data = b"\x08\x07\x3a" + proto_varint(len(nodes)) + nodes
        for cut in range(8):
            assert walked(data[: len(data) - cut], COMPILED) == walked(data[: len(data) - cut], None)


def test_both_read_on_at_the_same_fields():
    """Tensors with a name, a dimension or an entry at each place about the end of a window."""
    tensor = b"".join(
        [
            proto_field(1, b"\x03\x84\x01"),
            proto_field(2, 1),
            proto_field(8, "weight"),
            proto_field(13, proto_field(1, "location") + proto_field(2, "data.bin")),
            proto_field(14, 1),
        ]
    )
    for size in range(4000, 4100):
        graph = proto_field(10, bytes(size)) + proto_field(5, tensor) + proto_field(1, proto_field(2, "out"))
        data = onnx_model(graph)
        assert walked(data, COMPILED) == walked(data, None)
        assert len(walked(data, COMPILED)[0]) == 1


@pytest.mark.parametrize(("begin", "end", "whole"), [(-1, 3, 3), (2, 1, 3), (0, 3, 4)])
def test_a_message_outside_the_data_is_refused(begin, end, whole):
    with pytest.raises(ValueError, match="message"):
        COMPILED.onnx_parts(b"abc", begin, end, whole, 0, (10, 42, 0), 1, 9, 9)
    with pytest.raises(ValueError, match="message"):
        COMPILED.onnx_tensor(b"abc", begin, end, whole, 0, 1, 9)
