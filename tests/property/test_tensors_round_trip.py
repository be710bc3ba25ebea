"""Random tensors in every format: each span's bytes are its tensor's bytes."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from fakes.model_files import (
    BytesSource,
    gguf_bytes,
    npy_bytes,
    onnx_bytes,
    onnx_external_bytes,
    safetensors_bytes,
    tflite_bytes,
    torch_export_bytes,
    torch_legacy_bytes,
    torch_zip_bytes,
)
from hypothesis import example, given
from hypothesis import strategies as st

from casstore.tensors import DTYPES, as_array, clip_spans, element_width, find_external_spans, find_spans
from casstore.tensors.gguf import _TYPES as GGUF_TYPES
from casstore.tensors.onnx.schema import DTYPE_NAMES as ONNX_TYPES
from casstore.tensors.tflite import _TYPES as TFLITE_TYPES

EVERYWHERE = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8"]
TORCH = [*EVERYWHERE, "U8", "BOOL", "C64", "C128", "U16", "U32", "U64", "F8_E4M3", "F8_E5M2", "F8_E8M0"]
PLAIN = [name for name, dtype in DTYPES.items() if dtype.block_elements < 32]


@st.composite
def tensors(draw, dtypes, *, least=1):
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(least, 5), max_size=4))
    if DTYPES[dtype].block_elements >= 32:
        shape = [*shape[:2], DTYPES[dtype].block_elements * draw(st.integers(least, 3))]
    length = DTYPES[dtype].byte_length(shape)
    return dtype, tuple(shape), np.random.default_rng(draw(st.integers(0, 99))).bytes(length)


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


def named(dtypes, **options):
    return st.dictionaries(NAMES, tensors(dtypes, **options), max_size=6)


def check(spans, data, want):
    assert {span.name: (span.dtype, span.shape, data[span.begin : span.end]) for span in spans} == want


@given(named(PLAIN, least=0))
def test_safetensors(given_tensors):
    given_tensors.pop("__metadata__", None)
    data = safetensors_bytes(given_tensors)
    check(find_spans(BytesSource(data)), data, given_tensors)


@pytest.mark.parametrize("zip64", [False, True])
@example(tensors_={"_parameters": ("U8", (1,), b"x")}, align=1)
@given(tensors_=named(TORCH, least=0), align=st.sampled_from([1, 16, 64, 4096]))
def test_torch_zip(zip64, tensors_, align):
    data = torch_zip_bytes(tensors_, zip64=zip64, align=align)
    check(find_spans(BytesSource(data)), data, tensors_)


@given(named(TORCH), st.sampled_from([1, 64]))
def test_torch_export(given_tensors, align):
    data = torch_export_bytes(given_tensors, align=align)
    check(find_spans(BytesSource(data)), data, given_tensors)


@given(named(sorted(TFLITE_TYPES.values())), st.booleans())
def test_tflite(given_tensors, behind):
    # One byte or none behind the flatbuffer stands for no bytes there.
    if behind:
        given_tensors = {name: tensor for name, tensor in given_tensors.items() if len(tensor[2]) > 1}
    data = tflite_bytes(given_tensors, behind=behind)
    check(find_spans(BytesSource(data)), data, given_tensors)


@given(named(TORCH, least=0))
def test_torch_legacy(given_tensors):
    data = torch_legacy_bytes(given_tensors)
    check(find_spans(BytesSource(data)), data, given_tensors)


@given(named(sorted(ONNX_TYPES.values()), least=0), st.booleans())
def test_onnx(given_tensors, packed):
    data = onnx_bytes(given_tensors, packed_dims=packed)
    check(find_spans(BytesSource(data)), data, given_tensors)


@given(named(sorted(ONNX_TYPES.values()), least=0))
def test_onnx_external(given_tensors):
    model, data = onnx_bytes(given_tensors, external="w.bin"), onnx_external_bytes(given_tensors)
    spans = find_external_spans(BytesSource(model)).get("w.bin", ())
    check(clip_spans(spans, len(data)), data, given_tensors)
    assert find_spans(BytesSource(model)) == ()


@given(named(sorted(GGUF_TYPES.values())), st.sampled_from([None, 1, 8, 64]))
def test_gguf(given_tensors, alignment):
    data = gguf_bytes(given_tensors, alignment=alignment, metadata={"k": ["v"]})
    check(find_spans(BytesSource(data)), data, given_tensors)


@given(named(sorted(GGUF_TYPES.values())), st.sampled_from([None, 8]))
def test_gguf_big_endian(given_tensors, alignment):
    data = gguf_bytes(given_tensors, alignment=alignment, metadata={"k": ["v"]}, order=">")
    found = find_spans(BytesSource(data))
    assert {s.name: data[s.begin : s.end] for s in found} == {k: v[2] for k, v in given_tensors.items()}
    assert {span.dtype for span in found} <= {"U8", "I8"}


@given(tensors([name for name in EVERYWHERE if name != "BF16"], least=0), st.booleans(), st.integers(1, 3))
def test_npy(tensor, fortran, version):
    dtype, shape, raw = tensor
    array = as_array(raw, dtype, shape)
    data = npy_bytes(np.array(array, order="F" if fortran else "C"), version=(version, 0))
    (span,) = find_spans(BytesSource(data))
    got = as_array(data[span.begin : span.end], span.dtype, span.shape)
    want = array.T if span.name == "array.T" else array
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes()


@given(named([name for name in EVERYWHERE if name != "BF16"], least=0))
def test_npz(given_tensors):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, tensor in given_tensors.items():
            archive.writestr(f"{name}.npy", npy_bytes(as_array(tensor[2], *tensor[:2])))
    data = out.getvalue()
    check(find_spans(BytesSource(data)), data, given_tensors)


@given(tensors(sorted(DTYPES), least=0))
def test_as_array_keeps_every_byte(tensor):
    dtype, shape, raw = tensor
    array = as_array(raw, dtype, shape)
    assert array.tobytes() == raw
    assert array.dtype.itemsize in (1, element_width(dtype))
    if DTYPES[dtype].numpy is not None:
        assert array.shape == shape
