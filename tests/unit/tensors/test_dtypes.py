from __future__ import annotations

import numpy as np
import pytest

from casstore.errors import FormatError
from casstore.tensors import DTYPES, as_array, element_width


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("F64", 8), ("F32", 4), ("BF16", 2), ("F8_E4M3", 1), ("BOOL", 1), ("C128", 16), ("I4", 1), ("Q4_0", 18)],
)
def test_element_width(dtype, width):
    assert element_width(dtype) == width


@pytest.mark.parametrize(("dtype", "width"), [("Q8_0", 34), ("Q6_K", 210), ("MXFP4", 17), ("F6_E2M3", 3)])
def test_block_types_have_their_stride(dtype, width):
    assert element_width(dtype) == width


def test_an_unknown_type_has_width_one():
    assert element_width("F3_E1M1") == 1
    assert element_width("") == 1


def test_the_table_agrees_with_itself_and_numpy():
    for name, dtype in DTYPES.items():
        assert dtype.name == name
        if dtype.numpy is not None:
            assert np.dtype(dtype.numpy).itemsize == dtype.block_bytes
            assert dtype.block_elements == 1
            assert np.dtype(dtype.numpy).newbyteorder("<") == np.dtype(dtype.numpy)


@pytest.mark.parametrize(
    ("dtype", "shape", "length"),
    [
        ("F32", (2, 3), 24),
        ("F32", (), 4),
        ("F32", (0, 7), 0),
        ("I4", (3,), 2),
        ("I4", (3, 3), 5),
        ("U2", (5,), 2),
        ("F6_E2M3", (4,), 3),
        ("F6_E2M3", (5,), 4),
        ("Q4_0", (2, 64), 72),
        ("Q4_0", (64, 2), None),
        ("Q4_0", (), None),
        ("Q6_K", (256,), 210),
    ],
)
def test_byte_length(dtype, shape, length):
    assert DTYPES[dtype].byte_length(shape) == length


def test_as_array_copies_nothing():
    data = bytearray(np.arange(6, dtype="<f4").tobytes())
    array = as_array(data, "F32", (2, 3))
    data[:4] = np.float32(9).tobytes()
    assert array[0, 0] == 9
    assert not as_array(bytes(data), "F32", (6,)).flags.writeable


@pytest.mark.parametrize(
    ("dtype", "kind"), [("BF16", "<u2"), ("F8_E5M2", "|u1"), ("C32", "<u4"), ("F16", "<f2")]
)
def test_types_that_numpy_lacks_are_raw_integers(dtype, kind):
    width = element_width(dtype)
    array = as_array(bytes(range(1, 1 + 2 * width)), dtype, (2, 1))
    assert array.dtype == np.dtype(kind)
    assert array.shape == (2, 1)


@pytest.mark.parametrize(
    ("dtype", "shape", "length"), [("Q4_0", (1, 32), 18), ("I4", (3,), 2), ("NEW", (9, 9), 5)]
)
def test_packed_block_and_unknown_types_are_flat_bytes(dtype, shape, length):
    data = bytes(range(length))
    array = as_array(memoryview(data), dtype, shape)
    assert array.dtype == np.uint8
    assert array.tobytes() == data
    assert array.shape == (length,)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_tensors(shape):
    assert as_array(b"", "F32", shape).shape == shape


@pytest.mark.parametrize("shape", [(2,), (4,), (), (-3,), (-1, -3), (0,)])
def test_bytes_that_do_not_fill_the_shape_are_refused(shape):
    with pytest.raises(FormatError, match="12 bytes"):
        as_array(bytes(12), "F32", shape)


def test_dimensions_that_no_array_can_have_are_refused():
    with pytest.raises(FormatError, match="No array"):
        as_array(b"", "F32", (0, 1 << 70))
