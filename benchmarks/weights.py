"""Tensors in numpy: read, change, cast and write them as the usual tools do, without torch.

bf16 is held as its bits in uint16.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
_STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I64": "LongStorage"}
_ALIGNMENT = 64


class Tensor(NamedTuple):
    """An array and its element type as safetensors calls it."""

    dtype: str
    array: NDArray[np.generic]


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
        name: _cast(tensor, dtype) if tensor.dtype == "F32" else tensor for name, tensor in tensors.items()
    }


def read_safetensors(path: Path) -> Tensors:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[begin:end], _NUMPY[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = Tensor(entry["dtype"], array)
    return tensors


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
            file.write(_plain(tensor))


def write_shards(folder: Path, tensors: Tensors, *, count: int) -> None:
    """Write `count` safetensors files of about equal size, and the index that names them."""
    total = sum(tensor.array.nbytes for tensor in tensors.values())
    shards: list[Tensors] = [{} for _ in range(count)]
    done = 0
    for name, tensor in tensors.items():
        shards[min(done * count // total, count - 1)][name] = tensor
        done += tensor.array.nbytes
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{count:05}.safetensors"
        write_safetensors(folder / file, shard)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_torch_zip(path: Path, tensors: Tensors) -> None:
    """Write what `torch.save` makes of a state dict: stored records, each aligned to 64 bytes."""
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes | memoryview) -> None:
            entry = zipfile.ZipInfo(f"archive/{name}")
            start = file.tell() + 30 + len(entry.filename) + 4
            padding = -start % _ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            archive.writestr(entry, data)

        write("data.pkl", b"".join(_state_dict_pickle(tensors)))
        write("byteorder", b"little")
        for number, tensor in enumerate(tensors.values()):
            write(f"data/{number}", _plain(tensor))
        write("version", b"3\n")


def _state_dict_pickle(tensors: Tensors) -> Iterator[bytes]:
    """Yield the pickle of an OrderedDict of tensors whose storages are the records 0, 1 and so on."""
    empty_dict = b"ccollections\nOrderedDict\n)R"
    yield b"\x80\x02" + empty_dict + b"("
    for number, (name, (dtype, array)) in enumerate(tensors.items()):
        strides = np.array(array.strides) // array.itemsize
        yield _pickle_text(name)
        yield b"ctorch._utils\n_rebuild_tensor_v2\n(("
        yield _pickle_text("storage") + f"ctorch\n{_STORAGES[dtype]}\n".encode()
        yield _pickle_text(str(number)) + _pickle_text("cpu") + _pickle_int(array.size) + b"tQ"
        yield _pickle_int(0) + _pickle_ints(array.shape) + _pickle_ints(strides.tolist())
        yield b"\x89" + empty_dict + b"tR"
    yield b"u."


def _pickle_text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _pickle_int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _pickle_ints(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_pickle_int, values)) + b"t"


def _cast(tensor: Tensor, dtype: str) -> Tensor:
    if dtype == "F16":
        return Tensor("F16", tensor.array.astype("<f2"))
    bits = tensor.array.view("<u4")
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return Tensor("BF16", (rounded >> 16).astype("<u2"))


def _plain(tensor: Tensor) -> memoryview:
    return memoryview(np.ascontiguousarray(tensor.array)).cast("B")
