"""Tensors in numpy: read, change, cast and write them as the usual tools do, without torch.

bf16 is held as its bits in uint16.
"""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from casstore.api.variants import from_float32

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}


class Tensor(NamedTuple):
    """An array and its element type as safetensors calls it."""

    dtype: str
    array: NDArray[Any]


Tensors = dict[str, Tensor]


def random_weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Return fp32 weights with the statistics of trained ones.

    Rows are normal, each with its own scale: exponents take about 2.6 bits, mantissas are noise.
    """
    values = rng.standard_normal(shape, np.float32)
    scales = np.exp(rng.normal(math.log(0.04), 0.3, (*shape[:-1], 1))).astype(np.float32)
    values *= scales
    return Tensor("F32", values)


def random_transformer(rng: np.random.Generator, *, hidden: int, size: int) -> Tensors:
    """Return fp32 transformer blocks and an embedding of about `size` bytes in all."""
    block = 12 * hidden * hidden * 4
    blocks = max(1, int(size * 0.8) // block)
    rows = max(1, (size - blocks * block) // (4 * hidden))
    tensors = {"embedding.weight": random_weights(rng, (rows, hidden))}
    for number in range(blocks):
        shapes = dict.fromkeys(("q", "k", "v", "o"), (hidden, hidden))
        for name, shape in {**shapes, "up": (4 * hidden, hidden), "down": (hidden, 4 * hidden)}.items():
            tensors[f"block.{number}.{name}"] = random_weights(rng, shape)
        tensors[f"block.{number}.norm"] = Tensor("F32", np.ones(hidden, np.float32))
    return tensors


def retrained(tensor: Tensor, rng: np.random.Generator, *, rows: slice | None = None) -> Tensor:
    """Return a copy in which training has moved every value of `rows` (all by default) a little."""
    array = tensor.array.copy()
    part = array[rows] if rows is not None else array
    part += rng.standard_normal(part.shape, np.float32) * (0.02 * float(part.std()) + 1e-6)
    return Tensor(tensor.dtype, array)


def cast(tensors: Tensors, dtype: str) -> Tensors:
    """Return the fp32 tensors as "F16" or "BF16", rounded to nearest even, and all others as they are."""
    return {
        name: Tensor(dtype, from_float32(tensor.array, dtype)) if tensor.dtype == "F32" else tensor
        for name, tensor in tensors.items()
    }


def read_safetensors(path: Path) -> Tensors:
    header, start = _read_header(path)
    data = path.read_bytes()[start:]
    return {
        name: Tensor(dtype, np.frombuffer(data[begin:end], _NUMPY[dtype]).reshape(shape))
        for name, (dtype, shape, (begin, end)) in header.items()
    }


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, array) in tensors.items():
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(plain(tensor))


def write_shards(folder: Path, tensors: Tensors, *, count: int) -> None:
    """Write `count` safetensors files of about equal size, and the index that names them."""
    total = sum(tensor.array.nbytes for tensor in tensors.values())
    shards: list[Tensors] = [{} for _ in range(count)]
    done = 0
    for name, tensor in tensors.items():
        shards[min(done * count // total, count - 1)][name] = tensor
        done += tensor.array.nbytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{count:05}.safetensors"
        write_safetensors(folder / file, shard)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _read_header(path: Path) -> tuple[dict[str, tuple[str, list[int], list[int]]], int]:
    """Return name to (dtype, shape, offsets) of a safetensors file, and where its data starts."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {name: (item["dtype"], item["shape"], item["data_offsets"]) for name, item in header.items()}
    return found, 8 + length


def plain(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor."""
    return np.ascontiguousarray(tensor.array).data.cast("B")
