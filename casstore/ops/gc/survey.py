"""What a collector knows of a store, looked up in the order on which its decisions rest: tombstones, packs, records."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from casstore.errors import AccessDenied, BackendError, BackendUnavailable, ConfigError, IntegrityError
from casstore.machine.this_machine import store_folder
from casstore.machine.uses.leases import Leases
from casstore.ops.descriptions import kept_copies
from casstore.ops.gc.mark import Mark
from casstore.ops.gc.policy import MAX_SKEW
from casstore.ops.gc.roots import RootReader, Roots
from casstore.ops.gc.tombstones import list_tombstones

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from casstore.format.record import Record
    from casstore.ops.gc.policy import GcPolicy
    from casstore.ops.gc.tombstones import ListedTombstone
    from casstore.store.model_store import ModelStore

_LISTINGS = 5


class Survey:
    """One collector's picture of a store; `look` brings it up to date. For one thread.

    `two_phases` says that writers may work without the lock, as far as can be known without taking it. One made
    `by_index` only estimates: nothing may be deleted by it (invariant 5).
    """

    def __init__(
        self, store: ModelStore, policy: GcPolicy, *, now: float | None = None, by_index: bool = False
    ) -> None:
        self.store = store
        self.policy = policy
        self._now = now
        self.by_index = by_index
        self._ahead: float | None = None
        self.two_phases = works_in_two_phases(store)
        self.packs = store.objects.listed_packs(copies=kept_copies(store, "footers"), by_index=by_index)
        self.mark = Mark(store, self.packs, counts=policy.max_size is not None)
        self.reader = RootReader(store, policy, two_phases=self.two_phases)
        self.roots = Roots()
        self._named: tuple[Roots, set[bytes]] = self.roots, set()
        self.tombstones: list[ListedTombstone] = []
        self.quarantined: set[int] = set()
        self.repack = policy.repack
        """The share of a pack that must be needed, or it is rewritten."""
        self.is_short = False
        """Whether the store is larger than it may be: then even the youngest leftovers go."""

    def now(self) -> float:
        """Return the time by the storage's clock, in POSIX seconds, unless a time was given."""
        if self._now is not None:
            return self._now
        if self._ahead is None:
            self._ahead = self._measure_skew()
        return time.time() + self._ahead

    def _measure_skew(self) -> float:
        """Return by how many seconds the storage's clock is ahead of this machine's."""
        if self.by_index or not self.two_phases or self.store.backend.url.startswith("memory:"):
            return 0.0  # Measuring writes a file, which an estimate does not need.
        try:
            # It takes a small file, which a full disk may have no room for.
            ahead = self.store.backend.in_spare_room(self.store.backend.now, last=True) - time.time()
        except AccessDenied:
            return 0.0  # Nothing will be deleted either.
        if abs(ahead) > MAX_SKEW:
            raise ConfigError(
                f"The clocks of this machine and of {self.store.backend.url} differ by {abs(ahead):.0f} s: ages cannot be "
                "compared. Set this machine's clock, then collect again."
            )
        return ahead

    @contextlib.contextmanager
    def leases(self) -> Iterator[frozenset[str]]:
        """Give the refs that running pipelines of this machine use; until the end of the block, none is added."""
        try:
            with Leases(store_folder(self.store.store_id)).held() as held:
                yield held
        except OSError as error:
            # Invariant 8: what is in use is unknown.
            raise BackendError(
                f"Nothing was deleted, since nobody can say which models running pipelines use: {error}"
            ) from error

    def work_in_two_phases(self) -> None:
        """Take writers into account that work without the lock: values that were replaced stay readable for a while."""
        self.two_phases = True
        self._ahead = None
        self.reader.superseded = self.policy.superseded

    def look(self, *, own: Sequence[str] = ()) -> None:
        """Read all tombstones, then list the packs, then read all records; never in another order (design §8)."""
        for _ in range(_LISTINGS):
            now = self.now()
            self.read_tombstones(own)
            self.quarantined = {self.packs.number_of(pack) for pack in self.store.objects.quarantined()}
            self.packs.read()
            listed = {*self.packs.numbers()}
            try:
                self.read_records(now)
            except IntegrityError:
                self.packs.read()
                if listed.issubset(self.packs.numbers()):
                    raise
                # Invariant 8: a pack that another collector deleted meanwhile is no damage. Its refs were deleted, or its
                # objects are elsewhere: the next look shows which.
            else:
                return
        raise BackendUnavailable(
            f"Packs of {self.store.backend.url} kept vanishing while their refs were read. Nothing was deleted: try again later."
        )

    def read_tombstones(self, own: Sequence[str] = ()) -> None:
        """Read all tombstones; `own` are ours, which must be among them."""
        self.tombstones = list_tombstones(self.store.backend, own=own)

    def read_records(self, now: float) -> None:
        """Read all records, and mark what they need."""
        self.roots = self.reader.read(now)
        needed = self.roots.records.values()
        current = [record for record in needed if record in self.roots.heads.get(record.name, ())]
        replaced = [record for record in needed if record not in self.roots.heads.get(record.name, ())]
        self.mark.add(current)
        for _ in range(_LISTINGS):
            unlisted = self._unlisted()
            if not unlisted:
                if replaced:
                    self.mark.add_replaced(replaced)
                self.mark.prune_copies()
                return
            # Written since the packs were listed, with a record that was read after that.
            self.packs.read()
            self.mark.count_again()
            self.mark.add(current)
        raise BackendUnavailable(
            f"A listing of {self.store.backend.url} lacks the pack {min(unlisted).hex()}, which is there. Nothing was "
            "deleted: try again later."
        )

    def is_named(self, pack: bytes) -> bool:
        """Say whether a record of the last hour or two names a pack; those that keep nothing are read for the first answer."""
        if self._named[0] is not self.roots:
            self._named = self.roots, self.reader.packs_named_lately(self.roots)
        return pack in self._named[1]

    def release(self, records: Iterable[Record], objects: NDArray[np.int64]) -> None:
        """Do not need the objects any more that only these records need: this collection deletes their refs.

        If one of them turns out to be needed after all, since its ref stays or was written again, `look` finds out.
        """
        self.mark.forget(record.manifest for record in records if record.manifest is not None)
        self.packs.table.release(objects)

    def condemned(self) -> set[int]:
        """Return the packs that any tombstone names."""
        return {self.packs.number_of(pack) for item in self.tombstones for pack in item.packs}

    def good(self, *, without: Iterable[int] = ()) -> NDArray[np.bool_]:
        """Return the packs that count: listed, read, not condemned, not quarantined, and not in `without`."""
        bad = self.condemned() | self.quarantined | set(without)
        return self.packs.mask([number for number in self.packs.numbers() if number not in bad])

    def readable(self) -> NDArray[np.bool_]:
        """Return the packs from which frames may be copied: condemned ones, too, but no quarantined ones."""
        return self.packs.mask([number for number in self.packs.numbers() if number not in self.quarantined])

    def _unlisted(self) -> list[bytes]:
        """Return packs that are there, may hold what seems to be absent, and were not listed (invariant 8).

        If there are none, absence is proved: all packs were listed and all footers read. Else that is an error.
        """
        absent = self.mark.absent
        if not absent:
            return []
        name = absent[min(absent)]
        for item in self.packs.unreadable.values():
            if self.packs.number_of(item.pack) not in self.quarantined:
                raise type(item.error)(
                    f"Nothing was collected: {item.error} {name} needs objects that may be in it. Restore that pack, or "
                    f"run `casstore quarantine {name}`."
                ) from item.error
        hinted = {pack for record in self.roots.records.values() for pack in record.packs}
        hinted |= self.store.objects.packs_of(self.store.objects.find(sorted(absent))).keys()
        return [pack for pack in sorted(hinted) if not self.packs.is_listed(pack) and self.packs.exists(pack)]


def works_in_two_phases(store: ModelStore) -> bool:
    """Say whether packs go only some time after their tombstone: writers may work without the lock."""
    backend = store.backend
    return (
        not backend.url.startswith("file:")
        or backend.may_be_locked_by_others
        or backend.has_lockless_writers()
    )
