"""torch zip archives: what torch.save has written since 1.6, and TorchScript.

An archive keeps each storage as the entry `<root>/data/<key>` and describes tensors, views of storages, in
`<root>/data.pkl`; TorchScript has a second pair, `constants`. Source: torch/serialization.py and
https://github.com/pytorch/pytorch/blob/main/caffe2/serialize/inline_container.h.
"""

from __future__ import annotations

import math
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from casstore.tensors.dtypes import DTYPES
from casstore.tensors.pickle_machine import MAX_PICKLE_BYTES, read_symbols
from casstore.tensors.span import MAX_NAME_BYTES, TensorSpan, UniqueNames, Unrecognised
from casstore.tensors.torch_symbols import Node, TensorSymbol
from casstore.tensors.window import read_exactly
from casstore.tensors.zip_directory import ZipEntry, data_offset, stored_entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.tensors.span import ByteSource
    from casstore.tensors.torch_symbols import Global

__all__ = ["MAGIC", "spans"]

MAGIC = b"PK\x03\x04"
# Names are paths: without a bound on all of them together, short pickles could describe gigabytes of text.
MAX_ALL_NAMES = 64 << 20
MAX_PATH_DEPTH = 64

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexDoubleStorage": "C128",
    "ComplexFloatStorage": "C64",
    "QInt8Storage": "I8",
    "QUInt8Storage": "U8",
    "QInt32Storage": "I32",
}
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex128": "C128",
    "complex64": "C64",
    "complex32": "C32",
}
# Where a module keeps its parts; a state dict leaves these words out of its keys.
_MODULE_PARTS = {"_modules", "_parameters", "_buffers"}

_View = tuple[str, TensorSymbol]


def spans(source: ByteSource) -> list[TensorSpan]:
    """Return the tensors of the archive, or raise Unrecognised.

    Where the tensors on a storage lie in it one after another they are the spans, named by their path in the saved
    value (`model.fc.weight`). Otherwise, and where the pickle cannot be read, the storage is one span,
    named by its zip entry (`archive/data/3`). Storages of unknown type or big-endian order are U8.
    """
    entries = {entry.name: entry for entry in stored_entries(source)}
    roots = [
        name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(roots) != 1:
        raise Unrecognised("a zip that torch did not write")
    root = roots[0]
    little = _little_endian(source, entries.get(root + "byteorder"))
    names = UniqueNames()
    found: list[TensorSpan] = []
    for part, prefix in (("data", ""), ("constants", "constants")):
        folder = f"{root}{part}/"
        storages = [entry for name, entry in entries.items() if name.startswith(folder)]
        if not storages:
            continue
        views = _views(source, entries.get(f"{root}{part}.pkl"), prefix) if little else {}
        for entry in storages:
            begin = data_offset(source, entry)
            for span in _storage_spans(entry, begin, views.get(entry.name[len(folder) :], [])):
                name = names.claim(span.name)
                found.append(span if name == span.name else span._replace(name=name))
    return found


def _little_endian(source: ByteSource, entry: ZipEntry | None) -> bool:
    # Archives from before the entry existed are little-endian, as the machines were.
    if entry is None:
        return True
    return entry.length == 6 and read_exactly(source, data_offset(source, entry), 6) == b"little"


def _views(source: ByteSource, entry: ZipEntry | None, prefix: str) -> dict[str, list[_View]]:
    """Return the named tensors on each storage key; none at all if the pickle cannot be read or is absurd."""
    if entry is None or entry.length > MAX_PICKLE_BYTES:
        return {}
    data = read_exactly(source, data_offset(source, entry), entry.length)
    found: dict[str, list[_View]] = {}
    try:
        for name, tensor in _named_tensors(read_symbols(data), prefix):
            found.setdefault(tensor.storage.key, []).append((name, tensor))
    except Unrecognised:
        # The zip itself still says where storages lie.
        return {}
    return found


def _named_tensors(root: object, prefix: str) -> Iterator[_View]:
    """Yield each tensor with its path, front to back; "" stands for a path that is too long for a name.

    A container that is met again is not entered again.
    """
    # One word of the path for each level.
    path = [prefix]
    entered: set[int] = set()
    levels: list[Iterator[tuple[str, Any]]] = [iter([("", root)])]
    characters = 0
    while levels:
        step = next(levels[-1], None)
        if step is None:
            levels.pop()
            path.pop()
            continue
        part, value = step
        if type(value) is TensorSymbol:
            words = [word for word in (*path, part) if word]
            # Counted before joining: one long key at every level of a path is short in the pickle.
            length = sum(map(len, words)) + len(words)
            if length > MAX_NAME_BYTES:
                yield "", value
                continue
            characters += length
            if characters > MAX_ALL_NAMES:
                raise Unrecognised("absurdly long names")
            yield ".".join(words), value
        elif type(value) in (list, tuple, Node) and id(value) not in entered and len(levels) < MAX_PATH_DEPTH:
            entered.add(id(value))
            path.append(part)
            levels.append(_children(value))


def _children(value: list[Any] | tuple[Any, ...] | Node) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Node):
        yield from ((str(index), child) for index, child in enumerate(value))
        return
    yield from ((str(index), child) for index, child in enumerate(value.args))
    for index, (key, child) in enumerate(value.items):
        word = str(key) if type(key) in (str, int) else str(index)
        yield "" if word in _MODULE_PARTS and type(child) is Node else word, child
    # What an object was built from has its attributes as keys: the object's own path is theirs.
    yield from (("", child) for child in value.state)


def _storage_spans(entry: ZipEntry, begin: int, views: list[_View]) -> list[TensorSpan]:
    found = _disjoint_views(entry, begin, views)
    if found:
        return found
    dtype = _agreed_dtype(views)
    width = DTYPES[dtype].block_bytes
    if entry.length % width:
        dtype, width = "U8", 1
    if entry.length == 0:
        return []
    return [TensorSpan(entry.name, dtype, (entry.length // width,), begin, begin + entry.length)]


def _disjoint_views(entry: ZipEntry, begin: int, views: list[_View]) -> list[TensorSpan]:
    """Return the views as spans, or nothing if one is strided or unknown, or two share only some bytes."""
    placed: list[tuple[int, int, str, str, tuple[int, ...]]] = []
    for path, view in views:
        dtype = _dtype(view)
        if dtype is None or not _contiguous(view):
            return []
        length = math.prod(view.shape) * DTYPES[dtype].block_bytes
        start = view.offset * DTYPES[dtype].block_bytes if length else 0
        if start + length > entry.length:
            return []
        name = path if path and len(path.encode()) <= MAX_NAME_BYTES else entry.name
        placed.append((start, start + length, name, dtype, view.shape))
    # Stable: views of the same bytes keep the order of the pickle, and so their names.
    placed.sort(key=itemgetter(0, 1))
    covered = (0, 0)
    for start, end, *_ in placed:
        if start < covered[1] and (start, end) != covered:
            return []
        covered = (start, end)
    return [
        TensorSpan(name, dtype, shape, begin + start, begin + end)
        for start, end, name, dtype, shape in placed
    ]


def _contiguous(view: TensorSymbol) -> bool:
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size == 0:
            return True
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _dtype(view: TensorSymbol) -> str | None:
    named: Global | None = view.dtype
    if named is not None:
        return _DTYPES.get(named.name) if named.module == "torch" else None
    kind = view.storage.kind
    return _STORAGES.get(kind.name) if kind.module.partition(".")[0] == "torch" else None


def _agreed_dtype(views: list[_View]) -> str:
    dtypes = {_dtype(view) for _, view in views}
    return (dtypes.pop() if len(dtypes) == 1 else None) or "U8"
