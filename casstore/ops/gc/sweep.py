"""The sweep: condemns packs, decides once more, copies out what only they have, and deletes them (design §8).

Every deletion rests on the same steps in the same order: our tombstone is written; all tombstones are read; packs are
listed; all records are read again; what is needed is in packs that no tombstone names, and was read from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.backend.oserrors import is_disk_full
from casstore.errors import BackendError, IntegrityError, ObjectNotFound
from casstore.ops.gc.candidates import superfluous, to_copy
from casstore.ops.gc.tombstones import write_tombstone

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from casstore.ops.gc.survey import Survey

_AT_ONCE = 1024
"""Packs that are deleted together, so that one fsync for each folder of theirs makes it durable."""

_ROUNDS = 64
_UNSEEN = 5


class Sweep:
    """Deletes condemned packs of one store, safely beside writers and other collectors. For one thread.

    `own` are the keys of its tombstones, `deleted` the packs that went, with their bytes, `kept` condemned ones that had to stay, with the reason;
    `bytes_written` counts the fresh packs of what was copied out.
    """

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self.own: list[str] = []
        self.deleted: dict[bytes, int] = {}
        self.kept: dict[bytes, str] = {}
        self.bytes_written = 0

    def condemn(self, packs: Collection[bytes]) -> None:
        """Write a tombstone. It is irrevocable: from now on no writer relies on these packs."""
        backend = self._survey.store.backend
        while packs:
            try:
                self.own.append(backend.in_spare_room(lambda: write_tombstone(backend, packs), last=True))
            except BackendError as error:  # noqa: PERF203  # once, as a rule
                # A full disk must be freed without a free byte, and a store that was made on one has no ballast.
                if not is_disk_full(error) or not self._survey.packs.make_room():
                    raise
            else:
                return

    def look(self) -> None:
        """Look at the store again, our own tombstones included."""
        self._survey.look(own=self.own)

    def copy_out(self, *, without: Collection[int] = ()) -> None:
        """Copy what is needed and in no good pack, other than `without`, into fresh packs.

        Frames that prove damaged stop counting, and another copy is looked for.
        """
        packs, table = self._survey.packs, self._survey.packs.table
        unseen = 0
        for _ in range(_ROUNDS):
            copying = to_copy(self._survey, without=without)
            rows = copying.rows
            if not rows.size:
                return
            try:
                fresh = packs.copy(rows, copying.as_stored)
            except (IntegrityError, ObjectNotFound):
                # Invariant 9: damaged frames are never copied; this finds out which ones they are.
                if not packs.verify(rows):
                    raise
                continue
            packs.read()
            listed = [packs.number_of(pack) for pack in fresh if packs.is_listed(pack)]
            self.bytes_written += sum(packs.size(number) for number in listed)
            # Verified before they were written (invariant 9).
            table.prove(np.flatnonzero(packs.mask(listed)[table.packs]))
            if len(listed) < len(fresh):
                # Another collector has moved it further already, or the listing lags behind (invariant 8).
                unseen += 1
                if unseen > _UNSEEN:
                    raise BackendError(
                        "Packs that were just written are not listed. Nothing that they replace was deleted."
                    )
        raise BackendError(
            "Packs kept vanishing while they were copied. Nothing was deleted: try again later."
        )

    def prepare(self, packs: Collection[int]) -> None:
        """Do beforehand what takes long: copy out what only these packs have, and verify what other packs have of it."""
        if packs:
            self._secure(packs, without=packs)

    def finish(self, doomed: Collection[int]) -> None:
        """Delete those of these packs, all of them condemned, that nothing needs any more."""
        survey, packs = self._survey, self._survey.packs
        table = packs.table
        condemned = survey.condemned()
        there = [number for number in packs.numbers() if number in doomed and number in condemned]
        if not there:
            return
        survivors = self._secure(there)
        # Invariant 2: another writer's pack counts only once its name is on the disk.
        packs.make_durable({int(number) for number in np.unique(table.packs[survivors])})
        # So does the record by which a ref no longer needs what goes, even if its writer was killed.
        survey.store.backend.make_durable(survey.roots.replacing())
        unsafe = self._unsafe()
        torn = superfluous(survey)
        stays = packs.mask([])
        stays[table.packs[unsafe[table.objects]]] = True
        going = []
        for number in there:
            pack = packs.id_of(number)
            if not packs.is_listed(pack):
                continue  # Another collector was faster.
            if number in packs.unreadable and number not in torn:
                self.kept[pack] = f"its footer cannot be read: {packs.unreadable[number].error}"
            elif stays[number]:
                self.kept[pack] = "it holds the last copy of something that is needed, and that is damaged."
            else:
                going.append(number)
        # Invariant 5: what they hold was decided by copies of their footers, perhaps; the packs themselves decide.
        differing = packs.confirm([number for number in going if number not in torn])
        self.kept.update((packs.id_of(number), reason) for number, reason in differing.items())
        going = [number for number in going if number not in differing]
        for start in range(0, len(going), _AT_ONCE):
            batch = going[start : start + _AT_ONCE]
            packs.delete(batch)
            self.deleted.update((packs.id_of(number), packs.size(number)) for number in batch)

    def _secure(self, doomed: Collection[int], *, without: Collection[int] = ()) -> NDArray[np.int64]:
        """Copy out what is needed, and read what survives of it elsewhere; return the rows on which it rests."""
        packs = self._survey.packs
        table = packs.table
        for _ in range(_ROUNDS):
            self.copy_out(without=without)
            good = self._survey.good(without=without)
            keepers = table.keepers(table.decodes(good), np.zeros(len(good), np.float64))
            concerned = table.covered(packs.mask(doomed)[table.packs]) | packs.salvageable(doomed)
            # Invariant 7: whoever relies on a delta relies on its bases.
            concerned |= table.bases_of(concerned, good)
            survivors = keepers[concerned[table.objects[keepers]]]
            # Invariant 9: a frame that was never read may be damaged, and then this pack has the last good copy.
            if not packs.verify(survivors[~table.proved()[survivors]]):
                return survivors
        raise BackendError(
            "Packs kept vanishing while they were collected. Nothing was deleted: try again later."
        )

    def _unsafe(self) -> NDArray[np.bool_]:
        """Return the objects that are needed and have no good copy, and whatever might serve as their bases."""
        table = self._survey.packs.table
        lost = table.live & ~table.covered(table.decodes(self._survey.good()))
        return lost | table.bases_of(lost)
