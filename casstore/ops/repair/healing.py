"""Takes good copies of lost objects from damaged packs of the store, and from other stores."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.bandwidth import TokenBucket
from casstore.errors import BackendError
from casstore.format.rows import row_ids
from casstore.objects import pack_key
from casstore.ops.sync.frames import FrameSource
from casstore.ops.sync.planning import MAX_CONCURRENCY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.objects import EncodedFrames, Located
    from casstore.ops.quarantine import Search
    from casstore.store.dependencies import Needs
    from casstore.store.model_store import ModelStore
    from casstore.store.reading.other_stores import OtherStores


class Healer:
    """Looks for good copies of objects that no usable pack has. Without `write` it only says where there are some.

    `lost` are objects of which no usable pack had a copy that decodes; `missing` are those of them of which there is none
    anywhere. `healed` are those, and bases, of which a copy was found, with the place. What describes models is read in any case, so that it is known what they need. For one thread.
    """

    def __init__(
        self,
        store: ModelStore,
        search: Search,
        others: OtherStores,
        *,
        write: Callable[[EncodedFrames], None] | None = None,
    ) -> None:
        self._store = store
        self._search = search
        self._others = others
        self._write = write
        self._rest = store.objects.damaged_packs()
        self._plain: dict[bytes, bytes] = {}
        self.healed: dict[bytes, str] = {}
        self.lost: set[bytes] = set()
        self.missing: set[bytes] = set()

    def read(self, object_id: bytes) -> bytes:
        """Return the verified bytes of an object that describes something; raise as ObjectStore.read does."""
        plain = self._plain.get(object_id)
        return self._store.objects.read(object_id) if plain is None else plain

    def sources(self) -> dict[str, int]:
        """Return how many objects each place had."""
        return dict(Counter(self.healed.values()))

    def heal(self, needs: Needs, *, fetch: bool = True) -> bool:
        """Find copies of what is lost of a model; say whether any was found. Without `fetch`, only in this store."""
        before = len(self.healed)
        self._heal(needs.description, describes=True, fetch=fetch)
        self._heal(needs.chunks, describes=False, fetch=fetch)
        return len(self.healed) > before

    def salvage_all(self) -> None:
        """Find all that can be read of damaged packs and is in no usable one: nobody knows what may need it."""
        damaged = self._damaged()
        for pack in damaged:
            directory = self._rest.directory(pack)
            if directory is not None:
                ids = [item for item in dict.fromkeys(row_ids(directory.rows)) if item not in self.healed]
                _, _, lost = self._lost(ids)
                self._take(self._rest.salvage(pack, lost, damaged=damaged), pack_key(pack), describes=False)

    def _heal(self, ids: Sequence[bytes], *, describes: bool, fetch: bool) -> None:
        done = self.healed.keys() | self.missing if self.missing else self.healed.keys()
        asked = [object_id for object_id in dict.fromkeys(ids) if object_id not in done]
        absent, stranded, lost = self._lost(asked)
        if not lost:
            return
        self.lost |= lost
        # One base may make many deltas whole. A delta of which some base is nowhere needs a copy that decodes alone.
        self._find(absent | stranded, describes=describes, fetch=fetch)
        _, _, lost = self._lost([object_id for object_id in asked if object_id not in self.healed])
        self._find(lost, describes=describes, fetch=fetch)
        if fetch:
            self.missing |= lost - self.healed.keys()

    def _lost(self, ids: Sequence[bytes]) -> tuple[set[bytes], set[bytes], set[bytes]]:
        """Return which objects are in no usable pack, which bases others lack, and which do not decode (invariant 7)."""
        if not ids:
            return set(), set(), set()
        resolved = self._store.objects.resolve(ids, usable=self._search.is_usable, known=self.healed)
        absent = {ids[at] for at in np.flatnonzero(~resolved.located.found).tolist()}
        lost = {ids[at] for at in np.flatnonzero(~resolved.found).tolist()}
        return absent, set(resolved.stranded) - self.healed.keys(), lost | absent

    def _find(self, wanted: set[bytes], *, describes: bool, fetch: bool) -> None:
        damaged = self._damaged()
        for pack in damaged:
            left = wanted - self.healed.keys()
            if left:
                found = self._rest.salvage(pack, left, damaged=damaged)
                self._take(found, pack_key(pack), describes=describes)
        left = wanted - self.healed.keys()
        if not fetch or not left:
            return
        for name, other in self._others.stores():
            left = wanted - self.healed.keys()
            if not left:
                return
            try:
                if self._write is None and not describes:
                    self.healed.update(dict.fromkeys(_there(other, sorted(left)), name))
                else:
                    self._take(_frames(other, sorted(left)), name, describes=describes)
            except BackendError as error:
                # Invariant 11: the report says so; what the others have is taken all the same.
                self._others.fail(name, error)

    def _damaged(self) -> list[bytes]:
        return sorted(self._search.found.keys() | self._search.apart)

    def _take(self, found: Iterable[EncodedFrames], place: str, *, describes: bool) -> None:
        for frames in found:
            ids = [header.object_id for header in frames.headers]
            if describes:
                self._plain.update(self._store.objects.decode(frames))
            if self._write is None:
                frames.release()
            else:
                self._write(frames)
            self.healed.update(dict.fromkeys(ids, place))


def _there(store: ModelStore, ids: Sequence[bytes]) -> list[bytes]:
    """Return the objects that a store has, as far as its packs say."""
    absent = store.objects.absent(ids)
    there = [object_id for object_id in ids if object_id not in absent]
    found = store.objects.resolve(there).found.tolist()
    return [object_id for object_id, decodes in zip(there, found, strict=True) if decodes]


def _frames(store: ModelStore, ids: Sequence[bytes]) -> Iterator[EncodedFrames]:
    """Yield the frames of those objects that can be read in a store, verified; deltas are encoded alone."""

    def keep_none(_: Located, deltas: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.zeros(len(deltas), np.bool_)

    source = FrameSource(
        store, max_concurrency=MAX_CONCURRENCY, bucket=TokenBucket(None), callback=None, keep_going=True
    )
    return source.frames(b"".join(ids), may_keep=keep_none)
