"""Reading files into blocks of chunks: a large file fills many blocks, small files share one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casstore.chunking import MAX_CHUNK, Chunker, plan_regions
from casstore.concurrency.buffers import BLOCK, take_block
from casstore.digest import Hasher
from casstore.machine.unchanged import flush
from casstore.store.adding.bases.planning.file_relations import Window
from casstore.store.adding.sources import check_unchanged, open_source, read_full
from casstore.store.adding.tensor_spans import ElementHints, find_file_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from casstore.codecs import ElementHint
    from casstore.store.adding.bases.deltas import Deltas
    from casstore.store.adding.bases.planning.file_relations import FileRelations
    from casstore.store.adding.sources import SourceFile
    from casstore.tensors import TensorSpan


_FIRST_BLOCK = 256 << 10
"""Bytes of the first block of a large file, beyond the largest chunk; each block may have twice those of the one before."""

_LEAST_BLOCK = 1 << 20
"""Bytes of small files that are worth a block of their own, where few bytes are left for the workers."""


@dataclass(slots=True)
class Reading:
    """A file on its way through the pipeline; `relations` say what predicts its tensors."""

    source: SourceFile
    stat_key: bytes | None
    spans: tuple[TensorSpan, ...]
    relations: FileRelations | None = None
    size: int = 0
    hasher: Hasher = field(default_factory=Hasher)
    ids: list[bytes] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    hints: ElementHints = field(init=False)

    def __post_init__(self) -> None:
        self.hints = ElementHints(self.spans)


@dataclass(slots=True)
class Block:
    """A buffer full of chunks; `parts` says how many belong to which file, and `last` whether that file ends here.

    `offsets` are those of the chunks in their files. `waits` says that earlier blocks may have what predicts this one.
    """

    buffer: memoryview
    cuts: list[tuple[int, int]] = field(default_factory=list)
    hints: list[ElementHint | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    parts: list[tuple[Reading, int, bool]] = field(default_factory=list)
    used: int = 0
    waits: bool = False

    def windows(self) -> Iterator[tuple[FileRelations | None, Window]]:
        """Yield for each chunk the relations of its file, and the part of the file that is in the block."""
        first = 0
        for reading, count, _ in self.parts:
            if count:
                begin, end = self.cuts[first][0], sum(self.cuts[first + count - 1])
                window = Window(self.offsets[first], self.buffer[begin:end])
                yield from [(reading.relations, window)] * count
            first += count

    def divided(self, number: int, *, least: int) -> list[range]:
        """Divide the chunks into up to `number` ranges of about as many bytes, `least` in each."""
        share = max(self.used // max(number, 1), least)
        parts: list[range] = []
        first = size = 0
        for at, (_, length) in enumerate(self.cuts, 1):
            size += length
            if size >= share or at == len(self.cuts):
                parts.append(range(first, at))
                first, size = at, 0
        return parts

    def append(self, reading: Reading, lengths: list[int], offset: int, *, final: bool) -> int:
        """Add chunks that start at `used`, byte `offset` of the file; return where they end in the buffer."""
        at = self.used
        for length in lengths:
            self.cuts.append((at, length))
            self.hints.append(reading.hints.of(offset, offset + length))
            self.offsets.append(offset)
            at += length
            offset += length
        self.parts.append((reading, len(lengths), final))
        self.used = at
        return at


class BlockReader:
    """Reads files, hashes them whole, and cuts them. For one thread.

    `window` blocks are worked on at once; `progress` is called with the number of bytes read; `deltas` finds what predicts
    tensors. `left` is how many bytes are not read yet, by the sizes that stat gave.
    """

    def __init__(self, *, window: int, progress: Callable[[int], None], deltas: Deltas | None) -> None:
        self._window = window
        self._progress = progress
        self._deltas = deltas
        self._most = _FIRST_BLOCK
        self.left = 0

    def read(
        self,
        files: Sequence[tuple[SourceFile, bytes | None]],
        external: Mapping[str, tuple[TensorSpan, ...] | None],
    ) -> Iterator[Block]:
        """Yield the blocks of files, which have keys in the stat cache; whoever takes a block gives its buffer back.

        `external` are tensors that other files tell of (`find_external_spans`).
        """
        block = Block(take_block())
        self.left = sum(file.identity.size for file, _ in files)
        for file, stat_key in files:
            descriptor = open_source(file)
            try:
                key = stat_key if stat_key is not None and flush(descriptor) else None
                check_unchanged(file, os.fstat(descriptor))
                spans = find_file_spans(file, descriptor, external.get(file.path, ()))
                if self._deltas is not None and self._deltas.begin_file(file, spans):
                    if block.parts:
                        yield block
                        block = self._next()
                    block.waits = True
                reading = self._begin(file, key, spans)
                chunker = Chunker(plan_regions([(s.begin, s.end) for s in reading.spans], file.identity.size))
                position = 0
                carried = 0
                while True:
                    begin = block.used
                    end = MAX_CHUNK + min(BLOCK, max(self._wanted(), begin + carried))
                    room = block.buffer[begin + carried : end]
                    count = read_full(descriptor, room, position, file.shown)
                    self.left -= count
                    position += count
                    reading.hasher.update(room[:count])
                    self._progress(count)
                    # A file ends where reading it ends: the size that stat gives may be wrong.
                    final = count < len(room)
                    if not final and position > file.identity.size:
                        check_unchanged(file, os.fstat(descriptor))
                    data = block.buffer[begin : begin + carried + count]
                    offset = position - len(data)
                    lengths = chunker.cut(data, offset=offset, final=final).tolist()
                    cut_to = block.append(reading, lengths, offset, final=final)
                    carried = len(data) - (cut_to - begin)
                    if final:
                        break
                    full, block = block, self._next()
                    block.buffer[:carried] = full.buffer[cut_to : cut_to + carried]
                    yield full
                check_unchanged(file, os.fstat(descriptor))
                reading.size = position
            finally:
                os.close(descriptor)
            if block.used >= min(BLOCK // 2, max(_LEAST_BLOCK, self.left // (2 * self._window))):
                yield block
                block = self._next()
        yield block

    def _wanted(self) -> int:
        """Return the bytes that a block should have, beyond the largest chunk: few where workers wait for it, the first or the last."""
        return min(self.left // (2 * self._window), self._most)

    def _next(self) -> Block:
        self._most = min(2 * self._most, BLOCK)
        return Block(take_block())

    def _begin(self, file: SourceFile, key: bytes | None, spans: tuple[TensorSpan, ...]) -> Reading:
        relations = self._deltas.open_file(file, spans) if self._deltas is not None and spans else None
        return Reading(file, key, spans, relations)
