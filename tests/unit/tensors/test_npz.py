from __future__ import annotations

import io

import numpy as np
import pytest
from fakes.model_files import BytesSource, npy_bytes, zip_bytes

from casstore.tensors import as_array, find_spans

A = np.arange(12, dtype="f4").reshape(3, 4)
B = np.arange(5, dtype="i8")


def saved(*, save=np.savez, **arrays):
    out = io.BytesIO()
    save(out, **arrays)
    return out.getvalue()


def summary(data):
    return [(s.name, s.dtype, s.shape) for s in find_spans(BytesSource(data))]


def test_arrays_that_numpy_saved():
    arrays = {"layer/w": A, "b": B, "empty": np.zeros((0, 3), "f2"), "scalar": np.float64(3)}
    data = saved(**arrays, f=np.asfortranarray(A), big=A.astype(">f4"), text=np.array(["ab"]))
    spans = {span.name: span for span in find_spans(BytesSource(data))}
    assert set(spans) == {*arrays, "f.T", "big", "text"}
    for name, want in [*arrays.items(), ("f.T", A.T)]:
        span = spans[name]
        got = as_array(data[span.begin : span.end], span.dtype, span.shape)
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype
    assert data[spans["big"].begin : spans["big"].end] == A.astype(">f4").tobytes()


def test_arrays_without_names():
    out = io.BytesIO()
    np.savez(out, A, B)
    assert summary(out.getvalue()) == [("arr_0", "F32", (3, 4)), ("arr_1", "I64", (5,))]


def test_compressed_arrays_have_no_span():
    assert summary(saved(save=np.savez_compressed, a=A)) == []
    data = zip_bytes({"a.npy": npy_bytes(A), "b.npy": npy_bytes(B)}, deflate=["a.npy"])
    assert summary(data) == [("b", "I64", (5,))]


def test_members_that_are_no_plain_array_are_left_out():
    objects = saved(a=A, o=np.array([{}], dtype=object), r=np.zeros(2, [("x", "f4")]))
    assert summary(objects) == [("a", "F32", (3, 4))]
    members = {
        "a.npy": npy_bytes(A),
        "b.npy": b"no array",
        "c.npy": npy_bytes(B)[:-1],
        "d.txt": b"x",
        "e.npy": b"",
    }
    assert summary(zip_bytes(members)) == [("a", "F32", (3, 4))]


def test_names_that_fall_together_get_numbers():
    data = zip_bytes({"a.T.npy": npy_bytes(A), "a.npy": npy_bytes(np.asfortranarray(A))})
    assert summary(data) == [("a.T", "F32", (3, 4)), ("a.T#2", "F32", (4, 3))]


def test_many_small_arrays_take_few_reads():
    source = BytesSource(saved(**{f"w{number}": A for number in range(2000)}))
    assert len(find_spans(source)) == 2000
    assert len(source.reads) < 60


def test_large_arrays_are_not_read():
    source = BytesSource(saved(**{f"w{number}": np.zeros(1 << 18, "f4") for number in range(8)}))
    assert len(find_spans(source)) == 8
    assert sum(length for _, length in source.reads) < 100_000


@pytest.mark.parametrize("at", [0, 26, 30])
def test_a_local_header_that_differs_makes_the_file_unknown(at):
    data = bytearray(saved(a=A, b=B))
    data[data.index(b"PK\3\4", 4) + at] ^= 0x41
    assert summary(bytes(data)) == []
