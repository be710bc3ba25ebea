"""What torch, onnx and onnxruntime make of a model for others to run: a torch zip, and ONNX in three precisions.

Runs in a process of its own.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from benchmarks.datasets import weights
from benchmarks.datasets.finetune import load, padded
from benchmarks.datasets.minilm import WEIGHTS

_OPSET = 20
# Any two sentences of unequal length show the exporter what shapes there are.
_EXAMPLE = ((101, 2023, 2003, 102), (101, 2023, 2003, 1037, 3231, 102))


def write_torch_zip(source: str, target: str) -> None:
    """Save the tensors of the model in the folder `source` with `torch.save`."""
    tensors = weights.read_safetensors(Path(source) / WEIGHTS)
    torch.save({name: torch.from_numpy(item.array.copy()) for name, item in tensors.items()}, target)


def write_onnx(source: str, full: str, half: str, quantised: str) -> None:
    """Export the model in the folder `source` with torch's own exporter; convert that to fp16, and to int8."""
    model = load(Path(source), weights.read_safetensors(Path(source) / WEIGHTS)).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
    # They speak about absent packages, names of axes and advice on speed; none of it concerns the result.
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            padded(_EXAMPLE),
            full,
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state", "pooler_output"],
            dynamic_shapes={name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")},
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
    exported = onnx.load(full)
    for node in exported.graph.node:
        # They hold the place of our source on this machine, on which the bytes must not depend.
        del node.metadata_props[:]
    onnx.save(exported, full)
    onnx.save(convert_float_to_float16(exported, keep_io_types=True), half)
    quantize_dynamic(full, quantised, weight_type=QuantType.QInt8)
