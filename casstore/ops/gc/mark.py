"""The mark: which objects records need. Models and tags need their files; runs and evaluations only their own manifests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.digest import DIGEST_SIZE, digest
from casstore.errors import BackendError, FormatError, IntegrityError, MissingObject
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format import names
from casstore.objects import id_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from casstore.errors import CasstoreError
    from casstore.format.record import Record
    from casstore.machine.copies import Copies
    from casstore.objects import ListedPacks
    from casstore.store.model_store import ModelStore

_MANIFESTS = 1024
_LAYOUTS = 128


class Mark:
    """Marks objects as live in the table of listed packs; what was marked stays so. For one thread.

    `absent` are objects that no pack holds, each with the ref that needs it; `spared` are packs named by records of
    which the description is not complete.
    """

    def __init__(
        self, store: ModelStore, packs: ListedPacks, *, copies: Copies, counts: bool = False
    ) -> None:
        """With `counts`, `held` has the objects of each layout that was read, by number; -1 for an absent one."""
        self._counts = counts
        self.held: dict[bytes, NDArray[np.int64]] = {}
        self._store = store
        self._packs = packs
        self._copies = copies
        self._manifests: dict[bytes, tuple[bytes, ...]] = {}
        self._layouts: set[bytes] = set()
        self.absent: dict[bytes, str] = {}
        self.spared: set[bytes] = set()

    def add_replaced(self, records: Sequence[Record]) -> None:
        """Mark what replaced records need, as far as it is there: an earlier collection may have removed it."""
        absent, spared = self.absent, set(self.spared)
        self.add(records)
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
        self._copies.prune({item.hex() for item in self._manifests.keys() | self._layouts})

    def _read_models(self, described: dict[bytes, str]) -> None:
        fresh = [item for item in described if item not in self._manifests]
        for manifest_id, data in self._read(fresh, described, batch=_MANIFESTS):
            try:
                manifest = manifest_format.decode_model(data)
            except FormatError as error:
                raise _unreadable(described[manifest_id], error) from error
            self._need([manifest.model_id], {manifest.model_id: described[manifest_id]})
            self._manifests[manifest_id] = manifest.layouts
        layouts: dict[bytes, str] = {}
        for manifest_id, name in described.items():
            for layout_id in self._manifests.get(manifest_id, ()):
                if layout_id not in self._layouts:
                    layouts.setdefault(layout_id, name)
        self._need(list(layouts), layouts)
        for layout_id, data in self._read(list(layouts), layouts, batch=_LAYOUTS):
            try:
                chunks = layout_format.decode(data).ids
            except FormatError as error:
                raise _unreadable(layouts[layout_id], error) from error
            self._need(chunks, layouts[layout_id])
            self._layouts.add(layout_id)
            if self._counts:
                self.held[layout_id] = self._packs.table.find(id_keys(chunks))

    def _need(self, ids: Sequence[bytes] | bytes, needed_by: dict[bytes, str] | str) -> None:
        joined = ids if isinstance(ids, bytes) else b"".join(ids)
        if not joined:
            return
        there = self._packs.table.mark(joined)
        for at in (~there).nonzero()[0].tolist():
            item = joined[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE]
            self.absent[item] = needed_by if isinstance(needed_by, str) else needed_by[item]

    def _read(
        self, ids: Sequence[bytes], needed_by: dict[bytes, str], *, batch: int
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield objects with their verified bytes, except those that no pack holds."""
        fetch: list[bytes] = []
        for object_id in ids:
            data = self._copies.get(object_id.hex())
            # Invariant 4: whatever happened to the copy, its id tells.
            if data is not None and digest(data) == object_id:
                yield object_id, data
            else:
                fetch.append(object_id)
        for start in range(0, len(fetch), batch):
            found, damaged = self._store.objects.read_present(fetch[start : start + batch])
            for object_id, error in damaged.items():
                held = self._packs.table.find(id_keys(object_id))[0] >= 0
                if held or not isinstance(error, MissingObject):
                    # Invariant 8: what cannot be read may need anything.
                    raise _unreadable(needed_by[object_id], error) from error
            for object_id, data in found.items():
                self._copies.put(object_id.hex(), data)
                yield object_id, data


def _unreadable(name: str, error: CasstoreError) -> CasstoreError:
    text = f"Nothing was collected, since {name} cannot be read: {error}"
    if isinstance(error, BackendError):
        return BackendError(text, retryable=error.retryable)
    return FormatError(text) if not isinstance(error, MissingObject) else IntegrityError(text)
