from __future__ import annotations

import struct

import numpy as np
import pytest
from fakes.model_files import BytesSource, npy_bytes

from casstore.tensors import as_array, find_spans

ARRAY = np.arange(12, dtype="f4").reshape(3, 4)


def only_span(data):
    (span,) = find_spans(BytesSource(data))
    return span, as_array(data[span.begin : span.end], span.dtype, span.shape)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions(version):
    span, array = only_span(npy_bytes(ARRAY, version=version))
    assert (span.name, span.dtype) == ("array", "F32")
    np.testing.assert_array_equal(array, ARRAY)


@pytest.mark.parametrize(
    "dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c16", "c8"]
)
def test_types(dtype):
    want = np.arange(6).reshape(2, 3).astype(dtype)
    _, array = only_span(npy_bytes(want))
    assert array.dtype == want.dtype
    np.testing.assert_array_equal(array, want)


def test_fortran_order_is_the_transpose_in_c_order():
    span, array = only_span(npy_bytes(np.asfortranarray(ARRAY)))
    assert (span.name, span.shape) == ("array.T", (4, 3))
    np.testing.assert_array_equal(array, ARRAY.T)


@pytest.mark.parametrize("array", [np.array(2.5), np.zeros((0, 3)), np.asfortranarray(np.arange(4.0))])
def test_shapes_without_an_order(array):
    span, got = only_span(npy_bytes(array))
    assert span.name == "array"
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(
    "array",
    [ARRAY.astype(">f4"), np.array(["ab", "c"]), np.array([b"xyz"]), np.array(["2020-01-01"], "M8[D]")],
)
def test_types_without_a_tensor_type_are_bytes(array):
    span, got = only_span(npy_bytes(array))
    assert span.dtype == "U8"
    assert got.tobytes() == array.tobytes()


def test_records_are_unknown():
    assert find_spans(BytesSource(npy_bytes(np.zeros(3, dtype=[("a", "f4")])))) == ()


def with_header(text, payload=bytes(64)):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + payload


def test_other_writers_may_order_the_keys():
    data = with_header(b"{'shape': (2L, 2L), 'fortran_order': False,'descr': '<f4'}\n")
    assert only_span(data)[0].shape == (2, 2)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
        b"{'descr': '<f4', 'fortran_order': False, }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'shape': (2,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1, }",
        b"{'descr': '<f4', 'fortran_order': 0, 'shape': (2,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2 3,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (99,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 17 + b"), }",
        b"{'descr': '<f99999999', 'fortran_order': False, 'shape': (2,), }",
        b"{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (2,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), } trailing",
        b"{" * 60_000,
        b"{" + b" " * 60_000 + b"x}",
    ],
    ids=range(18),
)
def test_broken_headers_make_the_file_unknown(text):
    assert find_spans(BytesSource(with_header(text))) == ()


@pytest.mark.parametrize("head", [b"\x93NUMPY\0\0", b"\x93NUMPY\4\0", b"\x93NUMPY\1\1"])
def test_other_versions_are_unknown(head):
    assert find_spans(BytesSource(head + npy_bytes(ARRAY)[8:])) == ()
