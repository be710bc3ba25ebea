"""Recognises files that the store holds already, wherever they lie now, by reading them once.

A file is looked up by its size and a few samples. That is a hint: the file counts as known only when all of it has the
hash of the known one. Then nobody parses it, cuts it or hashes its chunks.
"""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING

from casstore.chunking import LAYOUT_VERSION
from casstore.concurrency.buffers import give_block, take_block
from casstore.digest import Hasher, digest
from casstore.machine.unchanged import flush
from casstore.store.adding.sources import check_unchanged, is_onnx, open_source, read_full, read_range

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casstore.store.adding.sources import SourceFile

MIN_SIZE = 16 << 20
"""Bytes from which a file is sampled: for a smaller one, the samples cost too much where each read is a round trip."""

_PART = 2 << 20
"""Bytes that are read, then hashed: they are still in the cache of the cores, and enough to share among them. The system reads
ahead meanwhile. A thread that read while another one hashed took a quarter more processor time."""

_SAMPLES = 16
_SAMPLE_BYTES = 4 << 10


class Content(enum.Enum):
    """What reading a file said of its content; `SAME_FOR_GOOD` where no later change can go unseen (invariant 14)."""

    OTHER = enum.auto()
    SAME = enum.auto()
    SAME_FOR_GOOD = enum.auto()


def sample_keys(files: Sequence[SourceFile], *, beside_graphs: bool) -> dict[str, bytes]:
    """Return a key of 32 bytes for each file that can be recognised, by its path in the tree.

    Files of equal content have equal keys; different ones nearly always have different keys. A file that is added with
    ONNX graphs is left out unless it is one: how it is cut depends on what they say of it.
    """
    return {
        file.path: digest(b"%d|%b" % (LAYOUT_VERSION, _samples(file)))
        for file in files
        if file.identity.size >= MIN_SIZE and (is_onnx(file) or not beside_graphs)
    }


def compare_content(
    file: SourceFile,
    file_id: bytes,
    *,
    stable: bool,
    progress: Callable[[int], None],
) -> Content:
    """Read a file, and say whether its id is `file_id`.

    Whether no change can go unseen from now on is only found out where `stable`, the file's stat identity, proves
    something. `progress` is called with the number of bytes read; with a negative one for all of them where the content is
    another one.
    """
    descriptor = open_source(file)
    buffer = take_block()
    try:
        flushed = stable and flush(descriptor)
        check_unchanged(file, os.fstat(descriptor))
        hasher = Hasher(max_threads=Hasher.AUTO)
        position = 0
        while position <= file.identity.size:
            count = read_full(descriptor, buffer[:_PART], position, file.shown)
            if count == 0:
                break
            hasher.update(buffer[:count])
            position += count
            progress(count)
        check_unchanged(file, os.fstat(descriptor))
    finally:
        give_block(buffer)
        os.close(descriptor)
    if hasher.digest() == file_id:
        return Content.SAME_FOR_GOOD if flushed else Content.SAME
    progress(-position)
    return Content.OTHER


def _samples(file: SourceFile) -> bytes:
    """Return a hash of the size and of a few parts of a file, spread evenly."""
    size = file.identity.size
    hasher = Hasher(b"%d" % size)
    descriptor = open_source(file)
    try:
        for number in range(_SAMPLES):
            offset = number * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1)
            hasher.update(read_range(descriptor, offset, _SAMPLE_BYTES, file.location))
    finally:
        os.close(descriptor)
    return hasher.digest()
