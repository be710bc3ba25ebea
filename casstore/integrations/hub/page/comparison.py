"""What differs between two models, or between two runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.cache.runs.explain import compare
from casstore.ops.diff import outline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casstore.api.store import Store
    from casstore.format.run import RunManifest
    from casstore.ops.diff import FileDiff, TensorDiff, TensorSide
    from casstore.store.reading.model import Model

__all__ = ["ModelComparison", "TensorChange", "compare_models", "compare_runs"]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that differs; `change` is "values", "type or shape", "only in A", "only in B" or "not compared"."""

    name: str
    change: str
    a: TensorSide | None
    b: TensorSide | None


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """What differs between two models, and how many tensors do not."""

    files: tuple[FileDiff, ...]
    tensors: tuple[TensorChange, ...]
    same_tensors: int
    shared_bytes: int


def compare_models(store: Store, a: Model, b: Model) -> ModelComparison:
    """Compare two models by file and by tensor, wherever in their files these lie, as `casstore.ops.diff.outline` does.

    Raises as reading does.
    """
    found = outline(a, b, objects=(store.reader, store.reader))
    different = [tensor for tensor in found.tensors if tensor.change != "same"]
    return ModelComparison(
        files=found.files,
        tensors=tuple(TensorChange(tensor.name, _change(tensor), tensor.a, tensor.b) for tensor in different),
        same_tensors=len(found.tensors) - len(different),
        shared_bytes=found.shared_bytes,
    )


def _change(tensor: TensorDiff) -> str:
    if tensor.a is None or tensor.b is None:
        return "only in B" if tensor.a is None else "only in A"
    if (tensor.a.dtype, tensor.a.shape) != (tensor.b.dtype, tensor.b.shape):
        return "type or shape"
    return "not compared" if tensor.change == "not compared" else "values"


def compare_runs(a: RunManifest, b: RunManifest) -> list[tuple[str, Any, Any]]:
    """Return the fields in which two runs differ: what decided their outputs, then what they measured."""
    found = [(item.field, item.earlier, item.now) for item in compare(a.key.document(), b.key.document())]
    for label, one, other in (
        ("status", a.status.value, b.status.value),
        ("error", a.error, b.error),
        ("output", a.output.hex() if a.output else "-", b.output.hex() if b.output else "-"),
        ("metrics", a.metrics, b.metrics),
        ("recorded", a.recorded, b.recorded),
    ):
        found += [(item.field, item.earlier, item.now) for item in compare(one, other, label)]
    return found


def compare_metrics(
    a: Mapping[str, float], b: Mapping[str, float]
) -> list[tuple[str, float | None, float | None, float | None]]:
    """Return the metrics of either model: name, both values, and their difference where there is one."""
    rows = []
    for name in dict.fromkeys([*a, *b]):
        one, other = a.get(name), b.get(name)
        rows.append((name, one, other, other - one if one is not None and other is not None else None))
    return rows
