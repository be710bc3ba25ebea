"""Models that a pipeline would make from a model: casts, retraining, other files around the same tensors."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from casstore.ops.weights import (
    FLOAT_TYPES,
    SAFETENSORS_TYPES,
    TORCH_STORAGES,
    Output,
    Tensor,
    from_float32,
    to_float32,
    write_safetensors,
    write_torch_zip,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casstore.ops.weights import Block, Change
    from casstore.store.model import Model

__all__ = ["Plan", "Skipped", "Variant", "plan_variants"]

_CASTS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_COMPANION_LIMIT = 16 << 20
_SEED = 20240229
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Variant:
    """A model that can be made: `write` puts its files into an empty folder."""

    name: str
    title: str
    write: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A variant that this model does not allow."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What can be made from a model, and what cannot."""

    variants: tuple[Variant, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a model's files are, and which of them the variants take along (`companions`, relative paths)."""

    folder: str
    companions: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    def copy_companions(self, folder: str) -> None:
        for path in self.companions:
            target = os.path.join(folder, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(os.path.join(self.folder, path), target)


def plan_variants(model: Model, path: str) -> Plan:
    """Say which variants of `model` can be made from its files at `path`.

    Variants take the tensors of the files of one kind in one folder that hold most floating-point bytes, and
    the small files without tensors. They are the same on every run.
    """
    source = _read_source(model, path)
    variants: list[Variant] = []
    skipped: list[Skipped] = []
    foreign = sorted({t.dtype for t in source.tensors} - SAFETENSORS_TYPES)
    floats = Counter[str]()
    for tensor in source.tensors:
        if tensor.dtype in FLOAT_TYPES:
            floats[tensor.dtype] += tensor.size
    if foreign or not +floats:
        reason = (
            f"safetensors cannot hold tensors of type {', '.join(foreign)}"
            if foreign
            else "no floating-point tensors were found"
        )
        names = (*_CASTS.values(), "retrained", "sharded", "torch")
        skipped += [Skipped(name, reason) for name in names]
        variants.append(_changed(model, path))
        return Plan(tuple(variants), tuple(skipped))
    main = floats.most_common(1)[0][0]
    for dtype, name in _CASTS.items():
        if dtype == main:
            skipped.append(Skipped(name, f"the model is {name} already"))
        else:
            variants.append(Variant(name, f"cast to {name}", partial(_write_cast, source, dtype)))
    largest = max(
        (t for t in source.tensors if t.dtype in FLOAT_TYPES and t.shape), key=lambda t: t.size, default=None
    )
    if largest is None or not largest.size:
        skipped.append(Skipped("retrained", "no tensor has rows"))
    else:
        variants.append(
            Variant(
                "retrained",
                "10% of a tensor's rows retrained",
                partial(_write_retrained, source, largest),
            )
        )
    shards = _split(source.tensors)
    if shards is None:
        skipped.append(Skipped("sharded", "there is only one tensor, and it has one row"))
    else:
        title = "in two shards"
        if len(source.tensors) == 1:
            title += ", its one tensor cut in half"
        variants.append(Variant("sharded", title, partial(_write_sharded, source, shards)))
    unknown = sorted({t.dtype for t in source.tensors} - TORCH_STORAGES.keys())
    if unknown:
        skipped.append(Skipped("torch", f"torch has no storage class for {', '.join(unknown)}"))
    else:
        variants.append(Variant("torch", "as a torch zip", partial(_write_torch, source)))
    return Plan(tuple(variants), tuple(skipped))


def _read_source(model: Model, path: str) -> _Source:
    folder = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
    groups: dict[tuple[str, str], list[Tensor]] = {}
    weights: Counter[tuple[str, str]] = Counter()
    companions: list[str] = []
    for entry, layout in zip(model.tree.files, model.layouts, strict=True):
        if not layout.spans:
            # An index of shards would be wrong beside other files.
            if entry.size <= _COMPANION_LIMIT and not entry.path.endswith(".index.json"):
                companions.append(entry.path)
            continue
        group = os.path.dirname(entry.path), os.path.splitext(entry.path)[1]
        location = os.path.join(folder, entry.path)
        for span in layout.spans:
            groups.setdefault(group, []).append(
                Tensor(span.name, span.dtype, span.shape, location, span.begin, span.end)
            )
            weights[group] += span.end - span.begin if span.dtype in FLOAT_TYPES else 0
    if not groups:
        return _Source(folder, (), ())
    best = max(groups, key=lambda group: (weights[group], group))
    taken: set[str] = set()
    tensors: list[Tensor] = []
    for tensor in groups[best]:
        name = tensor.name
        while name in taken or name == "__metadata__":
            name = f"{os.path.basename(tensor.location)}:{name}"
        taken.add(name)
        tensors.append(replace(tensor, name=name))
    return _Source(folder, tuple(companions), tuple(tensors))


def _same(tensor: Tensor) -> Output:
    return Output(tensor, tensor.dtype)


def _write_cast(source: _Source, dtype: str, folder: str) -> None:
    def change(tensor: Tensor) -> Change:
        return lambda block, _: from_float32(to_float32(block, tensor.dtype), dtype)

    outputs = [
        Output(tensor, dtype, change(tensor))
        if tensor.dtype in FLOAT_TYPES and tensor.dtype != dtype
        else _same(tensor)
        for tensor in source.tensors
    ]
    source.copy_companions(folder)
    write_safetensors(os.path.join(folder, "model.safetensors"), outputs)


def _write_retrained(source: _Source, chosen: Tensor, folder: str) -> None:
    """Add noise to rows 40% to 50% of a tensor, as fine-tuning with the rest frozen would change them."""
    rows = chosen.shape[0]
    row = chosen.elements // rows
    first = rows * 4 // 10
    begin, end = first * row, max(rows // 2, first + 1) * row
    random = np.random.default_rng(_SEED)

    def change(block: Block, at: int) -> Block:
        low, high = max(begin - at, 0), min(end - at, len(block))
        if low >= high:
            return block
        values = to_float32(block[low:high], chosen.dtype)
        step = np.float32(0.05) * values.std()
        changed = block.copy()
        changed[low:high] = from_float32(
            values + step * random.standard_normal(len(values), np.float32), chosen.dtype
        )
        return changed

    outputs = [
        Output(tensor, tensor.dtype, change) if tensor is chosen else _same(tensor)
        for tensor in source.tensors
    ]
    source.copy_companions(folder)
    write_safetensors(os.path.join(folder, "model.safetensors"), outputs)


def _split(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
    """Split tensors into two shards of about the same size; a single tensor is split by rows."""
    if len(tensors) == 1:
        (whole,) = tensors
        rows = whole.shape[0] if whole.shape else 0
        if rows < 2:
            return None
        half = rows // 2
        return [whole.rows(0, half, f"{whole.name}.0")], [whole.rows(half, rows, f"{whole.name}.1")]
    total, held, at = sum(tensor.size for tensor in tensors), 0, 0
    while at < len(tensors) - 1 and (at == 0 or 2 * held < total):
        held += tensors[at].size
        at += 1
    return list(tensors[:at]), list(tensors[at:])


def _write_sharded(source: _Source, shards: Sequence[Sequence[Tensor]], folder: str) -> None:
    source.copy_companions(folder)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        places.update((tensor.name, name) for tensor in shard)
        write_safetensors(os.path.join(folder, name), [_same(tensor) for tensor in shard])
    index = {
        "metadata": {"total_size": sum(tensor.size for shard in shards for tensor in shard)},
        "weight_map": places,
    }
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump(index, file, indent=2)


def _write_torch(source: _Source, folder: str) -> None:
    source.copy_companions(folder)
    write_torch_zip(os.path.join(folder, "pytorch_model.bin"), [_same(tensor) for tensor in source.tensors])


def _changed(model: Model, path: str) -> Variant:
    def write(folder: str) -> None:
        largest = max(model.tree.files, key=lambda entry: entry.size, default=None)
        for entry in model.tree.files:
            target = os.path.join(folder, entry.path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(os.path.join(path, entry.path) if os.path.isdir(path) else path, target)
            if entry is largest:
                begin = entry.size * 4 // 10
                count = min(max(entry.size // 100, 1), _PIECE, entry.size - begin)
                with open(target, "r+b") as file:
                    file.seek(begin)
                    file.write(np.random.default_rng(_SEED).bytes(count))

    return Variant("changed", "some bytes changed", write)
