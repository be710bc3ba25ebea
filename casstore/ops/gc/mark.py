"""The mark: which objects records need. Models and tags need their files; runs and evaluations only their own manifests."""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING

from casstore.digest import DIGEST_SIZE
from casstore.errors import BackendError, FormatError, IntegrityError, MissingObject
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format import names
from casstore.objects import id_keys
from casstore.ops.descriptions import LAYOUTS, MANIFESTS, Descriptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from casstore.errors import CasstoreError
    from casstore.format.record import Record
    from casstore.objects import ListedPacks
    from casstore.store.model_store import ModelStore

_AT_ONCE = 1 << 18
"""Chunks that are looked up together: the more, the less each costs."""


class Mark:
    """Marks objects as live in the table of listed packs; what was marked stays so. For one thread.

    `absent` are objects that no pack holds, each with the ref that needs it; `spared` are packs named by records of
    which the description is not complete. `replaced_lack` says that values which were replaced need absent objects, too.
    """

    def __init__(self, store: ModelStore, packs: ListedPacks, *, counts: bool = False) -> None:
        """With `counts`, `held` has the objects of each layout that was read, by number; -1 for an absent one."""
        self._counts = counts
        self.held: dict[bytes, NDArray[np.int64]] = {}
        self._packs = packs
        self._descriptions = Descriptions(store)
        self._manifests: dict[bytes, tuple[bytes, ...]] = {}
        self._layouts: set[bytes] = set()
        self.absent: dict[bytes, str] = {}
        self.spared: set[bytes] = set()
        self.replaced_lack = False

    def add_replaced(self, records: Sequence[Record]) -> None:
        """Mark what replaced records need, as far as it is there: an earlier collection may have removed it."""
        absent, spared = self.absent, set(self.spared)
        self.add(records)
        self.replaced_lack = not (self.absent.keys() <= absent.keys() and self.spared <= spared)
        self.absent, self.spared = absent, spared

    def add(self, records: Sequence[Record]) -> None:
        """Mark everything that these records need. Raises an IntegrityError, naming the ref, for what cannot be read."""
        lacking, self.absent = self.absent, {}
        self._need(list(lacking), lacking)
        direct: dict[bytes, str] = {}
        described: dict[bytes, str] = {}
        for record in records:
            if record.manifest is None:
                continue
            direct.setdefault(record.manifest, record.name)
            if names.names_model(record.name):
                described.setdefault(record.manifest, record.name)
                if record.target is not None:
                    direct.setdefault(record.target, record.name)
        self._need(list(direct), direct)
        self._read_models(described)
        for record in records:
            if record.manifest in described and names.names_model(record.name):
                layouts = self._manifests.get(record.manifest)
                if layouts is None or not self._layouts.issuperset(layouts):
                    self.spared.update(record.packs)

    def layouts_of(self, manifest_id: bytes) -> tuple[bytes, ...]:
        """Return the layouts of a model whose manifest was read; none for any other."""
        return self._manifests.get(manifest_id, ())

    def count_again(self) -> None:
        """Read everything anew where objects are counted: their numbers have changed with the listing."""
        if self._counts:
            self.held.clear()
            self._manifests.clear()
            self._layouts.clear()

    def stop_counting(self) -> None:
        """Forget the objects of layouts: nobody needs their numbers any more."""
        self._counts = False
        self.held.clear()

    def forget(self, manifests: Iterable[bytes]) -> None:
        """Read these models again if a record turns out to need them."""
        for manifest_id in manifests:
            self._layouts.difference_update(self._manifests.pop(manifest_id, ()))

    def prune_copies(self) -> None:
        """Keep no copies of descriptions that no record needs any more."""
        self._descriptions.prune(self._manifests.keys() | self._layouts)

    def _read_models(self, described: dict[bytes, str]) -> None:
        fresh = [item for item in described if item not in self._manifests]
        trees: dict[bytes, str] = {}
        manifests: dict[bytes, tuple[bytes, ...]] = {}
        for manifest_id, data in self._read(fresh, described, batch=MANIFESTS):
            try:
                manifest = manifest_format.decode_model(data)
            except FormatError as error:
                raise _unreadable(described[manifest_id], error) from error
            trees.setdefault(manifest.model_id, described[manifest_id])
            manifests[manifest_id] = manifest.layouts
        self._need(list(trees), trees)
        # Read counts as done only once it is marked.
        self._manifests.update(manifests)
        layouts: dict[bytes, str] = {}
        for manifest_id, name in described.items():
            for layout_id in self._manifests.get(manifest_id, ()):
                if layout_id not in self._layouts:
                    layouts.setdefault(layout_id, name)
        self._need(list(layouts), layouts)
        chunks: dict[bytes, tuple[bytes, str]] = {}
        count = 0
        for layout_id, data in self._read(list(layouts), layouts, batch=LAYOUTS):
            try:
                found = layout_format.decode(data)
            except FormatError as error:
                raise _unreadable(layouts[layout_id], error) from error
            chunks[layout_id] = found.ids, layouts[layout_id]
            count += found.chunks
            if count >= _AT_ONCE:
                self._need_chunks(chunks)
                chunks, count = {}, 0
        self._need_chunks(chunks)

    def _need(self, ids: Sequence[bytes], needed_by: Mapping[bytes, str]) -> None:
        if ids:
            there = self._packs.table.mark(b"".join(ids))
            self.absent.update((ids[at], needed_by[ids[at]]) for at in (~there).nonzero()[0].tolist())

    def _need_chunks(self, layouts: Mapping[bytes, tuple[bytes, str]]) -> None:
        """Need the chunks of layouts, given as joined ids and the ref that needs them."""
        joined = b"".join(ids for ids, _ in layouts.values())
        there = self._packs.table.mark(joined)
        if not there.all():
            ends = list(itertools.accumulate(len(ids) // DIGEST_SIZE for ids, _ in layouts.values()))
            needed_by = [name for _, name in layouts.values()]
            for at in (~there).nonzero()[0].tolist():
                item = joined[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE]
                self.absent[item] = needed_by[bisect.bisect_right(ends, at)]
        if self._counts:
            for layout_id, (ids, _) in layouts.items():
                self.held[layout_id] = self._packs.table.find(id_keys(ids))
        self._layouts.update(layouts)

    def _read(
        self, ids: Sequence[bytes], needed_by: dict[bytes, str], *, batch: int
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield objects with their verified bytes, except those that no pack holds."""

        def failed(object_id: bytes, error: CasstoreError) -> None:
            held = self._packs.table.find(id_keys(object_id))[0] >= 0
            if held or not isinstance(error, MissingObject):
                # Invariant 8: what cannot be read may need anything.
                raise _unreadable(needed_by[object_id], error) from error

        return self._descriptions.read(ids, batch=batch, failed=failed)


def _unreadable(name: str, error: CasstoreError) -> CasstoreError:
    text = f"Nothing was collected, since {name} cannot be read: {error}"
    if isinstance(error, BackendError):
        return BackendError(text, retryable=error.retryable)
    return FormatError(text) if not isinstance(error, MissingObject) else IntegrityError(text)
