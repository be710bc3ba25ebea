"""Model files of every format that casstore.tensors reads, built by hand: small, exact and without the formats' packages.

A tensor is a numpy array, or (dtype, shape, bytes) where numpy has no such type; dtype names are those of
casstore.tensors.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from casstore.tensors import gguf as _gguf
from casstore.tensors import tflite as _tflite
from casstore.tensors.onnx import schema as _onnx
from casstore.tensors.torch import exported_program as _torch_export
from casstore.tensors.torch import storages as _torch_storages

Tensor = np.ndarray | tuple[str, Sequence[int], bytes]
Tensors = Mapping[str, Tensor]

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
    "complex128": "C128",
}
_GGUF_NUMBERS = {name: number for number, name in _gguf._TYPES.items()}
_ONNX_NUMBERS = {name: number for number, name in _onnx.DTYPE_NAMES.items()}
_TFLITE_NUMBERS = {name: number for number, name in _tflite._TYPES.items()}
_TORCH_STORAGES = {
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
    "C64": "ComplexFloatStorage",
    "C128": "ComplexDoubleStorage",
}
_TORCH_DTYPES = {
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_TORCH_EXPORT_NUMBERS = {
    _torch_storages._DTYPES[name]: number for number, name in _torch_export._TYPES.items()
}


class Parts(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class BytesSource:
    """A ByteSource over bytes; `reads` lists (offset, length) of what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        self.reads.append((offset, length))
        return self.data[offset : offset + length]


def parts(tensor: Tensor) -> Parts:
    """Return a tensor's dtype, shape and little-endian bytes."""
    if isinstance(tensor, np.ndarray):
        little = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        return Parts(_NAMES[tensor.dtype.name], tensor.shape, little.tobytes())
    dtype, shape, data = tensor
    return Parts(dtype, tuple(shape), bytes(data))


# safetensors


def safetensors_bytes(tensors: Tensors, *, metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    payload = []
    offset = 0
    for name, tensor in tensors.items():
        dtype, shape, data = parts(tensor)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        payload.append(data)
        offset += len(data)
    return safetensors_with_header(json.dumps(header).encode(), b"".join(payload))


def safetensors_with_header(header: bytes, payload: bytes = b"") -> bytes:
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + payload


# npy


def npy_bytes(array: np.ndarray, *, version: tuple[int, int] = (1, 0)) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version, allow_pickle=False)
    return out.getvalue()


# GGUF


def gguf_bytes(
    tensors: Tensors,
    *,
    metadata: Mapping[str, Any] | None = None,
    alignment: int | None = None,
    version: int = 3,
    type_numbers: Mapping[str, int] | None = None,
    order: str = "<",
) -> bytes:
    """Metadata values are str, bool, int, float or lists of one of these; `type_numbers` overrides a tensor's type.

    With `order=">"` the header is big-endian; the tensors' bytes are taken as they are.
    """
    values = dict(metadata or {})
    out = [b"GGUF", struct.pack(order + "IQQ", version, len(tensors), len(values) + (alignment is not None))]
    if alignment is not None:
        out += [_gguf_string("general.alignment", order), struct.pack(order + "II", 4, alignment)]
    for key, value in values.items():
        kind, data = _gguf_value(value, order)
        out += [_gguf_string(key, order), struct.pack(order + "I", kind), data]
    step = alignment or 32
    payload = []
    offset = 0
    for name, tensor in tensors.items():
        dtype, shape, data = parts(tensor)
        number = (type_numbers or {}).get(name, _GGUF_NUMBERS.get(dtype, 0))
        dims = struct.pack(order + f"{len(shape)}Q", *reversed(shape))
        out += [
            _gguf_string(name, order),
            struct.pack(order + "I", len(shape)),
            dims,
            struct.pack(order + "IQ", number, offset),
        ]
        payload.append(data + bytes(-len(data) % step))
        offset += len(payload[-1])
    header = b"".join(out)
    return header + bytes(-len(header) % step) + b"".join(payload)


def _gguf_string(text: str, order: str) -> bytes:
    raw = text.encode()
    return struct.pack(order + "Q", len(raw)) + raw


def _gguf_value(value: Any, order: str) -> tuple[int, bytes]:
    if isinstance(value, str):
        return 8, _gguf_string(value, order)
    if isinstance(value, bool):
        return 7, bytes([value])
    if isinstance(value, int):
        return 11, struct.pack(order + "q", value)
    if isinstance(value, float):
        return 6, struct.pack(order + "f", value)
    pieces = [_gguf_value(item, order) for item in value]
    kind = pieces[0][0] if pieces else 4
    return 9, struct.pack(order + "IQ", kind, len(pieces)) + b"".join(data for _, data in pieces)


# ONNX


def proto_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def proto_field(number: int, value: int | str | bytes) -> bytes:
    """One protobuf field: a varint for an int, length-delimited for text and bytes."""
    if isinstance(value, int):
        return proto_varint(number << 3) + proto_varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return proto_varint(number << 3 | 2) + proto_varint(len(raw)) + raw


def onnx_tensor(
    name: str, tensor: Tensor, *, packed_dims: bool = False, external: tuple[str, int, int] | None = None
) -> bytes:
    """A TensorProto; `external` is (location, offset, length) in place of raw_data."""
    dtype, shape, data = parts(tensor)
    if packed_dims:
        out = proto_field(1, b"".join(map(proto_varint, shape)))
    else:
        out = b"".join(proto_field(1, dim) for dim in shape)
    out += proto_field(2, _ONNX_NUMBERS[dtype]) + proto_field(8, name)
    if external is None:
        return out + proto_field(9, data)
    for key, value in zip(("location", "offset", "length"), map(str, external), strict=True):
        out += proto_field(13, proto_field(1, key) + proto_field(2, value))
    return out + proto_field(14, 1)


def onnx_model(graph: bytes, *extra: bytes) -> bytes:
    """A ModelProto around a serialised GraphProto; `extra` are further fields."""
    head = proto_field(1, 10) + proto_field(2, "casstore-tests")
    return head + proto_field(7, graph) + proto_field(8, proto_field(2, 21)) + b"".join(extra)


def onnx_bytes(tensors: Tensors, *, external: str | None = None, packed_dims: bool = False) -> bytes:
    """A model with these initializers and a node for each; with `external` their data is `onnx_external_bytes`."""
    graph = [
        proto_field(1, proto_field(1, name) + proto_field(2, name + "_out") + proto_field(4, "Identity"))
        for name in tensors
    ]
    graph.append(proto_field(2, "graph"))
    offset = 0
    for name, tensor in tensors.items():
        length = len(parts(tensor).data)
        place = (external, offset, length) if external is not None else None
        graph.append(proto_field(5, onnx_tensor(name, tensor, packed_dims=packed_dims, external=place)))
        offset += length + -length % 64
    return onnx_model(b"".join(graph))


def onnx_external_bytes(tensors: Tensors) -> bytes:
    """The data file of `onnx_bytes(tensors, external=…)`: each tensor begins at a multiple of 64."""
    data = (parts(tensor).data for tensor in tensors.values())
    return b"".join(raw + bytes(-len(raw) % 64) for raw in data)


# TFLite


class _Flatbuffer:
    """Writes a flatbuffer from the root on: what holds an offset comes before what it leads to."""

    def __init__(self) -> None:
        self.out = bytearray(b"\0\0\0\0TFL3")

    def table(self, at: int, fields: Mapping[int, tuple[str, int]]) -> dict[int, int]:
        """Write a table, led to from `at`; return the place of each field (struct format, value)."""
        self.align(4)
        slots = max(fields, default=-1) + 1
        places, table = len(self.out), len(self.out) + 4 + 2 * slots
        table += -table % 8
        found, end = {}, table + 4
        for number, (form, _) in fields.items():
            end += -end % struct.calcsize(form)
            found[number] = end
            end += struct.calcsize(form)
        self.out += bytes(end - places)
        struct.pack_into("<2H", self.out, places, 4 + 2 * slots, end - table)
        struct.pack_into("<i", self.out, table, table - places)
        for number, (form, value) in fields.items():
            struct.pack_into("<H", self.out, places + 4 + 2 * number, found[number] - table)
            struct.pack_into(f"<{form}", self.out, found[number], value)
        self.lead(at, table)
        return found

    def vector(self, at: int, form: str, values: Sequence[int], *, align: int = 4) -> list[int]:
        """Write a vector, led to from `at`; return the places of its items."""
        self.out += bytes(-(len(self.out) + 4) % align)
        self.lead(at, len(self.out))
        begin = len(self.out) + 4
        self.out += struct.pack(f"<I{len(values)}{form}", len(values), *values)
        return list(range(begin, len(self.out), struct.calcsize(form)))

    def data(self, at: int, raw: bytes, *, align: int = 16) -> None:
        self.out += bytes(-(len(self.out) + 4) % align)
        self.lead(at, len(self.out))
        self.out += struct.pack("<I", len(raw)) + raw

    def lead(self, at: int, to: int) -> None:
        struct.pack_into("<I", self.out, at, to - at)

    def align(self, width: int) -> None:
        self.out += bytes(-len(self.out) % width)


def tflite_bytes(
    tensors: Tensors,
    *,
    behind: bool = False,
    subgraphs: int = 1,
    type_numbers: Mapping[str, int] | None = None,
) -> bytes:
    """A TFLite model with these constants and one tensor that is computed, the same in each subgraph.

    With `behind` the bytes lie behind the flatbuffer, as in models of over 2 GB.
    """
    flat = _Flatbuffer()
    model = flat.table(0, {0: ("I", 3), 2: ("I", 0), 4: ("I", 0)})
    items = [(name, parts(tensor)) for name, tensor in tensors.items()]
    for graph in flat.vector(model[2], "I", [0] * subgraphs):
        (listed,) = flat.table(graph, {0: ("I", 0)}).values()
        places = flat.vector(listed, "I", [0] * (len(items) + 1))
        computed = flat.table(places[0], {3: ("I", 0)})
        flat.data(computed[3], b"computed", align=4)
        for number, (place, (name, part)) in enumerate(zip(places[1:], items, strict=True), 1):
            kind = (type_numbers or {}).get(name, _TFLITE_NUMBERS.get(part.dtype, 5))
            tensor = flat.table(place, {0: ("I", 0), 1: ("B", kind), 2: ("I", number), 3: ("I", 0)})
            flat.vector(tensor[0], "i", part.shape)
            flat.data(tensor[3], name.encode(), align=4)
    buffers = flat.vector(model[4], "I", [0] * (len(items) + 1))
    flat.table(buffers[0], {})
    tails = []
    for place, (_, part) in zip(buffers[1:], items, strict=True):
        if behind:
            tails.append((flat.table(place, {1: ("Q", 1), 2: ("Q", 1)}), part.data))
        else:
            flat.data(flat.table(place, {0: ("I", 0)})[0], part.data)
    for fields, raw in tails:
        flat.align(16)
        struct.pack_into("<Q", flat.out, fields[1], len(flat.out))
        struct.pack_into("<Q", flat.out, fields[2], len(raw))
        flat.out += raw
    return bytes(flat.out)


# torch zip


class View(NamedTuple):
    """A tensor on storage `key`, in elements: what torch.save writes for one that shares its storage."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of an array in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def torch_zip_bytes(
    tensors: Tensors,
    *,
    root: str = "archive",
    byteorder: str | None = "little",
    value: Callable[[dict[str, bytes]], bytes] | None = None,
    **zip_options: Any,
) -> bytes:
    """What torch.save writes for a state dict of these tensors, each on a storage of its own.

    `value` turns {name: pickle of one tensor} into the opcodes of another saved value (see `pickle_dict`).
    """
    storages = {str(key): parts(tensor) for key, tensor in enumerate(tensors.values())}
    pickles = {
        name: pickle_tensor(View(key, part.dtype, 0, part.shape, strides_of(part.shape)), part)
        for name, (key, part) in zip(tensors, storages.items(), strict=True)
    }
    body = (value or pickle_dict)(pickles)
    data = {key: part.data for key, part in storages.items()}
    return torch_zip_of(pickle_of(body), data, root=root, byteorder=byteorder, **zip_options)


def torch_views_bytes(storages: Tensors, views: Mapping[str, View], **options: Any) -> bytes:
    """What torch.save writes for a state dict of views on shared storages."""
    kept = {key: parts(tensor) for key, tensor in storages.items()}
    body = pickle_dict({name: pickle_tensor(view, kept[view.key]) for name, view in views.items()})
    return torch_zip_of(pickle_of(body), {key: part.data for key, part in kept.items()}, **options)


def torch_legacy_bytes(
    tensors: Tensors,
    *,
    little: bool = True,
    magic: bytes = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",
    protocol: int = 1001,
    value: Callable[[dict[str, bytes]], bytes] | None = None,
    keys: Sequence[str] | None = None,
    counts: Mapping[str, int] | None = None,
) -> bytes:
    """What torch.save writes with `_use_new_zipfile_serialization=False` for a state dict of these tensors.

    `keys` and `counts` replace what the file says of its storages.
    """
    storages = {str(9000 + key): parts(tensor) for key, tensor in enumerate(tensors.values())}
    pickles = {
        name: pickle_tensor(View(key, part.dtype, 0, part.shape, strides_of(part.shape)), part, legacy=True)
        for name, (key, part) in zip(tensors, storages.items(), strict=True)
    }
    machine = {"protocol_version": pickle_int(1001), "little_endian": b"\x88" if little else b"\x89"}
    listed = b"](" + b"".join(map(pickle_text, storages if keys is None else keys)) + b"e"
    bodies = [magic, pickle_int(protocol), pickle_dict(machine), (value or pickle_dict)(pickles), listed]
    out = [pickle_of(body) for body in bodies]
    for key, part in storages.items():
        out += [struct.pack("<Q", (counts or {}).get(key, storage_elements(part))), part.data]
    return b"".join(out)


def storage_elements(part: Parts) -> int:
    """The number of elements of a storage: bytes, where torch has no class for the type."""
    return math.prod(part.shape) if part.dtype in _TORCH_STORAGES else len(part.data)


def torch_export_bytes(
    tensors: Tensors,
    *,
    root: str = "program",
    pickled: Mapping[str, bytes] | None = None,
    configs: Mapping[str, bytes] | None = None,
    format_text: bytes = b"pt2",
    byteorder: str = "little",
    **zip_options: Any,
) -> bytes:
    """What torch.export.save writes since torch 2.8 for a program with these weights, each on a storage of its own.

    `pickled` are further weights by name, each what torch.save wrote; `configs` replaces JSON files by folder.
    """
    config: dict[str, Any] = {}
    entries = {}
    for key, (name, tensor) in enumerate(tensors.items()):
        part = parts(tensor)
        config[name] = torch_export_meta(f"weight_{key}", part.dtype, part.shape)
        entries[f"{root}/data/weights/weight_{key}"] = part.data
    for key, (name, data) in enumerate((pickled or {}).items(), len(config)):
        config[name] = {"path_name": f"weight_{key}", "use_pickle": True, "tensor_meta": None}
        entries[f"{root}/data/weights/weight_{key}"] = data
    for folder, name, content in (("weights", "model_weights", config), ("constants", "model_constants", {})):
        given = (configs or {}).get(folder)
        text = json.dumps({"config": content}).encode() if given is None else given
        entries[f"{root}/data/{folder}/{name}_config.json"] = text
    entries[f"{root}/archive_format"] = format_text
    entries[f"{root}/byteorder"] = byteorder.encode()
    return zip_bytes(entries, **zip_options)


def torch_export_meta(
    path: str, dtype: str, shape: Sequence[int], *, strides: Sequence[int] | None = None, offset: int = 0
) -> dict[str, Any]:
    """What the JSON in an exported program says of one tensor."""
    meta = {
        "dtype": _TORCH_EXPORT_NUMBERS[dtype],
        "sizes": [{"as_int": size} for size in shape],
        "strides": [{"as_int": stride} for stride in (strides_of(shape) if strides is None else strides)],
        "storage_offset": {"as_int": offset},
        "layout": 7,
    }
    return {"path_name": path, "is_param": True, "use_pickle": False, "tensor_meta": meta}


def torch_zip_of(
    data_pkl: bytes,
    storages: Mapping[str, bytes],
    *,
    root: str = "archive",
    byteorder: str | None = "little",
    constants_pkl: bytes | None = None,
    constants: Mapping[str, bytes] | None = None,
    **zip_options: Any,
) -> bytes:
    entries = {f"{root}/data.pkl": data_pkl}
    if byteorder is not None:
        entries[f"{root}/byteorder"] = byteorder.encode()
    entries.update({f"{root}/data/{key}": data for key, data in storages.items()})
    if constants_pkl is not None:
        entries[f"{root}/constants.pkl"] = constants_pkl
    entries.update({f"{root}/constants/{key}": data for key, data in (constants or {}).items()})
    entries[f"{root}/version"] = b"3\n"
    return zip_bytes(entries, **zip_options)


def zip_bytes(
    entries: Mapping[str, bytes], *, align: int = 64, zip64: bool = False, deflate: Sequence[str] = ()
) -> bytes:
    """A zip whose entries begin at multiples of `align`; names in `deflate` are compressed."""
    out = bytearray()
    central = bytearray()
    for text, plain in entries.items():
        name = text.encode()
        method, data = (8, _deflated(plain)) if text in deflate else (0, plain)
        at = len(out)
        padding = -(at + 30 + len(name) + 4) % align
        extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
        crc = zlib.crc32(plain)
        sizes = (0xFFFFFFFF, 0xFFFFFFFF) if zip64 else (len(data), len(plain))
        out += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, method, 0, 0, crc, *sizes, len(name), len(extra))
        out += name + extra + data
        more = struct.pack("<2H3Q", 1, 24, len(plain), len(data), at) if zip64 else b""
        central += struct.pack(
            "<4s6H3I5H2I",
            *(b"PK\1\2", 20, 20, 0, method, 0, 0, crc, *sizes, len(name), len(more), 0, 0, 0, 0),
            0xFFFFFFFF if zip64 else at,
        )
        central += name + more
    begin, count, length = len(out), len(entries), len(central)
    out += central
    if zip64:
        out += struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, begin)
        out += struct.pack("<4sIQI", b"PK\6\7", 0, begin + length, 1)
        count, length, begin = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    out += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, length, begin, 0)
    return bytes(out)


def _deflated(plain: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(plain) + deflater.flush()


def pickle_of(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def pickle_text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def pickle_int(value: int) -> bytes:
    if 0 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def pickle_tuple(items: Sequence[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"


def pickle_call(function: str, *args: bytes) -> bytes:
    """A call of `module name` with these arguments."""
    module, name = function.split()
    return b"c" + f"{module}\n{name}\n".encode() + pickle_tuple(args) + b"R"


def pickle_dict(items: Mapping[str, bytes]) -> bytes:
    body = b"".join(pickle_text(key) + value for key, value in items.items())
    return b"ccollections\nOrderedDict\n)R(" + body + b"u"


def pickle_tensor(view: View, storage: Parts, *, legacy: bool = False) -> bytes:
    kind, numel = _TORCH_STORAGES.get(view.dtype), len(storage.data)
    if kind is not None:
        type_of, rebuild, tail = f"torch\n{kind}\n", "_rebuild_tensor_v2", []
        numel //= max(1, len(storage.data) // max(1, math.prod(storage.shape)))
    else:
        type_of, rebuild = "torch.storage\nUntypedStorage\n", "_rebuild_tensor_v3"
        tail = [f"ctorch\n{_TORCH_DTYPES[view.dtype]}\n".encode()]
    identity = [pickle_text("storage"), b"c" + type_of.encode(), pickle_text(view.key), pickle_text("cpu")]
    return pickle_call(
        f"torch._utils {rebuild}",
        pickle_tuple([*identity, pickle_int(numel), *([b"N"] if legacy else [])]) + b"Q",
        pickle_int(view.offset),
        pickle_tuple(list(map(pickle_int, view.shape))),
        pickle_tuple(list(map(pickle_int, view.strides))),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
        *tail,
    )
