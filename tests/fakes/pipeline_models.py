"""Models as a pipeline hands them over: small real files, and the configs that name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from fakes.model_files import onnx_bytes, onnx_external_bytes, onnx_model, proto_field, safetensors_bytes

if TYPE_CHECKING:
    from pathlib import Path


def tensors(seed: int = 0, *, names: tuple[str, ...] = ("weight", "bias")) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((40, 50)).astype(np.float32) for name in names}


def write(path: Path, data: bytes | str = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def onnx_file(path: Path, *, seed: int = 0, data: str | None = None) -> Path:
    """Write an ONNX model; with `data`, its tensors into that file beside it."""
    values = tensors(seed)
    write(path, onnx_bytes(values, external=data))
    if data is not None:
        write(path.parent / data, onnx_external_bytes(values))
    return path


def compiled_onnx_file(path: Path, *contexts: str | bytes) -> Path:
    """Write an ONNX model whose nodes hold what a provider compiled, or name the files that do."""
    nodes = []
    for text in contexts:
        raw = text.encode() if isinstance(text, str) else text
        attribute = proto_field(1, "ep_cache_context") + proto_field(4, raw) + proto_field(20, 3)
        nodes.append(
            proto_field(1, proto_field(2, "out") + proto_field(4, "EPContext") + proto_field(5, attribute))
        )
    return write(path, onnx_model(b"".join(nodes) + proto_field(2, "graph")))


def hf_folder(path: Path, *, seed: int = 0) -> Path:
    """Write a folder as `save_pretrained` does."""
    write(path / "config.json", '{"model_type": "bert"}')
    write(path / "tokenizer" / "vocab.txt", "a\nb\n")
    write(path / "model.safetensors", safetensors_bytes(tensors(seed)))
    return path


def onnx_config(path: Path | str, **settings: Any) -> dict[str, Any]:
    return {"type": "ONNXModel", "config": {"model_path": str(path), **settings}}


def hf_config(path: Path | str, **settings: Any) -> dict[str, Any]:
    return {"type": "HfModel", "config": {"model_path": str(path), "task": "text-classification", **settings}}


def composite_config(components: dict[str, dict[str, Any]], **settings: Any) -> dict[str, Any]:
    return {
        "type": "CompositeModel",
        "config": {
            "model_components": list(components.values()),
            "model_component_names": list(components),
            **settings,
        },
    }


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder: path → bytes."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def set_writable(folder: Path, *, writable: bool) -> None:
    """Make every file below a folder writable, or read-only as checkouts are."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644 if writable else 0o444)
