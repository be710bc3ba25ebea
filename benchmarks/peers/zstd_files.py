"""Every file compressed whole with zstd: what people do with archives."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from benchmarks.peers.base import import_peer
from benchmarks.peers.whole_files import WholeFiles

_BLOCK = 1 << 20
_LEVEL = 3


class ZstdCodec:
    """What `zstd -T0 -3` does with a file: level 3, all cores, with a checksum, streaming."""

    def __init__(self) -> None:
        self.zstandard: Any = import_peer("zstandard", install="pip install .")
        self._compressor = self.zstandard.ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True)

    def encode(self, source: BinaryIO, size: int, target: BinaryIO) -> None:
        """One frame; several cores for large files."""
        self._compressor.copy_stream(source, target, size=size, read_size=_BLOCK, write_size=_BLOCK)

    def decode(self, source: BinaryIO, target: BinaryIO) -> None:
        """On one core: a frame is no list of independent blocks. The checksum is verified."""
        self.zstandard.ZstdDecompressor().copy_stream(source, target, read_size=_BLOCK, write_size=_BLOCK)


class ZstdFiles(WholeFiles):
    """`zstd -T0 -3` per new file when adding, `zstd -d` on as many files as there are cores when restoring."""

    name = "zstd-files"
    setting = (
        "zstd -T0 -3 of whole files, one copy of equal files (by BLAKE3), all fsynced; no dedup inside files"
    )
    restored_at_once = os.cpu_count() or 1

    def __init__(self) -> None:
        codec = ZstdCodec()
        super().__init__(codec)
        self._zstandard = codec.zstandard

    def version(self) -> str:
        """Those of the binding and of zstd itself."""
        number = ".".join(map(str, self._zstandard.ZSTD_VERSION))
        return f"zstandard {self._zstandard.__version__}, zstd {number}"
