"""The demo's variants of a model: casts, a retrained tensor, shards, a torch file."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import struct
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from casstore.machine.local_names import local_path
from casstore.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.store.reading.model import Model

    Elements = NDArray[Any]

FLOATS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_STORAGES = {"F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I32": "Int", "U8": "Byte"}
_SAFETENSORS = {name for name, dtype in DTYPES.items() if dtype.numpy} - {"C128", "C32", "F8_E8M0"}


class Tensor(NamedTuple):
    """One tensor; `load` returns its elements, flat, bf16 as uint16. One at a time is in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Elements]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].block_bytes


def read_tensors(model: Model, path: str) -> list[Tensor]:
    """Return the tensors of the model's files at `path`; none if safetensors cannot hold one of them."""
    folder = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
    found: dict[str, Tensor] = {}
    for entry, layout in zip(model.tree.files, model.layouts, strict=True):
        for span in layout.spans:
            if span.dtype not in _SAFETENSORS:
                return []

            def load(begin: int = span.begin, count: int = math.prod(span.shape),
                     file: str = local_path(folder, entry.path), dtype: str = span.dtype) -> Elements:  # fmt: skip
                return np.fromfile(file, DTYPES[dtype].numpy, count, offset=begin)

            found.setdefault(span.name, Tensor(span.name, span.dtype, span.shape, load))
    return list(found.values())


def write_variants(tensors: Sequence[Tensor], folder: str) -> Iterator[tuple[str, str]]:
    """Write one variant after the other into `folder`, which the caller empties; yield its name and title."""
    sizes = {dtype: sum(t.size for t in tensors if t.dtype == dtype) for dtype in FLOATS}
    main = max(sizes, key=sizes.__getitem__)
    if not sizes[main]:
        return
    target = os.path.join(folder, "model.safetensors")
    for dtype, name in FLOATS.items():
        if dtype != main:
            _write_safetensors(target, [_cast(tensor, dtype) for tensor in tensors])
            yield name, f"cast to {name}"
    largest = max((t for t in tensors if t.dtype in FLOATS), key=lambda t: t.size)
    _write_safetensors(target, [_retrained(t) if t is largest else t for t in tensors])
    yield "retrained", "10% of a tensor retrained"
    parts = _halves(tensors[0]) if len(tensors) == 1 else tensors
    for number, shard in enumerate((parts[: len(parts) // 2], parts[len(parts) // 2 :]), 1):
        _write_safetensors(os.path.join(folder, f"model-{number:05}-of-00002.safetensors"), shard)
    yield "sharded", "in two shards"
    if all(tensor.dtype in _STORAGES for tensor in tensors):
        _write_torch(os.path.join(folder, "pytorch_model.bin"), tensors)
        yield "torch", "as a torch file"


def to_float32(elements: Elements, dtype: str) -> NDArray[np.float32]:
    """Return elements of one of FLOATS as fp32."""
    return (elements.astype("<u4") << 16).view("<f4") if dtype == "BF16" else elements.astype("<f4")


def from_float32(values: NDArray[np.float32], dtype: str) -> Elements:
    """Return fp32 values as one of FLOATS, rounded to nearest even; too large becomes infinite."""
    if dtype == "BF16":
        bits = values.view("<u4")
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        # Rounding could carry a NaN's payload away and leave an infinity.
        return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype("<u2")
    with np.errstate(over="ignore"):
        return values.astype(DTYPES[dtype].numpy)


def _cast(tensor: Tensor, dtype: str) -> Tensor:
    if tensor.dtype not in FLOATS:
        return tensor
    return Tensor(
        tensor.name, dtype, tensor.shape, lambda: from_float32(to_float32(tensor.load(), tensor.dtype), dtype)
    )


def _retrained(tensor: Tensor) -> Tensor:
    """Return a tensor whose elements from 40% to 50% were changed, as by training."""

    def load() -> Elements:
        elements = tensor.load()
        part = slice(len(elements) * 4 // 10, len(elements) // 2 + 1)
        values = to_float32(elements[part], tensor.dtype)
        noise = np.random.default_rng(1).standard_normal(len(values), np.float32)
        elements[part] = from_float32(values + np.float32(0.05) * values.std() * noise, tensor.dtype)
        return elements

    return tensor._replace(load=load)


def _halves(tensor: Tensor) -> list[Tensor]:
    """Return the halves of a tensor's rows as tensors of their own."""
    rows, *rest = tensor.shape or (1,)
    edges = (0, rows // 2, rows)
    return [
        Tensor(f"{tensor.name}.{at}", tensor.dtype, (stop - start, *rest),
               lambda start=start, stop=stop: tensor.load().reshape(rows, -1)[start:stop].ravel())  # type: ignore[misc]
        for at, (start, stop) in enumerate(itertools.pairwise(edges))
    ]  # fmt: skip


def _write_safetensors(path: str, tensors: Sequence[Tensor]) -> None:
    """Write a file as https://github.com/huggingface/safetensors#format says."""
    header: dict[str, Any] = {}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [at, at + tensor.size],
        }
        at += tensor.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.load().data)


def _write_torch(path: str, tensors: Sequence[Tensor]) -> None:
    """Write a file like `torch.save` of a state dict, except for padding; torch need not be installed."""
    pickled = io.BytesIO()
    pickled.write(b"\x80\x02}(")
    with zipfile.ZipFile(path, "x") as archive:
        for number, tensor in enumerate(tensors):
            with archive.open(_member(f"data/{number}"), "w", force_zip64=True) as entry:
                entry.write(tensor.load().data)
            strides = [math.prod(tensor.shape[at + 1 :]) for at in range(len(tensor.shape))]
            # _rebuild_tensor_v2(storage by its persistent id, offset, shape, strides, no gradient, no hooks)
            storage = _tuple(_text("storage"), b"ctorch\n%bStorage\n" % _STORAGES[tensor.dtype].encode(),
                             _text(str(number)), _text("cpu"), _integer(math.prod(tensor.shape)))  # fmt: skip
            pickled.write(_text(tensor.name) + b"ctorch._utils\n_rebuild_tensor_v2\n")
            pickled.write(_tuple(storage + b"Q", _integer(0), _tuple(*map(_integer, tensor.shape)),
                                 _tuple(*map(_integer, strides)), b"\x89", b"ccollections\nOrderedDict\n)R") + b"R")  # fmt: skip
        archive.writestr(_member("data.pkl"), pickled.getvalue() + b"u.")
        archive.writestr(_member("byteorder"), b"little")
        archive.writestr(_member("version"), b"3\n")


def _member(name: str) -> zipfile.ZipInfo:
    # Without the time of day, as torch writes it: the same tensors are the same file.
    return zipfile.ZipInfo(f"model/{name}")


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"
