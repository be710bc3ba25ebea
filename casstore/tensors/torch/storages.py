"""Torch's storages: which tensors of a saved value lie on each, and the spans that follow.

What torch's file formats share: a file says where each storage lies, and a pickle that tensors are views of storages.
"""

from __future__ import annotations

from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from casstore.tensors.dtypes import DTYPES
from casstore.tensors.span import MAX_NAME_BYTES, TensorSpan, Unrecognised
from casstore.tensors.torch.symbols import Node, TensorSymbol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.tensors.torch.symbols import Global

__all__ = ["View", "named_views", "storage_dtype", "storage_spans"]

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
    "UntypedStorage": "U8",
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
# Stands for a path that is too long for a name.
_TOO_LONG = " " * (MAX_NAME_BYTES + 1)

View = tuple[str, TensorSymbol]
"""A tensor and its name, which is empty where the path is too long for one."""


def named_views(root: object, prefix: str) -> dict[str, list[View]]:
    """Return the tensors in a saved value by the key of their storage, each named by its path below `prefix`.

    Raises Unrecognised if the names are absurdly long.
    """
    found: dict[str, list[View]] = {}
    for view in _named_tensors(root, prefix):
        key = view[1].storage.key
        if key in found:
            found[key].append(view)
        else:
            found[key] = [view]
    return found


def _named_tensors(root: object, prefix: str) -> Iterator[View]:
    """Yield each tensor with its path, front to back. A container that is met again is not entered again."""
    # One word of the path for each level, and what stands in front of the names there, made when it is needed.
    path = [prefix]
    fronts: list[str | None] = [None]
    entered: set[int] = set()
    levels: list[Iterator[tuple[str, Any]]] = [iter([("", root)])]
    characters = 0
    while levels:
        step = next(levels[-1], None)
        if step is None:
            levels.pop()
            path.pop()
            fronts.pop()
            continue
        part, value = step
        if type(value) is TensorSymbol:
            front = fronts[-1]
            if front is None:
                front = fronts[-1] = _front(path)
            length = len(front) + (len(part) + 1 if part else 0)
            if length > MAX_NAME_BYTES:
                yield "", value
                continue
            characters += length
            if characters > MAX_ALL_NAMES:
                raise Unrecognised("absurdly long names")
            yield front + part if part else front[:-1], value
        elif type(value) in (list, tuple, Node) and id(value) not in entered and len(levels) < MAX_PATH_DEPTH:
            entered.add(id(value))
            path.append(part)
            fronts.append(None)
            levels.append(_children(value))


def _front(path: list[str]) -> str:
    words = [word for word in path if word]
    # Counted before joining: one long key at every level of a path is short in the pickle.
    if sum(map(len, words)) + len(words) > MAX_NAME_BYTES:
        return _TOO_LONG
    return "".join(f"{word}." for word in words)


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


def storage_spans(name: str, begin: int, length: int, views: list[View]) -> list[TensorSpan]:
    """Return the spans of a storage of `length` bytes at `begin`: its views, or all of it under its own `name`.

    Views are spans where they lie in it as runs in C order that are disjoint or the same.
    """
    found = _disjoint_views(name, begin, length, views)
    if found or length == 0:
        return found
    dtypes = {_view_dtype(view) for _, view in views}
    dtype = (dtypes.pop() if len(dtypes) == 1 else None) or "U8"
    width = DTYPES[dtype].block_bytes
    if length % width:
        dtype, width = "U8", 1
    return [TensorSpan(name, dtype, (length // width,), begin, begin + length)]


def _disjoint_views(name: str, begin: int, length: int, views: list[View]) -> list[TensorSpan]:
    """Return the views as spans, or nothing if one is strided or unknown, or two share only some bytes."""
    placed: list[tuple[int, int, str, str, tuple[int, ...]]] = []
    for path, view in views:
        dtype = _view_dtype(view)
        if dtype is None:
            return []
        width = DTYPES[dtype].block_bytes
        elements = _run_length(view.shape, view.strides)
        if elements is None:
            return []
        start = view.offset * width if elements else 0
        end = start + elements * width
        if end > length:
            return []
        # A character takes four bytes at most.
        fits = path and (4 * len(path) <= MAX_NAME_BYTES or len(path.encode()) <= MAX_NAME_BYTES)
        placed.append((start, end, path if fits else name, dtype, view.shape))
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


# Most tensors of a file have one of few shapes.
@lru_cache(maxsize=1024)
def _run_length(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """Return the number of elements, None if they do not lie one behind the other in C order."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size == 0:
            return 0
        if size != 1 and stride != expected:
            return None
        expected *= size
    return expected


def _view_dtype(view: TensorSymbol) -> str | None:
    return storage_dtype(view.storage.kind) if view.dtype is None else _tensor_dtype(view.dtype)


@lru_cache(maxsize=256)
def storage_dtype(kind: Global) -> str | None:
    """Return the element type of a storage of this class, None if it is not known."""
    return _STORAGES.get(kind.name) if kind.module.partition(".")[0] == "torch" else None


@lru_cache(maxsize=256)
def _tensor_dtype(named: Global) -> str | None:
    return _DTYPES.get(named.name) if named.module == "torch" else None
