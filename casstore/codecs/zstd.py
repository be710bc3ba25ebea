"""zstd frames: compression contexts, one set per thread, and strict decompression.

Source: RFC 8878; the parameters of `Method` are measured, see README.md beside this file.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from casstore.codecs.kernels import literal_frames
from casstore.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    U8 = NDArray[np.uint8]

__all__ = ["Method", "compress", "compress_all", "decompress_all"]

_MAGIC = b"\x28\xb5\x2f\xfd"
# Missing in zstandard's cffi backend.
_BATCHES = {"multi_compress_to_buffer", "multi_decompress_to_buffer"} <= zstandard.backend_features
# RFC 8878 recommends that decoders support this much; a frame may name more only when its content is larger.
_MAX_WINDOW = 8 << 20


class Method(Enum):
    """Compression parameters for one kind of bytes; all of them make ordinary zstd frames."""

    LITERALS = "literals"  # skewed bytes without repeats, such as exponents: a Huffman code and nothing else
    HUFFMAN = "huffman"  # skewed bytes with some repeats
    QUICK = "quick"  # probes
    MATCH = "match"  # repeats, speed wanted
    DENSE = "dense"  # text


_LEVELS = {Method.QUICK: 1, Method.MATCH: 3, Method.DENSE: 5}


def _compressor(method: Method) -> zstandard.ZstdCompressor:
    if method in _LEVELS:
        return zstandard.ZstdCompressor(level=_LEVELS[method], write_content_size=True)
    # The smallest table and the longest minimal match: the search finds next to nothing, quickly, and leaves
    # long stretches of literals to the Huffman coder. Chance matches of 4 bytes cost more bits than they save
    # (exponents of float32: 0.33 so, 0.40 with level 3).
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            window_log=20,
            hash_log=6,
            chain_log=6,
            search_log=1,
            min_match=7,
            target_length=0,
            write_content_size=True,
        )
    )


class _Contexts(threading.local):
    """A thread's contexts: zstd contexts must not be shared by threads, and cost 100s of KiB to make.

    Thread-local also means fork-safe: a fork copies the contexts of the one thread that lives on in the
    child, and that thread was not compressing while it forked.
    """

    def __init__(self) -> None:
        self.compressors: dict[Method, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def compress(data: Buffer, method: Method) -> bytes:
    """Return one zstd frame that states its content size; deterministic for one release of libzstd."""
    return _thread_compressor(method).compress(memoryview(data))


def compress_all(parts: Sequence[U8], method: Method) -> list[U8]:
    """Return one frame per part, none of them empty, in one native call.

    In place of a frame of literals that would not be smaller comes the part itself.
    """
    if method is Method.LITERALS:
        return literal_frames(parts)
    if len(parts) == 1 or not _BATCHES:
        return [np.frombuffer(compress(part, method), np.uint8) for part in parts]
    joined: Any = _thread_compressor(method).multi_compress_to_buffer(list[Any](parts), threads=0)
    return [np.frombuffer(joined[at], np.uint8) for at in range(len(joined))]


def _thread_compressor(method: Method) -> zstandard.ZstdCompressor:
    compressors = _contexts.compressors
    if method not in compressors:
        compressors[method] = _compressor(method)
    return compressors[method]


def decompress_all(frames: Sequence[tuple[memoryview, int]]) -> list[U8]:
    """Return the content of each of (frame, size), exactly one zstd frame of `size` plain bytes, in one native call.

    Raises FormatError for anything else, before memory is allocated: another or no stated size, a dictionary,
    a window over 8 MiB that the size does not ask for, bytes after the frame, a skippable frame, no content.
    """
    for frame, size in frames:
        _check(frame, size)
    decompressor = _contexts.decompressor
    try:
        if len(frames) <= 1 or not _BATCHES:
            plains = [np.frombuffer(decompressor.decompress(frame), np.uint8) for frame, _ in frames]
        else:
            room = np.array([size for _, size in frames], np.uint64).tobytes()
            joined: Any = decompressor.multi_decompress_to_buffer(
                [frame for frame, _ in frames], decompressed_sizes=room, threads=0
            )
            plains = [np.frombuffer(segment, np.uint8) for segment in joined]
    except zstandard.ZstdError as error:  # invariant 4: an undecodable frame is never passed on
        raise FormatError(f"A zstd frame cannot be decoded: {error}.") from error
    for plain, (_, size) in zip(plains, frames, strict=True):
        if len(plain) != size:
            raise FormatError(f"A zstd frame decodes to {len(plain)} bytes instead of {size}.")
    return plains


def _check(frame: memoryview, size: int) -> None:
    """Raise FormatError unless the frame's structure is sound and states the right size."""
    if size == 0:
        # The library returns at once for a stated size of zero and never looks at the bytes that follow.
        raise FormatError("A zstd frame is empty; an empty payload is stored raw.")
    if frame[:4] != _MAGIC:
        raise FormatError(
            "A zstd frame does not start with zstd's magic number. The stored bytes are damaged."
        )
    try:
        head = zstandard.get_frame_parameters(frame)
        position = zstandard.frame_header_size(frame)
    except zstandard.ZstdError as error:  # invariant 4
        raise FormatError(f"A zstd frame's header cannot be read: {error}.") from error
    if head.content_size != size:
        raise FormatError(f"A zstd frame does not state the {size} plain bytes that it must hold.")
    if head.dict_id:
        raise FormatError("A zstd frame names a dictionary; casstore uses none.")
    if head.window_size > max(_MAX_WINDOW, size):
        raise FormatError(f"A zstd frame asks for a window of {head.window_size} bytes; 8 MiB is allowed.")
    if _end(frame, position, checksum=head.has_checksum) != len(frame):
        raise FormatError("A zstd frame does not end where its payload ends.")


def _end(frame: memoryview, position: int, *, checksum: bool) -> int:
    """Follow the block headers (RFC 8878, section 3.1.1.2) to the frame's end.

    The library's batch call would ignore whatever comes after it.
    """
    last = False
    while not last:
        header = int.from_bytes(frame[position : position + 3], "little")
        last = bool(header & 1) or position + 3 > len(frame)
        repeated = header >> 1 & 3 == 1
        position += 3 + (1 if repeated else header >> 3)
    return position + 4 * checksum
