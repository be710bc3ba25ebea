"""Adding files: read → cut → hash → look up → encode → pack.

The calling thread reads, hashes whole files, cuts and dispatches; chunks are hashed, looked up and encoded by a few
workers in blocks of megabytes, where native code holds no GIL. How many blocks are in flight is bounded.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.chunking import LAYOUT_VERSION
from casstore.concurrency.buffers import BLOCK, give_block
from casstore.concurrency.workers import TaskGroup, worker_count
from casstore.digest import digest
from casstore.errors import ConfigError, ConflictError, IntegrityError
from casstore.format import layout as layout_format
from casstore.format.layout import Layout
from casstore.format.rows import Kind
from casstore.format.spans import pack_spans
from casstore.machine.state import KnownFile
from casstore.objects import encode_frames, encode_object
from casstore.store.adding.bases.encoding import PlannedChunk, joined
from casstore.store.adding.bases.files.own_files import bases_first
from casstore.store.adding.blocks import BlockReader
from casstore.store.adding.known_content import Content, compare_content, sample_keys
from casstore.store.adding.sources import is_onnx, read_source
from casstore.store.adding.tensor_spans import find_external_spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from fsspec import Callback
    from typing_extensions import Self

    from casstore.machine.state import MachineState
    from casstore.objects import EncodedFrames, ObjectStore, Publication
    from casstore.store.adding.bases.deltas import Deltas
    from casstore.store.adding.blocks import Block, Reading
    from casstore.store.adding.claims import Claims
    from casstore.store.adding.sources import SourceFile, Sources

    _Keyed = tuple[SourceFile, bytes | None]
    """A file, and the key under which the stat cache knows it."""


_FEW = 256 << 10
"""Bytes of a block that are not worth a worker: handing it over and waiting for it would take longer."""

_LAST = 2 << 20
"""Bytes left to read from which blocks are divided although the workers are busy: one would go on long after the others."""

_KNOWN_FILES = 4096
_KNOWN_BYTES = 64 << 30
"""Unchanged files whose layouts are looked up at once: fewer look-ups, bounded memory."""


@dataclass(frozen=True, slots=True)
class AddedFile:
    """A file that is in the store now, with the layout it was cut by."""

    source: SourceFile
    layout: Layout
    layout_id: bytes
    stat_key: bytes | None = None
    """The key under which the stat cache may keep what was read, None where no change could be detected."""


@dataclass(slots=True)
class AddCounts:
    """What adding cost: `bytes_new` are plain bytes of chunks that the store did not have."""

    bytes_total: int = 0
    bytes_new: int = 0
    chunks: int = 0
    chunks_new: int = 0


class _Worked(NamedTuple):
    """A worker's result for a block: the ids of its chunks, which of them are new, and the frames of those.

    `predicted` are the frames of those for which there was a plan.
    """

    ids: list[bytes]
    wanted: list[int]
    frames: EncodedFrames
    predicted: EncodedFrames | None = None


class Ingest:
    """Adds files to a publication. Use once, from one thread, as a context manager."""

    def __init__(
        self,
        *,
        publication: Publication,
        claims: Claims,
        objects: ObjectStore,
        machine: MachineState,
        stat_cache: bool,
        callback: Callback | None,
        deltas: Deltas | None = None,
    ) -> None:
        """`claims` are those of the publication. Without `deltas`, every chunk is encoded alone."""
        self._publication = publication
        self._claims = claims
        self._deltas = deltas
        self._objects = objects
        self._machine = machine
        self._stat_cache = stat_cache
        self._callback = callback
        self._tasks = TaskGroup()
        self._window = worker_count()
        self._working: deque[tuple[Block, list[Future[_Worked]]]] = deque()
        self._added: list[AddedFile] = []
        self._layouts: dict[bytes, bytes] = {}
        self._layouts_size = 0
        self._sample_keys: dict[str, bytes] = {}
        self.counts = AddCounts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tasks.__exit__()

    def run(self, sources: Sources) -> list[AddedFile]:
        """Make every chunk and layout of `sources` part of the publication; return the files in tree order.

        Raises ConflictError if a file changes while it is read.
        """
        if self._callback is not None:
            self._callback.set_size(sum(file.identity.size for file in sources.files))
        keys = sources.stat_keys(self._machine.unchanged_files())
        unknown = list(self._take_unchanged(list(zip(sources.files, keys, strict=True))))
        self._sample_keys = sample_keys(
            [file for file, _ in unknown], beside_graphs=any(map(is_onnx, sources.files))
        )
        unknown = self._take_known_content(unknown)
        self._publication.recall(sum(file.identity.size for file, _ in unknown))
        external = find_external_spans([file for file, _ in unknown], sources.files)
        reader = BlockReader(window=self._window, progress=self._progress, deltas=self._deltas)
        for block in reader.read(bases_first(unknown) if self._deltas is not None else unknown, external):
            while block.waits and self._working:
                self._take_oldest()
            if block.used <= _FEW and not self._working:
                self._take_block(block, [self._work(block, range(len(block.cuts)))])
                continue
            # With idle workers, each gets a part of the block; towards the end, all of them are idle soon.
            busy = len(self._working) if reader.left > _LAST else 0
            parts = block.divided(self._window - busy, least=_FEW)
            self._working.append((block, [self._tasks.submit(self._work, block, part) for part in parts]))
            if len(self._working) > self._window:
                self._take_oldest()
        while self._working:
            self._take_oldest()
        self._write_layouts()
        return sorted(self._added, key=lambda added: added.source.path.encode())

    def supply(self, missing: set[bytes]) -> Iterator[EncodedFrames]:
        """Make frames again for those of `missing` that the added files hold (see publish.py)."""
        for added in self._added:
            if added.layout_id in missing:
                yield encode_object(Kind.LAYOUT, layout_format.encode(added.layout))
            edges = added.layout.offsets().tolist()
            for at, chunk_id in enumerate(added.layout.chunk_ids()):
                if chunk_id in missing:
                    plain = read_source(added.source, edges[at], edges[at + 1] - edges[at])
                    if digest(plain) != chunk_id:
                        raise ConflictError(
                            f"{added.source.location} changed while it was stored. Add it again."
                        )
                    yield encode_object(Kind.CHUNK, plain)

    def remember(self, model: bytes) -> None:
        """Tell the machine which files of the model were read: by stat identity, where it proves anything, and by samples."""
        self._machine.remember_files(
            (key, KnownFile(added.layout.file_id, added.layout_id))
            for added in self._added
            for key in (added.stat_key, self._sample_keys.get(added.source.path))
            if key is not None
        )
        if self._deltas is not None:
            self._deltas.remember(model)

    def _take_unchanged(self, files: Sequence[_Keyed]) -> Iterator[_Keyed]:
        """Take unchanged files without reading them, if all that they need is in the store; yield the others."""
        if not self._stat_cache:
            yield from files
            return
        known = self._machine.known_files([key for _, key in files])
        hits: list[tuple[_Keyed, KnownFile]] = []
        for item, found in zip(files, known, strict=True):
            if found is None:
                yield item
            else:
                hits.append((item, found))
        group: list[tuple[_Keyed, KnownFile]] = []
        size = 0
        for hit in hits:
            group.append(hit)
            size += hit[0][0].identity.size
            if len(group) >= _KNOWN_FILES or size >= _KNOWN_BYTES:
                yield from self._take_hits(group)
                group, size = [], 0
        yield from self._take_hits(group)

    def _take_known_content(self, files: list[_Keyed]) -> list[_Keyed]:
        """Take files that the store holds under another name or from another place, read once; return the others."""
        keys = [self._sample_keys.get(file.path) for file, _ in files]
        left: list[_Keyed] = []
        same: list[tuple[_Keyed, KnownFile]] = []
        for (file, stat_key), known in zip(files, self._machine.known_files(keys), strict=True):
            found = Content.OTHER
            if known is not None:
                found = compare_content(
                    file,
                    known.file_id,
                    stable=stat_key is not None,
                    progress=self._progress,
                )
            if known is None or found is Content.OTHER:
                left.append((file, stat_key))
            else:
                same.append(((file, stat_key if found is Content.SAME_FOR_GOOD else None), known))
        # Only now: what the publication is asked for, its record depends on.
        layouts = self._whole_layouts(list(dict.fromkeys(known.layout_id for _, known in same)))
        for (file, stat_key), known in same:
            layout = layouts.get(known.layout_id)
            if layout is None or layout.file_id != known.file_id or layout.size != file.identity.size:
                self._progress(-file.identity.size)
                left.append((file, stat_key))
            else:
                self._take(AddedFile(file, layout, known.layout_id, stat_key))
        return left

    def _take(self, added: AddedFile) -> None:
        self._added.append(added)
        self._count(added.layout.size, added.layout.chunks)

    def _progress(self, count: int) -> None:
        if self._callback is not None:
            self._callback.relative_update(count)

    def _take_hits(self, hits: list[tuple[_Keyed, KnownFile]]) -> Iterator[_Keyed]:
        layouts = self._whole_layouts(list(dict.fromkeys(known.layout_id for _, known in hits)))
        for (file, key), known in hits:
            layout = layouts.get(known.layout_id)
            if layout is None or layout.file_id != known.file_id or layout.size != file.identity.size:
                yield file, key
                continue
            self._take(AddedFile(file, layout, known.layout_id))
            self._progress(layout.size)

    def _whole_layouts(self, ids: list[bytes]) -> dict[bytes, Layout]:
        """Return those layouts that the store can read and has every chunk of."""
        here = [item for item, there in zip(ids, self._publication.known(ids), strict=True) if there]
        if not here:
            return {}
        layouts: dict[bytes, Layout] = {}
        for item, plain in self._objects.read_present(here)[0].items():
            # Invariant 13: the stat cache is a hint; if what it names is damaged, the file itself is read.
            with contextlib.suppress(IntegrityError):
                layouts[item] = layout_format.decode(plain)
        there = self._publication.known(
            [chunk_id for item in layouts.values() for chunk_id in item.chunk_ids()]
        )
        whole: dict[bytes, Layout] = {}
        at = 0
        for item, layout in layouts.items():
            if there[at : at + layout.chunks].all():
                whole[item] = layout
            at += layout.chunks
        return whole

    def _work(self, block: Block, part: range) -> _Worked:
        """Hash some chunks of a block and encode those that are new; runs on a worker thread if they are many bytes."""
        cuts, hints = block.cuts[part.start : part.stop], block.hints[part.start : part.stop]
        ids = [digest(block.buffer[offset : offset + length]) for offset, length in cuts]
        wanted = self._claims.claim(ids)
        if self._deltas is not None:
            self._deltas.claim([ids[at] for at in wanted])
        predicted = self._predict(block, part, ids, wanted)
        alone = [at for at in wanted if at not in predicted]
        frames = encode_frames(
            Kind.CHUNK,
            [ids[at] for at in alone],
            block.buffer,
            [cuts[at] for at in alone],
            [hints[at] for at in alone],
        )
        if self._deltas is not None:
            self._deltas.note([frames, *predicted.values()])
        return _Worked(ids, wanted, frames, joined(list(predicted.values())))

    def _predict(
        self, block: Block, part: range, ids: list[bytes], wanted: list[int]
    ) -> dict[int, EncodedFrames]:
        """Encode those of the wanted chunks that a base predicts; return their frames."""
        if self._deltas is None:
            return {}
        windows = list(block.windows())
        planned: dict[int, PlannedChunk] = {}
        for at in wanted:
            place = part.start + at
            begin, length = block.cuts[place]
            relations, window = windows[place]
            offset = block.offsets[place]
            plan = relations.plan(offset, offset + length, window) if relations is not None else None
            if plan is not None:
                planned[at] = PlannedChunk(ids[at], begin, begin + length, block.hints[place], plan)
        return self._deltas.encode(block.buffer, planned) if planned else {}

    def _take_oldest(self) -> None:
        """Take the oldest block that was handed out, once it is done."""
        block, parts = self._working.popleft()
        self._take_block(block, [part.result() for part in parts])

    def _take_block(self, block: Block, parts: list[_Worked]) -> None:
        """Write the frames of a block, note its chunks."""
        ids: list[bytes] = []
        for worked in parts:
            self._publication.write(worked.frames)
            if worked.predicted is not None:
                self._publication.write(worked.predicted)
            self.counts.chunks_new += len(worked.wanted)
            self.counts.bytes_new += sum(block.cuts[len(ids) + at][1] for at in worked.wanted)
            ids += worked.ids
        give_block(block.buffer)
        self._count(sum(length for _, length in block.cuts), len(ids))
        start = 0
        for reading, count, last in block.parts:
            reading.ids += ids[start : start + count]
            reading.lengths += [length for _, length in block.cuts[start : start + count]]
            start += count
            if last:
                self._finish(reading)

    def _finish(self, reading: Reading) -> None:
        as_stated = reading.size == reading.source.identity.size
        layout = Layout(
            file_id=reading.hasher.digest(),
            size=reading.size,
            ids=b"".join(reading.ids),
            lengths=np.array(reading.lengths, "<u4"),
            # Tensors were looked for in a file of the size that stat gave, which may be wrong.
            spans=pack_spans(reading.spans) if as_stated else (),
            cut=LAYOUT_VERSION,
        )
        try:
            plain = layout_format.encode(layout)
        except ConfigError:
            if not layout.spans:
                raise
            # Design §4: tensors that no layout can describe make a file of an unknown format, not an error.
            layout = replace(layout, spans=())
            plain = layout_format.encode(layout)
        layout_id = digest(plain)
        if self._deltas is not None and reading.relations is not None:
            self._deltas.end_file(reading.source, reading.spans, reading.relations, layout_id, layout)
        self._layouts[layout_id] = plain
        self._layouts_size += len(plain)
        self._added.append(
            AddedFile(reading.source, layout, layout_id, reading.stat_key if as_stated else None)
        )
        if self._layouts_size >= BLOCK:
            self._write_layouts()

    def _write_layouts(self) -> None:
        if self._layouts:
            self._publication.write_objects(Kind.LAYOUT, self._layouts)
        self._layouts = {}
        self._layouts_size = 0

    def _count(self, size: int, chunks: int) -> None:
        self.counts.bytes_total += size
        self.counts.chunks += chunks
