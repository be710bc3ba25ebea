"""Writing packs: encode and verify frames on worker threads, stream them out, name the file by its hash."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore import codecs
from casstore.digest import Hasher, digest
from casstore.errors import DigestMismatch
from casstore.format import frame, pack
from casstore.format.frame import FrameHeader
from casstore.store.buffers import scratch
from casstore.store.keys import pack_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from typing_extensions import Self

    from casstore.backend.base import Backend, BlobWriter
    from casstore.codecs import ElementHint
    from casstore.format.pack import Footer
    from casstore.format.rows import Kind

PACK_TARGET = 64 << 20
"""Bytes at which a pack is closed and the next one begun: its fsync then runs beside further encoding."""


@dataclass(frozen=True, slots=True)
class EncodedFrames:
    """Frames ready to append: `parts` are their bytes, header and payload in turn, in the order of `headers`.

    The payloads borrow the encoder's memory, which lives as long as they do.
    """

    headers: list[FrameHeader]
    parts: list[bytes | memoryview]

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return sum(header.size + header.stored for header in self.headers)


@dataclass(frozen=True, slots=True)
class WrittenPack:
    """A pack that is durable under its final name."""

    pack_id: bytes
    footer: Footer
    size: int


def encode_frames(
    kind: Kind,
    ids: Sequence[bytes],
    block: memoryview,
    cuts: Sequence[tuple[int, int]],
    hints: Sequence[ElementHint | None],
) -> EncodedFrames:
    """Encode the objects `block[offset:offset + length]` and prove that each decodes to itself.

    Runs on a worker thread; `block` is only read. Raises DigestMismatch if an encoder is wrong.
    """
    headers: list[FrameHeader] = []
    parts: list[bytes | memoryview] = []
    encoded = codecs.encode_batch(block, cuts, hints)
    decoded = scratch(max((length for _, length in cuts), default=0))
    for object_id, (offset, length), item in zip(ids, cuts, encoded, strict=True):
        plain, payload = block[offset : offset + length], item.payload
        _verify(object_id, item.encoding, payload, plain, decoded[:length])
        header = FrameHeader(object_id, kind, item.encoding, length, len(payload))
        headers.append(header)
        parts += (frame.encode_header(header), payload)
    return EncodedFrames(headers, parts)


def encode_object(kind: Kind, plain: bytes) -> EncodedFrames:
    """Encode one small object, a layout, tree or manifest."""
    return encode_frames(kind, [digest(plain)], memoryview(plain), [(0, len(plain))], [None])


def _verify(
    object_id: bytes, encoding: int, payload: bytes | memoryview, plain: memoryview, decoded: memoryview
) -> None:
    """Decode a payload before it is published (invariant 9); equal bytes have the hash that names them."""
    codecs.decode_into(encoding, payload, decoded)
    if not _equal(decoded, plain):
        raise DigestMismatch(object_id.hex(), digest(decoded).hex(), "a new frame", "Nothing was stored.")


def _equal(one: memoryview, other: memoryview) -> bool:
    words = len(one) & ~7
    return np.array_equal(
        np.frombuffer(one[:words], np.uint64), np.frombuffer(other[:words], np.uint64)
    ) and bytes(one[words:]) == bytes(other[words:])


class PackWriter:
    """Appends frames to packs and commits each one in the background when it is full.

    Use as a context manager: packs that were not finished are discarded. For one thread.
    """

    def __init__(self, backend: Backend, *, target: int = PACK_TARGET) -> None:
        self._backend = backend
        self._target = target
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="casstore-commit")
        self._commits: list[Future[WrittenPack]] = []
        self._writer: BlobWriter | None = None
        self._hasher = Hasher()
        self._size = 0
        self._headers: list[FrameHeader] = []
        self._offsets: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.discard()  # Invariant 2: what has no final name was never there.
        finally:
            self._committer.shutdown(wait=True)

    def append(self, frames: EncodedFrames) -> None:
        """Append verified frames; the pack is closed behind them if it is full."""
        if not frames.headers:
            return
        if self._writer is None:
            self._writer = self._backend.open_writer()
            self._hasher = Hasher()
            self._size = 0
            self._headers, self._offsets = [], []
            self._emit([pack.encode_header(os.urandom(pack.NONCE_SIZE))])
        at = self._size
        for header in frames.headers:
            self._headers.append(header)
            self._offsets.append(at)
            at += header.size + header.stored
        self._emit(frames.parts)
        if self._size >= self._target:
            self._close_pack()

    def finish(self) -> list[WrittenPack]:
        """Close the last pack, wait until all are durable, and return those since the last call."""
        self._close_pack()
        commits, self._commits = self._commits, []
        return [commit.result() for commit in commits]

    def _close_pack(self) -> None:
        writer = self._writer
        if writer is None:
            return
        footer = pack.footer_rows(self._headers, self._offsets)
        self._emit([pack.encode_footer(footer, begin=self._size)])
        pack_id = self._hasher.digest()
        self._writer = None
        self._commits.append(self._committer.submit(_commit, writer, pack_id, footer, self._size))

    def _emit(self, parts: Sequence[bytes | memoryview]) -> None:
        assert self._writer is not None
        self._writer.write(parts)
        for part in parts:
            self._hasher.update(part)
            self._size += len(part)


def _commit(writer: BlobWriter, pack_id: bytes, footer: Footer, size: int) -> WrittenPack:
    with writer:  # discards the temporary file if the commit fails (invariant 2)
        writer.commit(pack_key(pack_id))
    return WrittenPack(pack_id, footer, size)
