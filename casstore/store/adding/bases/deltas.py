"""The deltas of one add: where their bases may be, and the frames that they become."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from casstore.errors import CasstoreError, RefNotFound
from casstore.machine.sketches import SketchesOfAdd
from casstore.store.adding.bases.encoding import encode_planned
from casstore.store.adding.bases.files.base_chunks import BaseChunks
from casstore.store.adding.bases.files.base_files import BaseFiles
from casstore.store.adding.bases.files.own_files import OwnChunks, OwnFile, Unfinished
from casstore.store.adding.bases.planning.base_sketches import BaseSketches
from casstore.store.adding.bases.planning.file_relations import FileRelations
from casstore.store.adding.bases.planning.search import BaseSearch
from casstore.store.adding.bases.rules.adapters import is_adapter
from casstore.store.resolve import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from casstore.format.layout import Layout
    from casstore.format.record import Record
    from casstore.objects import EncodedFrames
    from casstore.refs.refs import Refs
    from casstore.store.adding.bases.encoding import PlannedChunk
    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.tensors.base_tensors import BaseFile
    from casstore.store.adding.sources import SourceFile
    from casstore.store.model_store import ModelStore
    from casstore.tensors import TensorSpan


class Deltas:
    """Finds bases and encodes deltas for one add. Safe in threads."""

    def __init__(
        self,
        store: ModelStore,
        refs: Refs,
        policy: DeltaPolicy,
        *,
        base: bytes | None,
        ranks: Callable[[Sequence[bytes]], list[int | None]],
    ) -> None:
        """`base` is the model that is named; `ranks` is `Publication.ranks`, safe in threads."""
        self._policy = policy
        self._sketches = SketchesOfAdd(store.machine)
        self._own = OwnChunks()
        self._ranks = ranks
        self._unfinished = Unfinished()
        self._chunks = BaseChunks(store.objects, own=self._own)
        self._finder = BaseFiles(store, sketches=self._sketches, ranks=ranks)
        self._refs = refs
        self._base = base
        self._named: list[BaseFile] | None = None
        self._merged: list[BaseFile] | None = None
        self._lock = threading.Lock()

    def open_file(self, source: SourceFile, spans: Sequence[TensorSpan]) -> FileRelations:
        """Return what will know the relations of the tensors of one file."""
        return FileRelations(source, spans, search=lambda: self._search(spans), lock=self._lock)

    def begin_file(self, source: SourceFile, spans: Sequence[TensorSpan]) -> bool:
        """Note a file that is read next; say whether one of which not all chunks are encoded may predict it. For one thread."""
        return self._unfinished.begin(source.path, spans)

    def end_file(
        self,
        source: SourceFile,
        spans: Sequence[TensorSpan],
        relations: FileRelations,
        layout_id: bytes,
        layout: Layout,
    ) -> None:
        """Note that all chunks of a file are encoded: from now on, it may be a base. For the thread of `begin_file`."""
        self._unfinished.end(spans)
        if not layout.spans:
            return
        sketches = relations.take_sketches(layout_id)
        made = {item.span: item.data for item in sketches if item.layout == layout_id}
        self._finder.add(OwnFile(source, layout_id, layout, self._own, sketches=made, ranks=self._ranks))
        self._sketches.hold(sketches)

    def remember(self, model: bytes) -> None:
        """Keep what was learnt, now that all of the model is in the store."""
        self._sketches.keep_held(model)

    def claim(self, ids: Sequence[bytes]) -> None:
        """Note chunks that are about to be encoded."""
        self._own.claim(ids)

    def note(self, frames: Iterable[EncodedFrames]) -> None:
        """Note frames that chunks have become."""
        for item in frames:
            self._own.note(item)

    def _search(self, spans: Sequence[TensorSpan]) -> BaseSearch:
        if self._named is None:
            base = self._base
            self._named = [] if base is None else self._finder.of_lineage(base, self._newest_record)
        files = self._named
        if not files:
            # Invariant 13: what this machine does not know any more, the store can tell.
            with contextlib.suppress(CasstoreError):
                files = self._finder.newest_like(spans)
        return BaseSearch(
            files=files,
            finder=self._finder,
            sketches=BaseSketches(self._sketches, self._chunks, spans),
            policy=self._policy,
            adapters=self._adapters,
        )

    def _adapters(self) -> list[BaseFile]:
        """Return the adapters that may have been merged into the base."""
        if self._merged is None:
            self._merged = []
            if self._base is not None:
                # Invariant 13: adapters are hints: what cannot be read now is no base.
                with contextlib.suppress(CasstoreError):
                    self._merged = self._finder.adapters_of(self._base)
            self._merged += [file for file in self._named or () if is_adapter(file)]
        return self._merged

    def encode(self, block: memoryview, planned: Mapping[int, PlannedChunk]) -> dict[int, EncodedFrames]:
        """Return the frames of planned chunks (`encode_planned`)."""
        return encode_planned(block, planned, self._chunks, self._policy)

    def _newest_record(self, model_id: bytes) -> Record | None:
        try:
            record = self._refs.value(f"models/{model_id.hex()}")
            if record is not None and record.target == model_id:
                return record
            return find_model(self._refs, model_id.hex())
        except (RefNotFound, CasstoreError):
            return None  # Invariant 13: lineage is a hint here; the model is stored without a base.
