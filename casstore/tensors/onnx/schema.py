"""What the messages of ONNX hold, as far as it leads to tensors, and the wire types of protobuf.

Sources: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import re
from typing import NamedTuple

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)

# TensorProto.DataType; strings (8) have no fixed size.
DTYPE_NAMES = {
    1: "F32",
    2: "U8",
    3: "I8",
    4: "U16",
    5: "I16",
    6: "I32",
    7: "I64",
    9: "BOOL",
    10: "F16",
    11: "F64",
    12: "U32",
    13: "U64",
    14: "C64",
    15: "C128",
    16: "BF16",
    17: "F8_E4M3",
    18: "F8_E4M3FNUZ",
    19: "F8_E5M2",
    20: "F8_E5M2FNUZ",
    21: "U4",
    22: "I4",
    23: "F4",
    24: "F8_E8M0",
    25: "U2",
    26: "I2",
    27: "F6_E2M3",
    28: "F6_E3M2",
}

# Data type → field of typed values that, packed, are the same little-endian bytes as raw_data (9).
TYPED_FIELDS = {1: 4, 14: 4, 11: 10, 15: 10}

# Message → {field number: message it holds}, for the messages that lead to tensors.
CHILDREN = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
}
# Wire types of other known fields: a mismatch says that this is no ONNX file. Fields that are not listed may be newer.
WIRES = {
    "Model": {
        1: VARINT,
        2: BYTES,
        3: BYTES,
        4: BYTES,
        5: VARINT,
        6: BYTES,
        8: BYTES,
        14: BYTES,
        26: BYTES,
    },
    "Graph": {2: BYTES, 10: BYTES, 11: BYTES, 12: BYTES, 13: BYTES, 14: BYTES, 16: BYTES},
    "Node": {
        1: BYTES,
        2: BYTES,
        3: BYTES,
        4: BYTES,
        6: BYTES,
        7: BYTES,
        8: BYTES,
        9: BYTES,
        10: BYTES,
    },
}


class Tags(NamedTuple):
    """Whole tags of fields of a message, for compiled kernels: 0 where there is no such field, or its tag is not one byte.

    `plain` has a bit for the number of each known, length-delimited field that leads nowhere.
    """

    node: int
    tensor: int
    plain: int


def _tag(kind: str, child: str) -> int:
    """Return the tag of the field of a message that holds `child`."""
    numbers = (number for number, name in CHILDREN[kind].items() if name == child and number < 16)
    return next((number << 3 | BYTES for number in numbers), 0)


def _plain(kind: str) -> set[int]:
    """Return the numbers of the known, length-delimited fields of a message that lead nowhere."""
    return {number for number, wire in WIRES.get(kind, {}).items() if wire == BYTES} - set(CHILDREN[kind])


def _steps(kind: str) -> list[tuple[str | None, bool] | None]:
    """Return for each first byte of a field of a message: the message that it holds, and whether it names a node.

    None where the byte is not the whole tag of a known, length-delimited field.
    """
    steps: list[tuple[str | None, bool] | None] = [None] * 256
    for number in _plain(kind) | set(CHILDREN[kind]):
        if number < 16:
            steps[number << 3 | BYTES] = (CHILDREN[kind].get(number), kind == "Node" and number == 2)
    return steps


def _first_byte(number: int) -> int:
    """Return the first byte of the tag of a length-delimited field."""
    tag = number << 3 | BYTES
    return tag if tag < 0x80 else tag & 0x7F | 0x80


# Message → what compiled kernels find in it.
TAGS = {
    kind: Tags(
        _tag(kind, "Node"), _tag(kind, "Tensor"), sum(1 << number for number in _plain(kind) if number < 16)
    )
    for kind in ("Graph", "Function")
}
STEPS = {kind: _steps(kind) for kind in CHILDREN}
# The first bytes of the fields that lead from an attribute to a tensor.
LEADS_ON = re.compile(b"[%b]" % re.escape(bytes({_first_byte(number) for number in CHILDREN["Attribute"]})))
