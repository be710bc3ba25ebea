"""The machine's loop and its table of actions are two forms of one thing: the same result for every pickle."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
from fakes.model_files import View, parts, pickle_dict, pickle_of, pickle_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.tensors.span import Unrecognised
from casstore.tensors.torch import pickle_machine
from casstore.tensors.torch.pickle_machine import read_symbols
from casstore.tensors.torch.symbols import Node


class ByTable(pickle_machine._Machine):
    """Runs a pickle by the table alone: an action for each opcode."""

    def run(self):
        for _ in range(pickle_machine.MAX_OPCODES):
            opcode = self.take(1)[0]
            if opcode == pickle_machine._STOP:
                return self.pop_last()
            pickle_machine._ACTIONS[opcode](self)
        raise Unrecognised("an absurd pickle")

    def pop_last(self):
        return self._stack.pop()


def outcome(data, machine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pickle_machine, "_Machine", machine)
        try:
            symbols = read_symbols(data)
        except Unrecognised:
            return "unknown"
    return plain(symbols.value, {}), symbols.storages, symbols.end


def plain(value, seen):
    """Return a value that compares by content: a container that is met again stands for its first place."""
    if isinstance(value, Node | list) or (type(value) is tuple and value):
        if id(value) in seen:
            return ("again", seen[id(value)])
        seen[id(value)] = len(seen)
        if isinstance(value, Node):
            kinds = (value.args, value.items, value.state)
            return ("node", *(tuple(plain(item, seen) for item in kind) for kind in kinds))
        return (type(value), *(plain(item, seen) for item in value))
    return (type(value), value)


def check(data):
    got = outcome(data, pickle_machine._Machine)
    assert got == outcome(data, ByTable)
    return got


A = np.arange(6, dtype="f4").reshape(2, 3)
TENSOR = pickle_tensor(View("0", "F32", 0, (2, 3), (3, 1)), parts(A))
PIECES = [
    *(bytes([opcode]) for opcode in range(256)),
    *(bytes([opcode]) for opcode in b"()(tQR\x85\x86\x87}]uaeN\x88\x89\x94b." * 4),
    TENSOR,
    b"X\7\0\0\0storage",
    b"X\1\0\0\0\xff",
    b"X\xff\xff\xff\xff",
    b"\x8c\3abc",
    b"\x8c\xffabc",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cc\nd\n",
    b"K\1",
    b"M\1\2",
    b"J\xff\xff\xff\xff",
    b"G" + struct.pack(">d", 0.5),
    *(bytes([opcode, index]) for opcode in b"qh" for index in (0, 1, 2)),
    *(struct.pack("<BI", opcode, index) for opcode in b"rj" for index in (0, 1, 1 << 31)),
]


@settings(max_examples=600)
@given(st.lists(st.sampled_from(PIECES), max_size=40), st.binary(max_size=8))
def test_arbitrary_pickles(pieces, tail):
    check(b"\x80\x02" + b"".join(pieces) + tail)
    check(pickle_of(b"".join(pieces) + b"0" * len(tail)))


@settings(max_examples=200)
@given(st.data())
def test_mutated_pickles(data):
    pickled = bytearray(pickle_of(pickle_dict({"a": TENSOR, "b": b"](" + TENSOR + b"q\1h\1e"})))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(pickled) - 1))
        pickled[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(pickled)))
    check(bytes(pickled))
    check(bytes(pickled[:cut]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.integers(1, pickle.HIGHEST_PROTOCOL))
def test_pickles_of_every_binary_protocol(value, protocol):
    data = pickle.dumps([OrderedDict(value=value), value, 7], protocol=protocol)
    _, _, end = check(data)
    assert end == len(data)
    assert read_symbols(b"before" + data + b"behind", 6).end == 6 + end
    assert read_symbols(data).value[2] == 7


def test_every_opcode_beside_the_end():
    # Arguments that the pickle cuts short, at each opcode of the loop and of the table.
    for opcode in range(256):
        for length in range(10):
            check(b"NN(K\1" + bytes([opcode]) + b"\1" * length)
            check(bytes([opcode]) + b"\0" * length + b".")


def test_both_have_the_limit_of_opcodes(monkeypatch):
    data = pickle_of(TENSOR)
    assert check(data) != "unknown"
    monkeypatch.setattr(pickle_machine, "MAX_OPCODES", 20)
    assert check(data) == "unknown"
