"""Tensors of a model's files as streams of blocks, and two writers for them: safetensors and torch zip.

Everything goes through in blocks of 8 MiB, so a model may be larger than memory. Nothing here imports
torch or safetensors.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from casstore.errors import ConflictError
from casstore.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Block = NDArray[Any]
    Change = Callable[[Block, int], Block]

__all__ = [
    "FLOAT_TYPES",
    "SAFETENSORS_TYPES",
    "TORCH_STORAGES",
    "Output",
    "Tensor",
    "from_float32",
    "to_float32",
    "write_safetensors",
    "write_torch_zip",
]

BLOCK = 8 << 20
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
SAFETENSORS_TYPES = frozenset(
    {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16"}
    | {"I32", "U32", "F32", "F64", "I64", "U64", "C64"}
)
TORCH_STORAGES = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
    "I32": "IntStorage",
    "I16": "ShortStorage",
    "I8": "CharStorage",
    "U8": "ByteStorage",
    "BOOL": "BoolStorage",
}

_ALIGNMENT = 64
_ZIP_HEADER = 30
_ZIP64_EXTRA = 20
_ZIP64_FROM = 1 << 31


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a known element type in a file: bytes [`begin`, `end`) of `location`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def blocks(self) -> Iterator[Block]:
        """Yield the elements in order as flat arrays (see `casstore.tensors.as_array` for bf16)."""
        with open(self.location, "rb") as file:
            file.seek(self.begin)
            left = self.size
            while left:
                data = file.read(min(BLOCK, left))
                if not data:
                    raise ConflictError(f"{self.location} became shorter while it was read. Try again.")
                left -= len(data)
                yield np.frombuffer(data, DTYPES[self.dtype].numpy)

    def rows(self, start: int, stop: int, name: str) -> Tensor:
        """Return rows [`start`, `stop`) of the first dimension as a tensor of its own."""
        row = self.size // self.shape[0]
        shape = (stop - start, *self.shape[1:])
        return Tensor(
            name, self.dtype, shape, self.location, self.begin + start * row, self.begin + stop * row
        )


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to write: `change` turns each block, given its first element's number, into one of `dtype`."""

    tensor: Tensor
    dtype: str
    change: Change | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.tensor.elements * DTYPES[self.dtype].block_bytes

    def write(self, file: BinaryIO) -> None:
        """Write the elements to `file`."""
        at = 0
        for block in self.tensor.blocks():
            file.write((self.change(block, at) if self.change else block).data)
            at += len(block)


def to_float32(block: Block, dtype: str) -> NDArray[np.float32]:
    """Return elements of one of FLOAT_TYPES as fp32; fp64 is rounded to nearest even."""
    if dtype == "BF16":
        return (block.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return block.astype(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> Block:
    """Return fp32 values as one of FLOAT_TYPES: rounded to nearest even, too large becomes infinite."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        # Rounding could carry a NaN's payload away and leave an infinity.
        return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype("<u2")
    with np.errstate(over="ignore"):
        return values.astype(DTYPES[dtype].numpy)


def write_safetensors(path: str, outputs: Sequence[Output]) -> None:
    """Write a safetensors file; element types must be in SAFETENSORS_TYPES.

    Source: https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for output in outputs:
        header[output.tensor.name] = {
            "dtype": output.dtype,
            "shape": list(output.tensor.shape),
            "data_offsets": [at, at + output.size],
        }
        at += output.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for output in outputs:
            output.write(file)


def write_torch_zip(path: str, outputs: Sequence[Output]) -> None:
    """Write what `torch.save` of a state dict writes; element types must be in TORCH_STORAGES.

    Source: torch/serialization.py and caffe2/serialize/inline_container.cc for the names and the alignment.
    """
    root = os.path.basename(path).partition(".")[0]
    with open(path, "xb") as file, zipfile.ZipFile(file, "w") as archive:
        pickled = _pickle_state_dict(outputs)
        with _stored(archive, file, f"{root}/data.pkl", len(pickled)) as entry:
            entry.write(pickled)
        with _stored(archive, file, f"{root}/byteorder", 6) as entry:
            entry.write(b"little")
        for number, output in enumerate(outputs):
            with _stored(archive, file, f"{root}/data/{number}", output.size) as entry:
                output.write(entry)
        with _stored(archive, file, f"{root}/version", 2) as entry:
            entry.write(b"3\n")


def _stored(archive: zipfile.ZipFile, file: BinaryIO, name: str, size: int) -> Any:
    """Begin an entry that is not compressed and whose data starts at a multiple of 64 bytes."""
    info = zipfile.ZipInfo(name)
    large = size >= _ZIP64_FROM
    info.file_size = size
    data = file.tell() + _ZIP_HEADER + len(name.encode()) + (_ZIP64_EXTRA if large else 0) + 4
    padding = -data % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    return archive.open(info, "w", force_zip64=large)


def _pickle_state_dict(outputs: Sequence[Output]) -> bytes:
    """Return the pickle of {name: tensor}; written by opcodes, for its globals need not be importable."""
    items = []
    for number, output in enumerate(outputs):
        shape = output.tensor.shape
        strides = [math.prod(d or 1 for d in shape[at + 1 :]) for at in range(len(shape))]
        storage = _tuple(
            _text("storage"),
            _global("torch", TORCH_STORAGES[output.dtype]),
            _text(str(number)),
            _text("cpu"),
            _integer(output.tensor.elements),
        )
        arguments = _tuple(
            storage + b"Q",  # BINPERSID
            _integer(0),
            _tuple(*map(_integer, shape)),
            _tuple(*map(_integer, strides)),
            b"\x89",  # NEWFALSE: no gradient
            _global("collections", "OrderedDict") + b")R",  # no hooks
        )
        items.append(
            _text(output.tensor.name) + _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"
        )
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"
