"""ZipNN, the lossless compressor of weights: bytes of numbers regrouped, then Huffman coded."""

from __future__ import annotations

import importlib.metadata
import io
import json
import struct
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

from benchmarks.peers.base import PeerFailed, import_peer
from benchmarks.peers.whole_files import WholeFiles
from benchmarks.peers.zstd_files import ZstdCodec

if TYPE_CHECKING:
    from collections.abc import Iterator

_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_TRIED = ("float32", "bfloat16", "float16")
_UNIT = 4
"""Bytes of the widest number; ZipNN corrupts its memory when given a fraction of one."""
_BLOCK = 16 << 20
"""Faster for ZipNN than larger blocks, and hardly larger in sum."""
_SAMPLE = 1 << 20
_FRAME = struct.Struct("<?QQ")
_MAX_HEADER = 100 << 20


class ZipnnCodec:
    """Runs of tensors of one float type with ZipNN told the type, everything else with zstd -3.

    That is how ZipNN wants to be used with safetensors: tensor by tensor. Files of other formats, whose types
    are not known without reading them, go to ZipNN whole with the type that a mebibyte of them compresses
    best with, as a user would name it; if zstd does better on that, zstd it is.
    """

    def __init__(self, zipnn: Any) -> None:
        self._coders = {dtype: zipnn.ZipNN(bytearray_dtype=dtype) for dtype in _DTYPES.values()}
        self._decoder = zipnn.ZipNN()
        self._zstd = ZstdCodec()

    def encode(self, source: BinaryIO, size: int, target: BinaryIO) -> None:
        """Frames of a head (ZipNN or not, plain and encoded length) and encoded bytes."""
        for dtype, length in self._runs(source, size):
            for start in range(0, length, _BLOCK):
                # ZipNN changes the bytes that it is given: they are in a buffer of their own.
                block = bytearray(min(_BLOCK, length - start))
                _fill(source, block)
                plain = len(block)
                encoded = self._zstd_of(block) if dtype is None else self._coders[dtype].compress(block)
                target.write(_FRAME.pack(dtype is not None, plain, len(encoded)))
                target.write(encoded)

    def decode(self, source: BinaryIO, target: BinaryIO) -> None:
        """Frame by frame. ZipNN has no checksum; the length is all that can be verified."""
        while head := source.read(_FRAME.size):
            by_zipnn, plain, encoded = _FRAME.unpack(head)
            data = source.read(encoded)
            if by_zipnn:
                decoded = self._decoder.decompress(data)
            else:
                buffer = io.BytesIO()
                self._zstd.decode(io.BytesIO(data), buffer)
                decoded = buffer.getbuffer()
            if len(decoded) != plain:
                raise PeerFailed(f"A block of {plain} bytes came back as {len(decoded)}.")
            target.write(decoded)

    def _runs(self, source: BinaryIO, size: int) -> Iterator[tuple[str | None, int]]:
        """Cut a file into runs of bytes of one type, None for what is not for ZipNN. Reading goes on after it."""
        runs = safetensors_runs(source, size)
        source.seek(0)
        if runs is None:
            dtype = self._best_type(source, size) if size >= _SAMPLE else None
            source.seek(0)
            whole = size - size % _UNIT
            runs = [(dtype, whole), (None, size - whole)] if dtype else [(None, size)]
        yield from runs

    def _best_type(self, source: BinaryIO, size: int) -> str | None:
        source.seek((size - _SAMPLE) // 2 // _UNIT * _UNIT)
        sample = bytearray(_SAMPLE)
        _fill(source, sample)
        sizes: dict[str | None, int] = {None: len(self._zstd_of(sample))}
        for dtype in _TRIED:
            sizes[dtype] = len(self._coders[dtype].compress(bytearray(sample)))
        return min(sizes, key=lambda dtype: sizes[dtype])

    def _zstd_of(self, block: bytearray) -> bytes:
        target = io.BytesIO()
        self._zstd.encode(io.BytesIO(block), len(block), target)
        return target.getvalue()


class Zipnn(WholeFiles):
    """ZipNN on all cores, one copy of equal files."""

    name = "zipnn"
    setting = (
        "tensors told their type, on all cores; what is no float tensor zstd -3; one copy of equal files "
        "(by BLAKE3), all fsynced; no dedup inside files, nothing verified when restoring"
    )

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It uses what torch has deprecated.
            zipnn = import_peer("zipnn", install="pip install '.[bench]'")
        super().__init__(ZipnnCodec(zipnn))

    def version(self) -> str:
        """The version of the package."""
        return importlib.metadata.version("zipnn")


def safetensors_runs(source: BinaryIO, size: int) -> list[tuple[str | None, int]] | None:
    """Return the types and lengths of a safetensors file's stretches, header first; None if it is none."""
    try:
        (length,) = struct.unpack("<Q", source.read(8))
        if length > min(size - 8, _MAX_HEADER):
            return None
        header = json.loads(source.read(length))
        tensors = sorted(
            (*item["data_offsets"], item["dtype"]) for name, item in header.items() if name != "__metadata__"
        )
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return None
    runs: list[tuple[str | None, int]] = [(None, 8 + length)]
    position = 0
    for begin, end, name in tensors:
        if begin != position:
            return None
        dtype = _DTYPES.get(name)
        if dtype == runs[-1][0]:
            runs[-1] = (dtype, runs[-1][1] + end - begin)
        else:
            runs.append((dtype, end - begin))
        position = end
    return runs if 8 + length + position == size else None


def _fill(source: BinaryIO, block: bytearray) -> None:
    view = memoryview(block)
    done = 0
    while done < len(block):
        count = source.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise PeerFailed("A file became shorter while it was read.")
        done += count
