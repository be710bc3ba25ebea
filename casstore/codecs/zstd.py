"""zstd frames: compression contexts, one set per thread, and strict decompression.

Source: RFC 8878; the parameters of `Method` are measured, see README.md beside this file.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import TYPE_CHECKING, Any

import zstandard

from casstore.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

__all__ = ["Method", "compress", "decompress"]

_MAGIC = b"\x28\xb5\x2f\xfd"
# RFC 8878 recommends that decoders support this much; a frame may name more only when its content is larger.
_MAX_WINDOW = 8 << 20


class Method(Enum):
    """Compression parameters for one kind of bytes; all of them make ordinary zstd frames."""

    HUFFMAN = "huffman"  # exponents and quantised weights: skewed bytes without repeats
    QUICK = "quick"  # probes
    MATCH = "match"  # repeats, speed wanted
    DENSE = "dense"  # text


_LEVELS = {Method.QUICK: 1, Method.MATCH: 3, Method.DENSE: 5}


def _compressor(method: Method) -> zstandard.ZstdCompressor:
    if method is not Method.HUFFMAN:
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
        self.compressors: dict[Method, Callable[[Any], bytes]] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def compress(data: Buffer, method: Method) -> bytes:
    """Return one zstd frame that states its content size; deterministic for one release of libzstd."""
    compressors = _contexts.compressors
    if method not in compressors:
        compressors[method] = _compressor(method).compress
    return compressors[method](data)


def decompress(frame: memoryview, size: int) -> bytes:
    """Return the content of `frame`, which must be exactly one zstd frame of `size` plain bytes.

    Raises FormatError for anything else, before memory is allocated: another or no stated size, a dictionary,
    a window over 8 MiB that the size does not ask for, bytes after the frame, a skippable frame, no content.
    """
    if size == 0:
        # The library returns at once for a stated size of zero and never looks at the bytes that follow.
        raise FormatError("A zstd frame stands for no bytes at all; nothing is stored raw.")
    if frame[:4] != _MAGIC:
        raise FormatError(
            "A zstd frame does not start with zstd's magic number. The stored bytes are damaged."
        )
    try:
        head = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:  # invariant 4: a frame that cannot be read is never handed on
        raise FormatError(f"A zstd frame's header cannot be read: {error}.") from error
    if head.content_size != size:
        raise FormatError(f"A zstd frame does not state the {size} plain bytes that it must hold.")
    if head.dict_id:
        raise FormatError("A zstd frame names a dictionary; casstore uses none.")
    if head.window_size > max(_MAX_WINDOW, size):
        raise FormatError(f"A zstd frame asks for a window of {head.window_size} bytes; 8 MiB is allowed.")
    try:
        plain = _contexts.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:  # invariant 4
        raise FormatError(f"A zstd frame cannot be decoded: {error}.") from error
    if len(plain) != size:
        raise FormatError(f"A zstd frame decodes to {len(plain)} bytes instead of {size}.")
    return plain
