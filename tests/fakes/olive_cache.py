"""A cache as Olive writes it, made by hand: real model files, and JSON with the absolute paths that Olive would put in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from fakes.model_files import onnx_bytes, onnx_external_bytes, safetensors_bytes

if TYPE_CHECKING:
    from pathlib import Path

ROWS, COLUMNS = 96, 256


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype("<f4")


def onnx_file(seed: int) -> bytes:
    return onnx_bytes({"layer.weight": weights(seed)})


class OliveCache:
    """Writes one workflow of the layout that Olive has had since 0.7; `made_in` is where paths say that it lies."""

    def __init__(
        self, cache_dir: Path, workflow: str = "default_workflow", *, made_in: str | None = None
    ) -> None:
        self.place = cache_dir / workflow
        self._made_in = made_in or str(self.place)
        for name in ("runs", "evaluations", "resources", "mlflow"):
            (self.place / name).mkdir(parents=True, exist_ok=True)

    def path(self, name: str, *parts: str) -> str:
        """Return what Olive would write for a file of a run."""
        return "/".join([self._made_in, "runs", name, *parts])

    def write(self, name: str, path: str, data: bytes) -> str:
        place = self.place / "runs" / name / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return self.path(name, path)

    def model(self, name: str, model: dict[str, Any] | str) -> None:
        self._json(f"runs/{name}/model.json", model)

    def run(self, name: str, source: str, pass_name: str = "OnnxConversion", **config: Any) -> None:
        run = {
            "input_model_id": source,
            "pass_name": pass_name,
            "pass_config": config,
            "accelerator_spec": "cpu-cpu",
            "output_model_id": name,
        }
        self._json(f"runs/{name}/run.json", run)

    def evaluation(self, name: str, **metrics: float) -> None:
        signal = {
            key: {"value": value, "priority": -1, "higher_is_better": True} for key, value in metrics.items()
        }
        self._json(f"evaluations/{name}.json", {"model_id": name, "signal": signal})

    def onnx(
        self, name: str, source: str, *, seed: int = 1, pass_name: str = "OnnxConversion", **config: Any
    ) -> None:
        """Write a run that made one ONNX file."""
        path = self.write(name, "models/model.onnx", onnx_file(seed))
        self.model(name, {"type": "onnxmodel", "config": {"model_path": path, "onnx_file_name": None}})
        self.run(name, source, pass_name, **config)

    def external(self, name: str, source: str, *, seed: int = 1) -> None:
        """Write a run that made an ONNX file with external data: the config names the folder and the file in it."""
        tensors = {"layer.weight": weights(seed)}
        self.write(name, "models/model.onnx", onnx_bytes(tensors, external="model.onnx.data"))
        self.write(name, "models/model.onnx.data", onnx_external_bytes(tensors))
        self.model(
            name,
            {
                "type": "onnxmodel",
                "config": {"model_path": self.path(name, "models"), "onnx_file_name": "model.onnx"},
            },
        )
        self.run(name, source)

    def hf(self, name: str, source: str, *, seed: int = 1, adapter: bool = False) -> None:
        """Write a run that made a Hugging Face folder, or an adapter for a model on the hub."""
        data = safetensors_bytes({"layer.weight": weights(seed)})
        folder = "adapter" if adapter else "model"
        self.write(name, f"models/{folder}/model.safetensors", data)
        self.write(name, f"models/{folder}/config.json", b"{}")
        path = self.path(name, "models", folder)
        paths = {"model_path": "org/base", "adapter_path": path} if adapter else {"model_path": path}
        self.model(
            name, {"type": "hfmodel", "config": {**paths, "model_attributes": {"_name_or_path": path}}}
        )
        self.run(name, source, "LoRA" if adapter else "Quantise")

    def _json(self, path: str, value: dict[str, Any] | str) -> None:
        place = self.place / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(value if isinstance(value, str) else json.dumps(value, indent=4))
