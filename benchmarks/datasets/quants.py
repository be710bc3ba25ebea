"""Writes GGUF files with the gguf package, and quantises with ggml's own code. Runs in a process of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ggml
import gguf
import numpy as np

from benchmarks.datasets import weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
    "embedding.weight": "token_embd.weight",
}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_PARTS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
"""Names of BERT's tensors in transformers and in llama.cpp (gguf-py/gguf/tensor_mapping.py)."""

_FALLBACK = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0"}
"""What llama.cpp takes where rows are no whole blocks."""

_WHOLE = ("position_embd.weight", "token_types.weight")
_BERT = {"block_count": 6, "context_length": 512, "embedding_length": 384, "feed_forward_length": 1536}


def write_ladder(source: str, model: str, targets: Mapping[str, str]) -> None:
    """Write the weights of a safetensors file as GGUF, once in each type."""
    ggml.ggml_cpu_init()
    half = {}
    for name, item in weights.read_safetensors(Path(source)).items():
        if item.dtype in {"F32", "F16"}:  # All others are positions, which llama.cpp leaves out.
            kind = np.float16 if item.array.ndim > 1 else np.float32
            half[gguf_name(name)] = item.array.astype(kind)
    for kind, target in targets.items():
        Path(target).parent.mkdir()
        _write(Path(target), model, half, kind)


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a tensor; one that it has no name for keeps its own."""
    layer = _LAYER.fullmatch(name)
    if layer is not None:
        return f"blk.{layer[1]}.{_PARTS[layer[2]]}.{layer[3]}"
    stem, dot, last = name.rpartition(".")
    return _NAMES.get(name) or f"{_NAMES.get(stem, stem)}{dot}{last}"


def _write(target: Path, model: str, tensors: dict[str, NDArray[Any]], kind: str) -> None:
    writer = gguf.GGUFWriter(target, "bert" if model == "minilm" else "llama")
    writer.add_name(model)
    for key, value in _BERT.items() if model == "minilm" else ():
        writer.add_uint32(f"bert.{key}", value)
    file_type = "MOSTLY_" + (f"{kind}_M" if kind in {"Q5_K", "Q4_K"} else kind)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    for name, array in tensors.items():
        if kind == "F16" or array.ndim < 2 or name in _WHOLE:
            writer.add_tensor(name, array)
            continue
        own = (
            kind
            if array.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] == 0
            else _FALLBACK[kind]
        )
        code = gguf.GGMLQuantizationType[own]
        writer.add_tensor(name, quantised(array, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantised(array: NDArray[Any], code: gguf.GGMLQuantizationType) -> NDArray[np.uint8]:
    """Return rows of floats as ggml quantises them, without an importance matrix."""
    values = np.ascontiguousarray(array, np.float32)
    rows, columns = values.shape
    elements, size = gguf.GGML_QUANT_SIZES[code]
    made = np.empty((rows, columns // elements * size), np.uint8)
    source = values.ctypes.data_as(ggml.ctypes.POINTER(ggml.ctypes.c_float))
    written = ggml.ggml_quantize_chunk(
        int(code), source, made.ctypes.data_as(ggml.ctypes.c_void_p), 0, rows, columns, None
    )
    if written != made.nbytes:
        raise ValueError(f"ggml wrote {written} bytes of {code.name} instead of {made.nbytes}.")
    return made
