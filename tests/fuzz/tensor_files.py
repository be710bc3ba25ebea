"""Fuzz targets for tensor formats: whatever the bytes are, nothing is raised, and no span is wrong.

A file whose header is one text or pickle inside a container is also made from that alone, so that an insertion does not
break every offset of the container.
"""

from __future__ import annotations

import json

from fakes.hostile_files import SEEDS, TENSORS, check
from fakes.implementations import using
from fakes.model_files import (
    BytesSource,
    View,
    parts,
    pickle_dict,
    pickle_of,
    pickle_tensor,
    safetensors_bytes,
    safetensors_with_header,
    torch_export_bytes,
    torch_export_meta,
    torch_zip_of,
)

from casstore.tensors import find_model_spans
from casstore.tensors.span import Unrecognised
from casstore.tensors.torch.pickle_machine import read_symbols

STORAGES = {"0": bytes(64), "1": bytes(7)}


def fuzz_pickle(data):
    try:
        assert read_symbols(data).end <= len(data)
    except Unrecognised:
        pass
    return check(torch_zip_of(data, STORAGES, align=1))


def fuzz_onnx(data):
    with using(None):
        want = find_model_spans(BytesSource(data))
    assert find_model_spans(BytesSource(data)) == want
    return check(data)


def fuzz_safetensors_header(data):
    return check(safetensors_with_header(data, bytes(PAYLOAD)))


def fuzz_export_config(data):
    return check(torch_export_bytes({"w": TENSORS["layer.0.weight"]}, configs={"weights": data}, align=1))


def _export_config():
    meta = torch_export_meta("weight_0", "F32", (3, 4))
    return json.dumps({"config": {"w": meta}}).encode()


def _seeds(kind):
    return [data for seed, data in SEEDS.items() if seed.split()[0] == kind]


_VIEW = pickle_tensor(View("0", "F32", 0, (3, 4), (4, 1)), parts(TENSORS["layer.0.weight"]))
_SAFETENSORS = safetensors_bytes(TENSORS)
PAYLOAD = sum(len(parts(tensor).data) for tensor in TENSORS.values())
_HEADER = _SAFETENSORS[8 : 8 + int.from_bytes(_SAFETENSORS[:8], "little")]
_FORMATS = ("safetensors", "torch", "gguf", "tflite", "npy", "npz")

TARGETS = {
    **{name: (check, _seeds(name)) for name in _FORMATS},
    "onnx": (fuzz_onnx, _seeds("onnx")),
    "safetensors-header": (fuzz_safetensors_header, [_HEADER]),
    "torch-export-config": (fuzz_export_config, [_export_config()]),
    "pickle": (fuzz_pickle, [pickle_of(pickle_dict({"a": _VIEW, "b": b"](" + _VIEW + b"q\1h\1e"}))]),
}
