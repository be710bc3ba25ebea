"""What holds for every format: sniffing, the shared check, errors of the source, real weights."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path

import numpy as np
import pytest
from fakes.model_files import (
    BytesSource,
    gguf_bytes,
    onnx_bytes,
    parts,
    safetensors_bytes,
    tflite_bytes,
    torch_export_bytes,
    torch_legacy_bytes,
    torch_zip_bytes,
)

from casstore.tensors import TensorSpan, as_array, clip_spans, find_external_spans, find_spans

TENSORS = {
    "model.embed.weight": np.arange(35, dtype="f4").reshape(5, 7),
    "half": np.arange(3, dtype="f2"),
    "ids": np.arange(12, dtype="i8").reshape(3, 4),
    "scalar": np.array(3.0),
    "bf16": ("BF16", (2, 3), bytes(range(12))),
}
FILES = {
    "safetensors": safetensors_bytes(TENSORS, metadata={"format": "pt"}),
    "torch zip": torch_zip_bytes(TENSORS),
    "torch zip64": torch_zip_bytes(TENSORS, zip64=True),
    "TFLite": tflite_bytes(TENSORS),
    "TFLite with buffers behind it": tflite_bytes(TENSORS, behind=True),
    "torch export": torch_export_bytes(TENSORS),
    "torch legacy": torch_legacy_bytes(TENSORS),
    "ONNX": onnx_bytes(TENSORS),
    "ONNX with packed dims": onnx_bytes(TENSORS, packed_dims=True),
    "GGUF": gguf_bytes(TENSORS, metadata={"general.architecture": "llama"}),
}


class FileSource:
    def __init__(self, path):
        self._file = Path(path).open("rb")  # noqa: SIM115  closed by the test
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset, length):
        return os.pread(self._file.fileno(), length, offset)

    def close(self):
        self._file.close()


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_every_format_gives_each_tensor_its_own_bytes(data):
    spans = find_spans(BytesSource(data))
    assert {span.name for span in spans} == set(TENSORS)
    for span in spans:
        want = parts(TENSORS[span.name])
        assert (span.dtype, span.shape) == (want.dtype, want.shape)
        assert data[span.begin : span.end] == want.data
    assert list(spans) == sorted(spans, key=lambda span: (span.begin, span.end, span.name))


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_arrays_come_back_equal(data):
    for span in find_spans(BytesSource(data)):
        array = as_array(data[span.begin : span.end], span.dtype, span.shape)
        want = TENSORS[span.name]
        if isinstance(want, np.ndarray):
            np.testing.assert_array_equal(array, want)
        else:
            assert array.dtype == np.uint16
            assert array.tobytes() == want[2]


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_every_truncation_is_unknown(data):
    end = max(span.end for span in find_spans(BytesSource(data)))
    for length in [*range(0, end, 17), end - 1]:
        assert find_spans(BytesSource(data[:length])) == ()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"GGUF", b"PK\3\4", b"\x93NUMPY", b"hello, world\n" * 99, bytes(4096)]
)
def test_other_files_are_unknown(data):
    assert find_spans(BytesSource(data)) == ()
    assert find_external_spans(BytesSource(data)) == {}


def test_an_opaque_file_costs_one_small_read_or_two():
    source = BytesSource(np.random.default_rng(5).bytes(1 << 20))
    assert find_spans(source) == ()
    assert sum(length for _, length in source.reads) < 64 << 10


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
@pytest.mark.parametrize("error", [OSError, ValueError, KeyError, RecursionError, TypeError])
def test_errors_of_the_source_come_through(data, error):
    class Failing(BytesSource):
        def read(self, offset, length):
            if len(self.reads) == self.reads_before:
                raise error("the disk is gone")
            return super().read(offset, length)

    whole = BytesSource(data)
    find_spans(whole)
    for count in range(len(whole.reads)):
        failing = Failing(data)
        failing.reads_before = count
        with pytest.raises(error, match="the disk is gone"):
            find_spans(failing)


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_file_that_shrinks_while_it_is_read_is_unknown(data):
    class Shrunk(BytesSource):
        @property
        def size(self):
            return len(data)

    for length in (0, 5, 30, 60, 100):
        assert find_spans(Shrunk(data[:length])) == ()
        assert find_external_spans(Shrunk(data[:length])) == {}


def test_real_weights_of_wordllama():
    folder = Path(importlib.util.find_spec("wordllama").origin).parent
    (path, *_) = sorted(folder.rglob("*.safetensors"))
    source = FileSource(path)
    (span,) = find_spans(source)
    assert (span.name, span.dtype, span.shape) == ("embedding.weight", "F16", (32000, 256))
    assert span.end == source.size
    rows = as_array(source.read(span.begin, 512 * 100), "F16", (100, 256))
    source.close()
    assert np.isfinite(rows).all()
    assert 0 < np.abs(rows).max() < 100


def test_large_indexes_are_read_fast():
    tensors = {f"model.layers.{i}.self_attn.q_proj.weight": np.zeros((8, 8), "f4") for i in range(1000)}
    half = dict(list(tensors.items())[:500])
    # Generous for a busy machine: a few milliseconds each when nothing else runs.
    for build, given, limit in (
        (safetensors_bytes, tensors, 0.05),
        (onnx_bytes, half, 0.10),
        (torch_zip_bytes, tensors, 0.25),
        (gguf_bytes, tensors, 0.10),
    ):
        data = build(given)
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            assert len(find_spans(BytesSource(data))) == len(given)
            best = min(best, time.perf_counter() - start)
        assert best < limit, build.__name__


# The shared check, by way of clip_spans.


def span(begin, end, name="x", dtype="U8", shape=None):
    return TensorSpan(name, dtype, (end - begin,) if shape is None else shape, begin, end)


def test_spans_come_sorted():
    given = [span(8, 16, "b"), span(0, 8, "z"), span(8, 16, "a"), span(8, 8, "empty")]
    assert [s.name for s in clip_spans(given, 16)] == ["z", "empty", "a", "b"]


@pytest.mark.parametrize(
    "spans",
    [
        [span(0, 17)],
        [span(17, 17)],
        [span(-1, 4)],
        [span(4, 3, shape=(0,))],
        [span(0, 8, "a"), span(4, 12, "b")],
        [span(0, 8, "a"), span(0, 4, "b")],
        [span(0, 12, "a"), span(4, 8, "b")],
        [span(0, 16, "a"), span(0, 8, "c"), span(8, 16, "b")],
        [span(0, 8, "a"), span(4, 4, "empty")],
        [span(0, 8, "a"), span(8, 16, "a")],
        [span(0, 8, dtype="F32", shape=(3,))],
        [span(0, 8, dtype="F32", shape=())],
        [span(0, 8, shape=(-2, -4))],
        [span(0, 0, shape=(0, 1 << 60))],
        [span(0, 0, shape=(0, 1 << 31, 1 << 31))],
        [span(0, 1, shape=(1,) * 17)],
        [span(0, 1, name="n" * 4097)],
        [span(0, 1, name="\u00e9" * 2049)],
        [span(0, 1, name="\ud800")],
        [span(0, 1, dtype="D" * 33)],
        [span(0, 18, dtype="Q4_0", shape=(16, 2))],
    ],
)
def test_absurd_spans_are_refused(spans):
    assert clip_spans(spans, 16) == ()


@pytest.mark.parametrize(
    "spans",
    [
        [span(0, 16)],
        [span(0, 8, "a"), span(0, 8, "b"), span(0, 8, "c"), span(8, 16, "d")],
        [span(0, 8, "a"), span(8, 8, "empty"), span(8, 16, "b")],
        [span(16, 16, "empty")],
        [span(0, 16, dtype="SOMETHING_NEW", shape=(3, 3))],
        [span(0, 1, shape=(1,) * 16, name="n" * 4096)],
        [span(0, 3, dtype="I4", shape=(5,))],
    ],
)
def test_sound_spans_are_kept(spans):
    assert set(clip_spans(spans, 16)) == set(spans)


def test_the_number_of_spans_has_a_limit(monkeypatch):
    monkeypatch.setattr("casstore.tensors.span.MAX_SPANS", 1000)
    spans = [TensorSpan(str(number), "U8", (0,), 0, 0) for number in range(1001)]
    assert clip_spans(spans, 16) == ()
    assert len(clip_spans(spans[1:], 16)) == 1000
