"""How a checkout divides the chunks of its files among workers, and how many files it keeps open."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casstore.concurrency.buffers import BLOCK
from casstore.concurrency.workers import worker_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casstore.digest import Hasher
    from casstore.format.layout import Layout
    from casstore.format.manifest import TreeEntry

_MAX_PIECES = 16
"""Files that one batch touches at most, so that few are open at once."""

_MAX_OPEN = 48
"""Files that all batches together keep open: two descriptors each, so that macOS's limit of 256 is never reached."""

_OTHER_DESCRIPTORS = 16
"""What a process has open beside the files of a checkout and the packs that its workers read."""


@dataclass(slots=True, eq=False)
class OpenFile:
    """A file that is being written, under a temporary name in its final directory."""

    entry: TreeEntry
    directory: int
    name: str
    temporary: str
    descriptor: int
    hasher: Hasher


@dataclass(slots=True)
class Piece:
    """`length` bytes of one file, from `offset` on, that a batch decodes: they end the file if `last`."""

    entry: TreeEntry
    layout: Layout
    offset: int
    length: int
    last: bool
    file: OpenFile | None = None


@dataclass(slots=True)
class Batch:
    """Consecutive chunks, starting at position `first` of all chunks, and the files they belong to."""

    first: int
    lengths: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    size: int = 0
    buffer: memoryview = field(default_factory=lambda: memoryview(b""))


def open_at_once() -> tuple[int, int]:
    """Return how many files may stay open, and how many a batch may add: fewer where few descriptors are allowed."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return _MAX_OPEN, _MAX_PIECES
    files = (allowed - _OTHER_DESCRIPTORS - worker_count()) // 2
    pieces = max(1, min(_MAX_PIECES, files // 4))
    return max(1, min(_MAX_OPEN, files - pieces)), pieces


def plan_batches(
    files: Sequence[TreeEntry], layouts: Sequence[Layout], most_pieces: int = _MAX_PIECES
) -> Iterator[Batch]:
    """Group all chunks, in order, into batches of at most BLOCK bytes; up to `most_pieces` small files share one."""
    batch = Batch(0)
    position = 0
    for entry, layout in zip(files, layouts, strict=True):
        lengths = layout.lengths.tolist()
        at = done = 0
        while True:
            begin, size = at, 0
            while at < len(lengths) and batch.size + size + lengths[at] <= BLOCK:
                size += lengths[at]
                at += 1
            last = at == len(lengths)
            batch.lengths += lengths[begin:at]
            batch.size += size
            position += at - begin
            if size or last:
                batch.pieces.append(Piece(entry, layout, done, size, last))
                done += size
            if not last or len(batch.pieces) >= most_pieces:
                yield batch
                batch = Batch(position)
            if last:
                break
    if batch.pieces:
        yield batch
