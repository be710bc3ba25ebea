"""A small file of every tensor format, to be mutated, and what must hold for whatever becomes of it."""

from __future__ import annotations

import numpy as np
from fakes.model_files import (
    BytesSource,
    View,
    gguf_bytes,
    npy_bytes,
    onnx_bytes,
    safetensors_bytes,
    tflite_bytes,
    torch_export_bytes,
    torch_legacy_bytes,
    torch_views_bytes,
    torch_zip_bytes,
    zip_bytes,
)

from casstore.tensors import as_array, clip_spans, find_context_files, find_external_spans, find_spans

TENSORS = {
    "layer.0.weight": np.arange(12, dtype="f4").reshape(3, 4),
    "layer.0.bias": np.arange(3, dtype="f2"),
    "ids": np.arange(4, dtype="i8"),
    "bf16": ("BF16", (2, 2), bytes(range(8))),
}
FUSED = {"0": np.arange(16, dtype="f4")}
SEEDS = {
    "safetensors": safetensors_bytes(TENSORS, metadata={"format": "pt"}),
    "torch": torch_zip_bytes(TENSORS),
    "torch unpadded": torch_zip_bytes(TENSORS, align=1),
    "torch zip64": torch_zip_bytes(TENSORS, zip64=True, align=1),
    "torch legacy": torch_legacy_bytes(TENSORS),
    "torch export": torch_export_bytes(
        {"w": TENSORS["layer.0.bias"]},
        pickled={"p": torch_zip_bytes({"x": TENSORS["ids"]}, align=1)},
        align=1,
    ),
    "torch export before 2.8": zip_bytes(
        {"serialized_state_dict.pt": torch_zip_bytes({"x": TENSORS["ids"]}, align=1)}, align=1
    ),
    "torch views": torch_views_bytes(
        FUSED, {"a": View("0", "F32", 0, (2, 4), (4, 1)), "b": View("0", "F32", 8, (8,), (1,))}, align=1
    ),
    "onnx": onnx_bytes(TENSORS),
    "onnx packed": onnx_bytes(TENSORS, packed_dims=True),
    "onnx external": onnx_bytes(TENSORS, external="model.data"),
    "gguf": gguf_bytes(TENSORS, metadata={"a": "b", "tokens": ["x", "yy"], "n": 3}, alignment=8),
    "gguf big-endian": gguf_bytes(TENSORS, metadata={"a": "b", "tokens": ["x"]}, alignment=8, order=">"),
    "gguf blocks": gguf_bytes({"q": ("Q4_0", (2, 32), bytes(36)), "k": ("Q6_K", (256,), bytes(210))}),
    "tflite": tflite_bytes(TENSORS),
    "tflite behind": tflite_bytes(TENSORS, behind=True, subgraphs=2),
    "npy": npy_bytes(TENSORS["layer.0.weight"]),
    "npz": zip_bytes({f"{name}.npy": npy_bytes(TENSORS[name]) for name in ("ids", "layer.0.bias")}, align=1),
    "npy fortran": npy_bytes(np.asfortranarray(TENSORS["layer.0.weight"])),
}


class StrictSource(BytesSource):
    """Refuses to be asked for bytes beyond its end or for more than a header could need."""

    def read(self, offset, length):
        assert 0 <= offset <= offset + length <= self.size
        return super().read(offset, length)


def check_invariants(spans, size):
    covered = (0, 0)
    assert len({span.name for span in spans}) == len(spans)
    for span in spans:
        assert 0 <= span.begin <= span.end <= size
        assert span.begin >= covered[1] or (span.begin, span.end) == covered
        if span.begin < span.end:
            covered = (span.begin, span.end)
        assert span.dtype
        span.name.encode()
        assert len(span.shape) <= 16
        assert min(span.shape, default=0) >= 0


def check(data):
    source = StrictSource(data)
    spans = find_spans(source)
    check_invariants(spans, len(data))
    for span in spans:
        as_array(data[span.begin : span.end], span.dtype, span.shape)
    for name in find_context_files(StrictSource(data)):
        assert name
        assert ".." not in name.split("/")
    for location, external in find_external_spans(StrictSource(data)).items():
        assert ".." not in location.split("/")
        check_invariants(clip_spans(external, 256), 256)
    return spans
