"""torch.export's archives (`.pt2`): weights as storages of their own, and JSON that says which tensors lie on them.

Since torch 2.8 an archive has `<root>/archive_format` with the text `pt2`, storages in `<root>/data/weights/` and
`<root>/data/constants/`, and JSON files beside them. Before that it had torch zips as members. Source:
torch/export/pt2_archive and torch/_export/serde/schema.py.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from casstore.tensors.span import MAX_DIMS, UniqueNames, Unrecognised
from casstore.tensors.torch import zip_file as torch_zip
from casstore.tensors.torch.storages import storage_spans
from casstore.tensors.torch.symbols import Global, StorageSymbol, TensorSymbol
from casstore.tensors.window import Section, Window, read_exactly
from casstore.tensors.zip_directory import MAGIC, locate, stored_entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.tensors.span import ByteSource, TensorSpan
    from casstore.tensors.torch.storages import View
    from casstore.tensors.zip_directory import Entries, ZipEntry

__all__ = ["is_torch_export", "spans"]

MAX_CONFIG_BYTES = 64 << 20
# Braces, brackets and commas bound the number of values before the JSON is parsed; a tensor has about thirty.
MAX_MARKS = 8_000_000
_FORMAT = "/archive_format"
_FOLDERS = ("data/weights/", "data/constants/")
_CONFIG = "_config.json"
# Members of archives from before torch 2.8, and where the names of their tensors begin.
_SAVED_VALUES = {
    "serialized_state_dict.pt": "",
    "serialized_constants.pt": "constants",
    "serialized_example_inputs.pt": "example_inputs",
}
# ScalarType in schema.py, by torch's own names.
_TYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}
_STRIDED = 7
_UNTYPED = Global("torch.storage", "UntypedStorage")
_LONG_NUMBER = re.compile(rb"[0-9]{21}")


def is_torch_export(entries: Entries) -> bool:
    """Say whether an archive looks like an exported program."""
    return not _SAVED_VALUES.keys().isdisjoint(entries) or len(_roots(entries)) == 1


def spans(source: ByteSource, entries: Entries) -> list[TensorSpan]:
    """Return the tensors of the archive, or raise Unrecognised.

    Names are those of the program's state dict. Views become spans as in a torch zip; a storage that the JSON does not
    describe is one span of bytes, named by its zip entry. A weight that was pickled is a torch zip of its own.
    """
    names = UniqueNames()
    found = _stored(source, entries) if len(_roots(entries)) == 1 else _saved_values(source, entries)
    return [span._replace(name=names.claim(span.name)) for span in found]


def _roots(entries: Entries) -> list[str]:
    return [
        name.removesuffix(_FORMAT)
        for name, entry in entries.items()
        if name.endswith(_FORMAT) and name.count("/") == 1 and entry.length == 3
    ]


def _saved_values(source: ByteSource, entries: Entries) -> Iterator[TensorSpan]:
    members = [entry for name, entry in entries.items() if name in _SAVED_VALUES]
    for entry, begin in locate(Window(source), members):
        yield from _torch_zip(source, begin, entry.length, _SAVED_VALUES[entry.name])


def _torch_zip(source: ByteSource, begin: int, length: int, prefix: str) -> list[TensorSpan]:
    """Return the tensors of a torch zip within the archive; none if it cannot be read."""
    section = Section(Window(source), begin, length)
    try:
        entries = stored_entries(section)
        if not torch_zip.is_torch_zip(entries):
            return []
        found = torch_zip.spans(section, entries, prefix=prefix)
    except Unrecognised:
        return []
    return [span._replace(begin=begin + span.begin, end=begin + span.end) for span in found]


def _stored(source: ByteSource, entries: Entries) -> Iterator[TensorSpan]:
    (root,) = _roots(entries)
    members = [
        entry
        for name, entry in entries.items()
        if name.startswith(tuple(f"{root}/{part}" for part in _FOLDERS))
    ]
    places = list(locate(Window(source), [*members, entries[root + _FORMAT]]))
    views: dict[str, list[View]] = {}
    pickled: dict[str, str] = {}
    little = torch_zip.is_little_endian(source, entries.get(f"{root}/byteorder"))
    for entry, begin in places:
        if entry.name == root + _FORMAT and read_exactly(source, begin, entry.length) != b"pt2":
            raise Unrecognised("an archive of another format")
        if entry.name.endswith(_CONFIG) and little:
            _read_config(source, entry, begin, views, pickled)
    for entry, begin in places:
        if entry.name.endswith((_CONFIG, _FORMAT)):
            continue
        if entry.name in pickled and read_exactly(source, begin, min(4, entry.length)) == MAGIC:
            found = _torch_zip(source, begin, entry.length, pickled[entry.name])
        else:
            found = storage_spans(entry.name, begin, entry.length, views.get(entry.name, []))
        yield from found


def _read_config(
    source: ByteSource, entry: ZipEntry, begin: int, views: dict[str, list[View]], pickled: dict[str, str]
) -> None:
    """Add the tensors that a JSON file describes to `views`, by storage, and the pickled ones' names to `pickled`."""
    folder = entry.name.rpartition("/")[0]
    if entry.length > MAX_CONFIG_BYTES:
        return
    for name, meta in _parse(read_exactly(source, begin, entry.length)).items():
        path = meta.get("path_name") if type(meta) is dict else None
        if type(path) is not str:
            continue
        if meta.get("use_pickle") is True:
            pickled[f"{folder}/{path}"] = name
            continue
        view = _view(path, meta.get("tensor_meta"))
        if view is not None:
            views.setdefault(f"{folder}/{path}", []).append((name, view))


def _view(path: str, meta: Any) -> TensorSymbol | None:
    if type(meta) is not dict or meta.get("layout") != _STRIDED:
        return None
    dtype, shape, strides = meta.get("dtype"), _integers(meta.get("sizes")), _integers(meta.get("strides"))
    offset = _integers([meta.get("storage_offset")])
    if type(dtype) is not int or shape is None or strides is None or offset is None:
        return None
    if len(shape) != len(strides) or len(shape) > MAX_DIMS:
        return None
    named = Global("torch", _TYPES.get(dtype, ""))
    return TensorSymbol(StorageSymbol(_UNTYPED, path, None), offset[0], shape, strides, named)


def _integers(values: Any) -> tuple[int, ...] | None:
    """Return sizes as numbers, None if one is an expression or absurd."""
    if type(values) is not list:
        return None
    numbers: list[Any] = [value.get("as_int") if type(value) is dict else None for value in values]
    if not all(type(number) is int and number >= 0 for number in numbers):
        return None
    return tuple(numbers)


def _parse(raw: bytes) -> dict[str, Any]:
    """Return the tensors in a JSON file by name; {} if it is broken or absurd: the storages are in their places."""
    # int() takes quadratic time on long digit strings where the interpreter does not limit them.
    if sum(map(raw.count, (b"{", b"[", b","))) > MAX_MARKS or _LONG_NUMBER.search(raw):
        return {}
    try:
        document = json.loads(raw.decode())
    except (ValueError, RecursionError):
        # Bad UTF-8 and bad JSON are ValueErrors, an attack by depth is a RecursionError.
        return {}
    config = document.get("config") if type(document) is dict else None
    return config if type(config) is dict else {}
