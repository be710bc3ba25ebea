"""Recognises files that the store holds already, wherever they lie now, by reading them once.

A file is looked up by its size and a few samples. That is a hint: the file counts as known only when all of it has the
hash of the known one. Then nobody parses it, cuts it or hashes its chunks.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
from typing import TYPE_CHECKING

from casstore.chunking import LAYOUT_VERSION
from casstore.concurrency.buffers import give_block, take_block
from casstore.concurrency.workers import TaskGroup
from casstore.digest import Hasher, digest
from casstore.machine.unchanged import flush
from casstore.store.adding.sources import check_unchanged, is_onnx, open_source, read_full, read_range

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from casstore.store.adding.sources import SourceFile

MIN_SIZE = 16 << 20
"""Bytes from which a file is sampled: for a smaller one, the samples cost too much where each read is a round trip."""

_PART = 2 << 20
"""Bytes that are hashed while a worker reads the next ones: they are still in the cache that the cores share. 4.6 GB/s from the page
cache where one thread that did both had 3.3, for the same processor time (two cores)."""

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
        hasher = Hasher()
        position = 0
        # Closed before the buffer is given back: a read that is under way would write to it.
        with contextlib.closing(_parts(file, descriptor, buffer)) as parts:
            for part in parts:
                hasher.update(part)
                position += len(part)
                progress(len(part))
        check_unchanged(file, os.fstat(descriptor))
    finally:
        give_block(buffer)
        os.close(descriptor)
    if hasher.digest() == file_id:
        return Content.SAME_FOR_GOOD if flushed else Content.SAME
    progress(-position)
    return Content.OTHER


def _parts(file: SourceFile, descriptor: int, buffer: memoryview) -> Generator[memoryview, None, None]:
    """Yield a file part by part, one more than its size says if it has that many; a part is in `buffer` until the next one but one."""
    halves = buffer[:_PART], buffer[_PART : 2 * _PART]
    position = 0
    with TaskGroup() as tasks:
        reading = tasks.submit(read_full, descriptor, halves[0], 0, file.shown)
        for number in itertools.count(1):
            half, count = halves[(number - 1) % 2], reading.result()
            position += count
            is_last = count < _PART or position > file.identity.size
            if not is_last:
                reading = tasks.submit(read_full, descriptor, halves[number % 2], position, file.shown)
            yield half[:count]
            if is_last:
                break


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
