"""The files whose tensors may be bases: those of the model that is named, of its ancestors, and of like ones."""

from __future__ import annotations

from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING

from casstore.errors import ConfigError, IntegrityError, ObjectNotFound
from casstore.format import layout as layout_format
from casstore.store.adding.bases.rules.adapters import is_adapter
from casstore.store.adding.bases.rules.block_target import is_block
from casstore.store.adding.bases.rules.target import has_sketch
from casstore.store.adding.bases.tensors.base_tensors import BaseFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casstore.format.layout import Layout
    from casstore.format.record import Record
    from casstore.machine.sketches import Sketches
    from casstore.store.adding.bases.files.own_files import OwnFile
    from casstore.store.model_store import ModelStore
    from casstore.tensors import TensorSpan

ANCESTORS = 3
"""Models above the one that is named whose tensors may be bases, too."""

_CHILDREN = 8
"""Models made from the base that are looked at for adapters, the newest ones."""

_NEWEST = 16
_NEWEST_FAR = 4
_ENOUGH = 2
"""Models that are looked at where no sketches are known, the same where each is several round trips, and files from which no more are."""

MAX_FILES = 256
"""Files of one model that are looked at."""


class StoredFile(BaseFile):
    """A file of a model in the store."""

    def __init__(
        self,
        layout_id: bytes,
        layout: Layout,
        *,
        sketches: Sketches,
        ranks: Callable[[Sequence[bytes]], list[int | None]],
    ) -> None:
        """`ranks` says of chunks which rank their frames have."""
        super().__init__(layout_id, layout, (), may_read=False)
        self._catalogue = sketches
        self._ask_ranks = ranks

    def _find_sketches(self) -> dict[int, bytes]:
        return self._catalogue.of_layout(self.layout_id)

    def _find_ranks(self) -> Sequence[int | None]:
        return self._ask_ranks(self.layout.chunk_ids())


class BaseFiles:
    """Finds base files in one store. For one thread, but for `add`."""

    def __init__(
        self,
        store: ModelStore,
        *,
        sketches: Sketches,
        ranks: Callable[[Sequence[bytes]], list[int | None]],
    ) -> None:
        """`ranks` says of chunks which rank the frames have on which a publish may depend, as `Publication.ranks` does."""
        self._store = store
        self._sketches = sketches
        self._ranks = ranks
        self._known: dict[bytes, BaseFile | None] = {}
        self._ended: deque[OwnFile] = deque()

    def of_lineage(self, base: bytes, find: Callable[[bytes], Record | None]) -> list[BaseFile]:
        """Return the files of a model and of its ancestors, nearest first; `find` returns the newest record of a model.

        Those of ancestors only where this machine has their sketches.
        """
        files: list[BaseFile] = []
        model: bytes | None = base
        for step in range(1 + ANCESTORS):
            record = None if model is None else find(model)
            if record is None:
                break
            found = self._of_record(record, may_read=step == 0)
            files += [file for file in found if step == 0 or file.sketches]
            model = record.base
        return files

    def adapters_of(self, base: bytes) -> list[BaseFile]:
        """Return the files with adapters among the newest models that were made from one, by what refs say."""
        files: list[BaseFile] = []
        for row in self._store.find("models/", base=base.hex(), limit=_CHILDREN):
            record = self._store.record(row.name)
            if record is not None and record.target is not None:
                files += [file for file in self._of_record(record, may_read=False) if is_adapter(file)]
        return files

    def newest_like(self, spans: Sequence[TensorSpan]) -> list[BaseFile]:
        """Return a few files of models of which this machine knows no sketches, with most of these tensors by name and shape.

        Of the newest models only. The sketches of these files are read when they are needed.
        """
        wanted = [span for span in spans if has_sketch(span) or is_block(span)]
        files: list[BaseFile] = []
        for model in self._unmarked if wanted else ():
            for file in model:
                there = [file.find(span.name) for span in wanted]
                shared = sum(
                    tensor is not None and tensor.span.shape == span.shape
                    for tensor, span in zip(there, wanted, strict=True)
                )
                if 2 * shared > len(wanted) and file not in files:
                    files.append(file)
            if len(files) >= _ENOUGH:
                break
        return files

    @cached_property
    def _unmarked(self) -> list[list[BaseFile]]:
        """The files of the newest models of which nobody has kept the sketches here: added elsewhere, or forgotten."""
        rows = self._store.find("models/", limit=_NEWEST_FAR if self._store.backend.is_remote else _NEWEST)
        names = {row.target: row.name for row in rows}
        # Few are left, and only the records of those are read.
        records = map(self._store.record, map(names.__getitem__, self._sketches.unmarked(list(names))))
        return [list(self._of_record(record, may_read=True)) for record in records if record is not None]

    def add(self, file: OwnFile) -> None:
        """Know a file of this add, in the place of what was known of its layout: its ranks are newer. For any thread."""
        self._ended.append(file)

    def _take_ended(self) -> None:
        while self._ended:
            file = self._ended.popleft()
            known = self._known.get(file.layout_id)
            file.follow(known if known is not None else self._file(file.layout_id, file.layout))
            self._known[file.layout_id] = file

    def of_layout(self, layout_id: bytes) -> BaseFile | None:
        """Return the file of a layout that the catalogue names; None if the store has it no more."""
        self._take_ended()
        if layout_id not in self._known:
            plain, _ = self._store.objects.read_present([layout_id])
            layout = None
            if layout_id in plain:
                layout = self._decode(plain[layout_id])
            self._known[layout_id] = None if layout is None else self._file(layout_id, layout)
            if layout is None:
                self._sketches.forget(layout_id)
        return self._known[layout_id]

    def _of_record(self, record: Record, *, may_read: bool) -> Iterator[BaseFile]:
        try:
            model = self._store.model_of(record)
            layouts = model.layouts_at(range(min(MAX_FILES, len(model.layout_ids))))
        except (IntegrityError, ObjectNotFound, ConfigError):
            # Invariant 11: nothing is hidden: `check` reports that model, and this one is stored without it.
            return
        self._take_ended()
        for layout_id, layout in zip(model.layout_ids, layouts, strict=False):
            if layout.spans and layout_id not in self._known:
                self._known[layout_id] = self._file(layout_id, layout)
            file = self._known.get(layout_id)
            if file is not None:
                file.may_read = file.may_read or may_read
                yield file

    def _file(self, layout_id: bytes, layout: Layout) -> BaseFile:
        return StoredFile(layout_id, layout, sketches=self._sketches, ranks=self._ranks)

    @staticmethod
    def _decode(plain: bytes) -> Layout | None:
        try:
            return layout_format.decode(plain)
        except IntegrityError:
            return None  # Invariant 13: the catalogue is a hint, and may name what is no layout.
