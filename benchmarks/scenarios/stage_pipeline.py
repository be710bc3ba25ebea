"""The stages of adding and restoring, each timed on its own, on one thread, with casstore's own functions.

A corpus goes through them one after another, a block at a time, so that a block is in the processor's cache as it is when
casstore works. Look-up, index and refs are left out.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.harness import BenchmarkError
from casstore import codecs
from casstore.backend.base import WRITE_PIECE
from casstore.chunking import MAX_CHUNK, Chunker, plan_regions
from casstore.codecs import batch
from casstore.concurrency.buffers import BLOCK, BLOCK_BUFFER
from casstore.digest import Hasher, digest
from casstore.format import frame
from casstore.format.frame import HEADER_SIZE, FrameHeader
from casstore.format.rows import Kind
from casstore.objects import MAX_FETCH, MAX_GAP, PACK_TARGET
from casstore.store.adding.sources import find_sources, open_source, read_full
from casstore.store.adding.tensor_spans import ElementHints, find_external_spans, find_file_spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from casstore.codecs import Encoded
    from casstore.store.adding.sources import SourceFile
    from casstore.tensors import TensorSpan

READ, CUT, CHUNK_HASH, FILE_HASH = "read from the page cache", "cut", "BLAKE3 of chunks", "BLAKE3 of files"
CHOOSE, ENCODE, CHECK = "choose the encoding", "encode", "decode and compare"
PACK_HASH, WRITE_PACK, DECODE, WRITE = "BLAKE3 of packs", "write and fsync", "decode", "write"
ADD = (READ, FILE_HASH, CUT, CHUNK_HASH, CHOOSE, ENCODE, CHECK, PACK_HASH, WRITE_PACK)
RESTORE = (READ, DECODE, FILE_HASH, WRITE)


@dataclass(slots=True)
class Stage:
    """Seconds of one stage; `plain` bytes that went through it, and bytes that it touched to that end."""

    seconds: float = 0.0
    plain: int = 0
    touched: int = 0

    def count(self, plain: int, touched: int | None = None) -> None:
        """Add bytes; those touched are the plain ones unless given."""
        self.plain += plain
        self.touched += plain if touched is None else touched


class Stages(dict[str, Stage]):
    """Stages by name."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__((name, Stage()) for name in names)

    @contextmanager
    def timed(self, name: str) -> Iterator[Stage]:
        """Time what happens inside."""
        stage = self[name]
        started = time.perf_counter()
        try:
            yield stage
        finally:
            stage.seconds += time.perf_counter() - started


class _Place(NamedTuple):
    """Where a chunk's payload is: which pack file, at which byte; and how to decode it."""

    pack: int
    offset: int
    stored: int
    encoding: int


@dataclass(slots=True)
class TakenFile:
    """A file that was taken apart: its chunks in order, and its BLAKE3."""

    ids: list[bytes]
    lengths: list[int]
    file_id: bytes


class Adding:
    """Takes models apart, and leaves the frames of their distinct chunks in files below `work`."""

    def __init__(self, work: Path) -> None:
        self.stages = Stages(ADD)
        self.files: list[TakenFile] = []
        self.places: dict[bytes, _Place] = {}
        self.work = work
        self.packs: list[Path] = []
        self._pack = -1
        self._written = 0
        self._pack_hasher = Hasher()
        self._block = touched_buffer(BLOCK_BUFFER)
        self._encoded = touched_buffer(2 * BLOCK_BUFFER)

    def take(self, model: str) -> None:
        """Add one model."""
        sources = find_sources(model)
        with self.stages.timed(CUT):
            external = find_external_spans(sources.files, sources.files)
        for file in sources.files:
            self._take_file(file, external.get(file.path, ()))

    def close_pack(self) -> None:
        """Make the open pack file durable."""
        if self._pack >= 0:
            with self.stages.timed(WRITE_PACK):
                os.fsync(self._pack)
            os.close(self._pack)
            self._pack = -1

    def _take_file(self, file: SourceFile, external: tuple[TensorSpan, ...] | None) -> None:
        size = file.identity.size
        taken = TakenFile([], [], b"")
        hasher = Hasher()
        descriptor = open_source(file)
        try:
            with self.stages.timed(CUT) as stage:
                spans = find_file_spans(file, descriptor, external)
                regions = plan_regions([(span.begin, span.end) for span in spans], size)
                chunker = Chunker(regions)
                hints = ElementHints(spans)
                stage.count(0, sum(region.end - region.begin for region in regions if not region.fixed))
            position = carried = 0
            while position < size:
                room = self._block[carried : MAX_CHUNK + BLOCK]
                with self.stages.timed(READ) as stage:
                    count = read_full(descriptor, room, position, file.location)
                    stage.count(count)
                with self.stages.timed(FILE_HASH) as stage:
                    hasher.update(room[:count])
                    stage.count(count)
                position += count
                data = self._block[: carried + count]
                begin = position - len(data)
                with self.stages.timed(CUT) as stage:
                    lengths = chunker.cut(data, offset=begin, final=position >= size).tolist()
                    stage.count(count, 0)
                cuts = list(zip(accumulate([0, *lengths[:-1]]), lengths, strict=True)) if lengths else []
                taken.ids += self._take_chunks(cuts, hints, begin)
                taken.lengths += lengths
                cut_to = sum(lengths)
                carried = len(data) - cut_to
                self._block[:carried] = bytes(data[cut_to:])
        finally:
            os.close(descriptor)
        taken.file_id = hasher.digest()
        self.files.append(taken)

    def _take_chunks(self, cuts: list[tuple[int, int]], hints: ElementHints, begin: int) -> list[bytes]:
        """Hash the chunks of the block, which starts at byte `begin` of its file; store those that are new."""
        with self.stages.timed(CHUNK_HASH) as stage:
            ids = [digest(self._block[offset : offset + length]) for offset, length in cuts]
            stage.count(sum(length for _, length in cuts))
        new = {}
        for object_id, cut in zip(ids, cuts, strict=True):
            if object_id not in self.places and object_id not in new:
                new[object_id] = cut
        if new:
            at = [hints.of(begin + offset, begin + offset + length) for offset, length in new.values()]
            self._store(list(new), list(new.values()), at)
        return ids

    def _store(
        self, ids: list[bytes], cuts: list[tuple[int, int]], hints: list[codecs.ElementHint | None]
    ) -> None:
        plain = sum(length for _, length in cuts)
        chosen = self.stages[CHOOSE].seconds
        with self._choices_timed(), self.stages.timed(ENCODE) as stage:
            encoded = list(codecs.encode_each(self._block, cuts, hints, out=self._encoded, lead=HEADER_SIZE))
            stage.count(plain)
        stage.seconds -= self.stages[CHOOSE].seconds - chosen
        self.stages[CHOOSE].count(plain)
        with self.stages.timed(CHECK) as stage:
            self._check(encoded, cuts)
            stage.count(plain)
        position = 0
        for object_id, (_, length), item in zip(ids, cuts, encoded, strict=True):
            stored = len(item.payload)
            header = FrameHeader(object_id, Kind.CHUNK, item.encoding, length, stored)
            self._encoded[position : position + HEADER_SIZE] = frame.encode_header(header)
            position += HEADER_SIZE + stored
        self._write(self._encoded[:position], plain)
        offset = self._written - position
        for object_id, item in zip(ids, encoded, strict=True):
            place = _Place(len(self.packs) - 1, offset + HEADER_SIZE, len(item.payload), int(item.encoding))
            self.places[object_id] = place
            offset += HEADER_SIZE + place.stored
        if self._written >= PACK_TARGET:
            self.close_pack()

    @contextmanager
    def _choices_timed(self) -> Iterator[None]:
        """Time the choice of encodings, which happens inside of encoding."""
        choose = batch.choose

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stages.timed(CHOOSE):
                return choose(*args, **kwargs)

        batch.choose = timed
        try:
            yield
        finally:
            batch.choose = choose

    def _check(self, encoded: Sequence[Encoded], cuts: Sequence[tuple[int, int]]) -> None:
        """Decode what was encoded, in runs of chunks that adjoin, and compare."""
        first = 0
        for end in range(1, len(cuts) + 1):
            if end < len(cuts) and sum(cuts[end - 1]) == cuts[end][0]:
                continue
            same = codecs.decodes_to(
                [(int(item.encoding), item.payload) for item in encoded[first:end]],
                [length for _, length in cuts[first:end]],
                self._block[cuts[first][0] : sum(cuts[end - 1])],
            )
            if not same:
                raise BenchmarkError("A chunk does not decode to itself: nothing is reported.")
            first = end

    def _write(self, data: memoryview, plain: int) -> None:
        with self.stages.timed(PACK_HASH) as stage:
            self._pack_hasher.update(data)
            stage.count(plain, len(data))
        if self._pack < 0:
            self.packs.append(self.work / f"pack-{len(self.packs)}")
            self._pack = os.open(self.packs[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._written = 0
            self._pack_hasher = Hasher()
        with self.stages.timed(WRITE_PACK) as stage:
            write_all(self._pack, data, self._written)
            stage.count(plain, len(data))
        self._written += len(data)


class Restoring:
    """Makes files again from what adding left, and refuses those that are not what was added."""

    def __init__(self, added: Adding) -> None:
        self.stages = Stages(RESTORE)
        self._places = added.places
        self._packs = [os.open(path, os.O_RDONLY) for path in added.packs]
        self._target = added.work / "restored"
        self._fetched = touched_buffer(2 * BLOCK_BUFFER)
        self._plain = touched_buffer(BLOCK_BUFFER)

    def take(self, file: TakenFile) -> None:
        """Restore one file."""
        hasher = Hasher()
        descriptor = os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        position = first = 0
        try:
            while first < len(file.ids):
                end, size = first, 0
                while end < len(file.ids) and size + file.lengths[end] <= BLOCK:
                    size += file.lengths[end]
                    end += 1
                self._restore(file.ids[first:end], file.lengths[first:end], self._plain[:size])
                with self.stages.timed(FILE_HASH) as stage:
                    hasher.update(self._plain[:size])
                    stage.count(size)
                with self.stages.timed(WRITE) as stage:
                    write_all(descriptor, self._plain[:size], position)
                    stage.count(size)
                position += size
                first = end
        finally:
            os.close(descriptor)
            self._target.unlink()
        if hasher.digest() != file.file_id:
            raise BenchmarkError("A restored file is not what was added: nothing is reported.")

    def close(self) -> None:
        """Close the pack files."""
        for descriptor in self._packs:
            os.close(descriptor)

    def _restore(self, ids: list[bytes], lengths: list[int], plain: memoryview) -> None:
        with self.stages.timed(READ) as stage:
            payloads, fetched = self._fetch(list(dict.fromkeys(ids)))
            stage.count(len(plain), fetched)
        with self.stages.timed(DECODE) as stage:
            pairs = [(self._places[object_id].encoding, payloads[object_id]) for object_id in ids]
            codecs.decode_batch(pairs, lengths, plain)
            stage.count(len(plain))

    def _fetch(self, ids: list[bytes]) -> tuple[dict[bytes, memoryview], int]:
        """Read payloads, neighbours at once; return them, and the bytes that were read."""
        wanted = sorted((self._places[object_id], object_id) for object_id in ids)
        payloads: dict[bytes, memoryview] = {}
        used = first = 0
        for end in range(1, len(wanted) + 1):
            begin, last = wanted[first][0], wanted[end - 1][0]
            stop = last.offset + last.stored
            if end < len(wanted):
                following = wanted[end][0]
                near = following.pack == begin.pack and following.offset - stop <= MAX_GAP + HEADER_SIZE
                if near and following.offset + following.stored - begin.offset <= MAX_FETCH:
                    continue
            size = stop - begin.offset
            if used + size > len(self._fetched):
                self._fetched = touched_buffer(2 * (used + size))
            room = self._fetched[used : used + size]
            read_full(self._packs[begin.pack], room, begin.offset, "a pack")
            for place, object_id in wanted[first:end]:
                at = place.offset - begin.offset
                payloads[object_id] = room[at : at + place.stored]
            used += size
            first = end
        return payloads, used


def touched_buffer(size: int) -> memoryview:
    """Return a buffer whose pages are there already, as those that casstore uses again are."""
    return memoryview(np.ones(size, np.uint8))


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data[:WRITE_PIECE], offset)
        data, offset = data[count:], offset + count
