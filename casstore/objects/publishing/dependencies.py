"""What one publish relies on: which packs its records depend on, and which objects those hold (design §8).

A delta depends on the packs of its bases as on its own (invariant 7): a missing base is copied, or else the delta is
written again without bases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.objects.bases import Copy, resolve
from casstore.objects.keys import pack_key
from casstore.objects.publishing.presence import PresentPacks, read_tombstones

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from casstore.backend.base import Backend
    from casstore.format.rows import Rows
    from casstore.objects.bases import Resolved
    from casstore.objects.index.index import Index
    from casstore.objects.index.located import Located
    from casstore.objects.publishing.pack_writer import EncodedFrames

MAX_HINTS = 32
"""Packs that a record names, at most, as those that hold its objects."""


class Dependencies:
    """The packs that the records of a publish depend on, and the objects that it writes itself. For one thread.

    `durable` are packs that are known to be durable where they are; it grows, and may be shared by publishes.
    """

    def __init__(self, backend: Backend, index: Index, durable: set[bytes]) -> None:
        self._backend = backend
        self._index = index
        self._durable = durable
        self._condemned: frozenset[bytes] = frozenset()
        self._damaged: frozenset[bytes] = frozenset()
        self._present = PresentPacks(backend, index, condemned=self._is_condemned)
        self._depends: dict[bytes, list[bytes]] = {}
        """The packs, and joined ids of the objects in each that are needed."""
        self._deltas: set[bytes] = set()
        self._are_judged = False
        """Whether all deltas decoded when each pack depended on was last looked at."""
        self._own: set[bytes] = set()
        self._own_deltas: dict[bytes, Copy] = {}

    def known(self, ids: Sequence[bytes]) -> NDArray[np.bool_]:
        """Say which objects need not be written; the record will depend on the packs that hold those.

        An object in a pack that is gone, truncated or condemned counts as unknown, and so does a delta that
        lacks a base: it is written again.
        """
        resolved = self._resolve(ids)
        found = resolved.found
        for number, positions in resolved.located.by_pack(found):
            needed = resolved.located.rows["id"][positions].tobytes()
            self._depends.setdefault(self._index.pack_id(number), []).append(needed)
        self._lean_on(resolved.needed)
        self._note_deltas(resolved.deltas)
        for at in np.flatnonzero(~found).tolist():
            found[at] = ids[at] in self._own
        return found

    def ranks(self, ids: Sequence[bytes]) -> list[int | None]:
        """Return the rank of the frame of each object that the record may depend on; None where there is none."""
        resolved = self._resolve(ids)
        ranks: list[int | None] = resolved.located.rows["rank"].tolist()
        for at in np.flatnonzero(~resolved.found).tolist():
            copy = self._written(ids[at])
            ranks[at] = None if copy is None else copy.rank
        return ranks

    def _unknown(self, ids: list[bytes]) -> set[bytes]:
        return {object_id for object_id, known in zip(ids, self.known(ids), strict=True) if not known}

    def _hints(self) -> tuple[bytes, ...]:
        return tuple(sorted(self._depends)[:MAX_HINTS])

    def _writes(self, frames: EncodedFrames) -> None:
        """Note frames that are in no index yet: `_check_packs` judges those that have bases."""
        self._own.update(header.object_id for header in frames.headers)
        deltas = {item.object_id: Copy(item.rank, item.bases) for item in frames.headers if item.bases}
        if deltas:
            self._own_deltas.update(deltas)
            self._note_deltas(deltas)

    def _note_deltas(self, ids: Collection[bytes]) -> None:
        if ids:
            self._deltas.update(ids)
            self._are_judged = False

    def _check_packs(self) -> tuple[bool, list[bytes]]:
        """Read the tombstones, then look at each pack depended on; depend no longer on those that are lost.

        Returns whether any is, the objects that were in them, and the deltas that lack a base now.
        """
        self._condemned = read_tombstones(self._backend) | self._damaged
        self._present.forget()
        self._present.ask(map(self._index.number_of, self._depends))
        lost = [pack for pack in self._depends if not self._present.is_usable(self._index.number_of(pack))]
        if lost:
            self._index.refresh()
        joined = b"".join(part for pack in lost for part in self._depends.pop(pack))
        ids = [joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)]
        # Invariant 7: a delta that decoded with packs that are all there still, decodes.
        stranded = [] if self._are_judged and not lost else self._without_bases()
        self._are_judged = not lost and not stranded
        return bool(lost), ids + stranded

    def _without_bases(self) -> list[bytes]:
        """Return the deltas, own ones included, that no longer decode; depend on what the others need, their bases too."""
        if not self._deltas:
            return []
        deltas, self._deltas = sorted(self._deltas), set()
        self._own.difference_update(deltas)
        self._own_deltas.clear()
        return sorted(self._unknown(deltas))

    def _make_durable(self) -> None:
        """Make durable what other writers may have just published, before we rely on it (invariant 2)."""
        fresh = sorted(self._depends.keys() - self._durable)
        if fresh:
            self._backend.make_durable(pack_key(pack) for pack in fresh)
            self._durable.update(fresh)

    def _resolve(self, ids: Sequence[bytes]) -> Resolved:
        return resolve(self._locate, ids, written=self._written)

    def _locate(self, ids: Sequence[bytes] | bytes) -> Located:
        return self._present.locate(ids)

    def _written(self, object_id: bytes) -> Copy | None:
        """Return rank and bases of the frame that this publish writes for an object, None if it writes none."""
        return self._own_deltas.get(object_id) or (Copy(0, ()) if object_id in self._own else None)

    def _lean_on(self, bases: Rows) -> None:
        """Depend on the packs of bases, but not on the bases themselves: a delta that lacks one can be rewritten."""
        for number in set(bases["pack"].tolist()):
            self._depends.setdefault(self._index.pack_id(number), [])

    def _is_condemned(self, number: int) -> bool:
        """Say whether nothing new may rely on a pack: a collector will delete it, or it is damaged."""
        return self._index.pack_id(number) in self._condemned or self._index.is_avoided(number)
