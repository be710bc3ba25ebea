"""Files of the add itself as bases of those that come after them: a model beside its casts, exports and checkpoints.

A file is a base once all of its chunks are encoded, so that the ranks of their frames are known: these are in the packs
of the same publish, before what rests on them (invariant 7). They are in no index yet, so their bytes come from the file.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from math import prod
from typing import TYPE_CHECKING

from casstore.chunking import MAX_CHUNK
from casstore.digest import digest
from casstore.errors import CasstoreError
from casstore.format.rows import RANK_STEP
from casstore.objects import Base
from casstore.store.adding.bases.rules.block_target import is_block
from casstore.store.adding.bases.rules.target import MIN_SIZE, has_sketch
from casstore.store.adding.bases.tensors.base_tensors import BaseFile
from casstore.store.adding.bases.tensors.names import plain_name
from casstore.store.adding.sources import is_onnx, read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from casstore.format.layout import Layout
    from casstore.objects import EncodedFrames
    from casstore.store.adding.sources import SourceFile
    from casstore.tensors import TensorSpan

    Place = tuple[SourceFile, int, int]
    """A file, and the first byte of a chunk and its length there."""

HEAD = 512
"""First bytes of a large file that say whether it is text, where there are several whose order matters."""

_DIGITS = re.compile(r"(\d+)")


def bases_first(files: Sequence[tuple[SourceFile, bytes | None]]) -> list[tuple[SourceFile, bytes | None]]:
    """Return files to add, each with its key, in an order in which what is made of others comes after them.

    A cast or a quant is smaller than what it is made of, and of several checkpoints the last one has the highest number. Files
    without tensors stay where they are.
    """
    ordered = list(files)
    large = [at for at, (file, _) in enumerate(files) if file.identity.size >= MIN_SIZE]
    places = [at for at in large if _may_have_tensors(files[at][0])] if len(large) > 1 else []
    moved = sorted((files[at] for at in places), key=lambda item: _order(item[0]))
    for at, item in zip(places, moved, strict=True):
        ordered[at] = item
    return ordered


def _order(file: SourceFile) -> tuple[int, list[tuple[int, str]]]:
    parts = [(int(part), "") if part.isdecimal() else (0, part) for part in _DIGITS.split(file.path)]
    return -file.identity.size, parts


def _may_have_tensors(file: SourceFile) -> bool:
    """Say whether a large file has tensors that may be bases, as far as its first bytes tell: text has no zero bytes."""
    return is_onnx(file) or b"\0" in read_source(file, 0, HEAD)


class OwnChunks:
    """The chunks that one add encodes: the ranks of their frames, and where their bytes are. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: dict[bytes, tuple[int, int] | None] = {}
        self._places: dict[bytes, Place] = {}

    def claim(self, ids: Iterable[bytes]) -> None:
        """Note chunks that are about to be encoded."""
        with self._lock:
            self._frames.update(dict.fromkeys(ids))

    def note(self, frames: EncodedFrames) -> None:
        """Note the frames that chunks have become."""
        with self._lock:
            for header in frames.headers:
                # Bases of the lowest deltas have none themselves; of higher ones nobody has counted the bytes.
                self._frames[header.object_id] = header.rank, MAX_CHUNK * len(header.bases)

    def rank(self, chunk_id: bytes, otherwise: int | None) -> int | None:
        """Return the rank of a chunk as a base, None if it cannot be one yet; `otherwise` if it is none of this add."""
        if chunk_id not in self._frames:
            return otherwise
        frame = self._frames[chunk_id]
        return None if frame is None or frame[0] > RANK_STEP else frame[0]

    def place(self, chunk_id: bytes, place: Place) -> None:
        """Note where the bytes of a chunk are."""
        with self._lock:
            self._places.setdefault(chunk_id, place)

    def read(self, ids: Sequence[bytes]) -> tuple[list[Base], list[bytes]]:
        """Return those of these chunks that this add encodes, as bases, and the others."""
        found, others = [], []
        for chunk_id in ids:
            frame, place = self._frames.get(chunk_id), self._places.get(chunk_id)
            if frame is None or place is None:
                others.append(chunk_id)
                continue
            try:
                plain = read_source(*place)
            except CasstoreError:
                continue  # Invariant 11: nothing is hidden: what cannot be read any more is no base.
            if digest(plain) == chunk_id:
                found.append(Base(chunk_id, plain, *frame))
        return found, others


class OwnFile(BaseFile):
    """A file of this add."""

    def __init__(
        self,
        source: SourceFile,
        layout_id: bytes,
        layout: Layout,
        chunks: OwnChunks,
        *,
        sketches: dict[int, bytes],
        ranks: Callable[[Sequence[bytes]], list[int | None]],
    ) -> None:
        """`sketches` are those that were made, `ranks` says which ranks the chunks have that the store knows already."""
        super().__init__(layout_id, layout, (), may_read=False)
        self._source = source
        self._chunks_of_add = chunks
        self._made = sketches
        self._ask_ranks = ranks
        self._before: BaseFile | None = None

    def follow(self, before: BaseFile) -> None:
        """Take over what is known of the same layout in the store, but for the ranks."""
        self._before = before
        self.may_read = before.may_read

    def _find_sketches(self) -> dict[int, bytes]:
        return {**({} if self._before is None else self._before.sketches), **self._made}

    def _find_ranks(self) -> Sequence[int | None]:
        ids = self.layout.chunk_ids()
        return [
            self._chunks_of_add.rank(item, rank) for item, rank in zip(ids, self._ask_ranks(ids), strict=True)
        ]

    def parts(self, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield the parts of chunks that make up a range of the file (`BaseFile.parts`)."""
        at = begin
        for chunk_id, first, last in super().parts(begin, end):
            origin = at - first
            length = self.length_of_chunk(origin)
            self._chunks_of_add.place(chunk_id, (self._source, origin, length))
            yield chunk_id, first, last
            at += last - first


class Unfinished:
    """The files of which chunks may not be encoded yet, by their tensors. For one thread."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[str, Counter[tuple[str, int]]]] = {}

    def begin(self, path: str, spans: Sequence[TensorSpan]) -> bool:
        """Note a file that is read next; say whether one that is not finished may predict most of it."""
        kind = os.path.splitext(path)[1]
        own = Counter(
            (plain_name(span.name), prod(span.shape))
            for span in spans
            if span.end > span.begin and (has_sketch(span) or is_block(span))
        )
        found = any(self._is_like(kind, own, *other) for other in self._files.values())
        if own:
            self._files[id(spans)] = kind, own
        return found

    def end(self, spans: Sequence[TensorSpan]) -> None:
        """Note that all chunks of the file with these spans are encoded."""
        self._files.pop(id(spans), None)

    @staticmethod
    def _is_like(
        kind: str, own: Counter[tuple[str, int]], other_kind: str, other: Counter[tuple[str, int]]
    ) -> bool:
        """Compare by names, and where formats differ, by sizes alone: shards of one model have those in common, too."""
        shared = (own & other).total()
        if kind != other_kind:
            by_size = [Counter(size for _, size in tensors.elements()) for tensors in (own, other)]
            shared = (by_size[0] & by_size[1]).total()
        return 2 * shared > own.total()
