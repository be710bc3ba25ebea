"""Merges models and adapters with torch, tensor by tensor, as peft and task_vectors do. Runs in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.datasets import weights
from benchmarks.datasets.minilm import WEIGHTS
from benchmarks.datasets.weights import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.datasets.weights import Tensors

_PREFIX = "base_model.model."
_WEIGHTS = (0.3, 0.7)
_SCALE = 0.8


def merge(folder: str) -> None:
    """Write all merges of the models below `folder`."""
    top = Path(folder)
    base, first, second = (_read(top / name) for name in ("base", "tuned-1", "tuned-2"))
    for adapter in ("r16", "r64"):
        _merge_adapter(top, "base", f"adapter-{adapter}", f"merged-{adapter}")
    _merge_adapter(top, "base-bf16", "adapter-r16", "merged-r16-bf16")
    one, other = _WEIGHTS

    def combine(name: str, rule: Callable[..., torch.Tensor]) -> None:
        made = {
            key: Tensor("F32", rule(_torch(item), _torch(first[key]), _torch(second[key])).numpy())
            if item.dtype == "F32"
            else item
            for key, item in base.items()
        }
        weights.write_safetensors(top / name / WEIGHTS, made)

    combine("mean-of-two", lambda _, a, b: (a + b) / 2)
    combine("mean-of-three", lambda w, a, b: torch.stack([w, a, b]).mean(0))
    combine("weighted-mean", lambda _, a, b: one * a + other * b)
    combine("task-arithmetic", lambda w, a, b: w + _SCALE * ((a - w) + (b - w)))
    combine("task-negated", lambda w, a, b: w + _SCALE * (a - b))


def _merge_adapter(top: Path, base: str, adapter: str, target: str) -> None:
    """Add scale times B·A to the weights that an adapter is for, in their own type."""
    config = json.loads((top / adapter / "adapter_config.json").read_bytes())
    scale = config["lora_alpha"] / config["r"]
    factors = weights.read_safetensors(top / adapter / "adapter_model.safetensors")
    merged: Tensors = {}
    for name, item in _read(top / base).items():
        stem = _PREFIX + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" not in factors:
            merged[name] = item
            continue
        weight = _torch(item)
        down, up = (_torch(factors[f"{stem}.lora_{part}.weight"]).to(weight.dtype) for part in "AB")
        merged[name] = _tensor(item.dtype, weight + (up @ down) * scale)
    weights.write_safetensors(top / target / WEIGHTS, merged)


def _read(folder: Path) -> Tensors:
    return weights.read_safetensors(folder / WEIGHTS)


def _torch(item: Tensor) -> torch.Tensor:
    if item.dtype == "BF16":
        return torch.from_numpy(item.array.view("<i2").copy()).view(torch.bfloat16)
    return torch.from_numpy(item.array.copy())


def _tensor(dtype: str, value: torch.Tensor) -> Tensor:
    if dtype == "BF16":
        return Tensor(dtype, value.view(torch.int16).numpy().view("<u2"))
    return Tensor(dtype, value.numpy())
