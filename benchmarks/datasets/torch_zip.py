"""A writer of torch zips as `torch.save` writes them, alignment included; torch is not needed."""

from __future__ import annotations

import math
import struct
import zipfile
from typing import TYPE_CHECKING, Any, BinaryIO

from benchmarks.datasets.weights import plain

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.datasets.weights import Tensors

STORAGES = {
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


def write_torch_zip(path: Path, tensors: Tensors) -> None:
    """Write what `torch.save` of a state dict writes; element types must be in STORAGES.

    Source: torch/serialization.py and caffe2/serialize/inline_container.cc for the names and the alignment.
    """
    root = path.name.partition(".")[0]
    with path.open("xb") as file, zipfile.ZipFile(file, "w") as archive:
        pickled = _pickle_state_dict(tensors)
        with _stored(archive, file, f"{root}/data.pkl", len(pickled)) as entry:
            entry.write(pickled)
        with _stored(archive, file, f"{root}/byteorder", 6) as entry:
            entry.write(b"little")
        for number, tensor in enumerate(tensors.values()):
            with _stored(archive, file, f"{root}/data/{number}", tensor.array.nbytes) as entry:
                entry.write(plain(tensor))
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


def _pickle_state_dict(tensors: Tensors) -> bytes:
    """Return the pickle of {name: tensor}; written by opcodes, for its globals need not be importable."""
    items = []
    for number, (name, (dtype, array)) in enumerate(tensors.items()):
        shape = array.shape
        strides = [math.prod(d or 1 for d in shape[at + 1 :]) for at in range(len(shape))]
        storage = _tuple(
            _text("storage"),
            _global("torch", STORAGES[dtype]),
            _text(str(number)),
            _text("cpu"),
            _integer(array.size),
        )
        arguments = _tuple(
            storage + b"Q",  # BINPERSID
            _integer(0),
            _tuple(*map(_integer, shape)),
            _tuple(*map(_integer, strides)),
            b"\x89",  # NEWFALSE: no gradient
            _global("collections", "OrderedDict") + b")R",  # no hooks
        )
        items.append(_text(name) + _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R")
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
