"""Where the bytes of a store are: by ref or by folder of names, what only they hold, and what removing them would free."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.errors import RefNotFound
from casstore.format.names import PREFIX as REF_PREFIX
from casstore.format.names import names_model
from casstore.format.rows import ROW
from casstore.objects import INDEX_PREFIX, PACK_PREFIX
from casstore.ops.gc.policy import GcPolicy
from casstore.ops.holdings import survey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.objects import Damage
    from casstore.ops.holdings import Holdings
    from casstore.refs.rows import RefRow
    from casstore.store.model_store import ModelStore


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one ref takes, or all refs of one folder of names; all but `refs` and `missing` in bytes.

    `bytes_logical` is the size of its models as files. `bytes_stored` are the frames that it needs, with the bases of
    deltas, each once; `bytes_bases` those that only deltas rest on, which are chunks of the refs in `rests_on`; `bytes_saved` is about
    what its deltas would take more without bases; `bytes_alone` those of them that nothing else needs, `bytes_shared` the others. `bytes_freed` is
    what a collection frees at once if this row alone is removed: a pack of which half or more is needed stays as it is.
    `held_by` are refs outside of it that name the same models. `missing` objects are in no pack.
    """

    name: str
    refs: int
    bytes_logical: int
    bytes_stored: int
    bytes_alone: int
    bytes_freed: int
    held_by: tuple[str, ...] = ()
    missing: int = 0
    bytes_bases: int = 0
    bytes_saved: int = 0
    rests_on: tuple[str, ...] = ()

    @property
    def bytes_shared(self) -> int:
        """Bytes that others need as well."""
        return self.bytes_stored - self.bytes_alone


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Everything in a store's folder or bucket, in bytes; the sum of all is `bytes_total`.

    `referenced` are frames that refs need, `unneeded` frames that no ref needs and second copies, `pack_overhead` headers
    and ends of packs and lists of bases, `unreadable` packs of which nobody knows what they hold, `other` tombstones,
    notes, the format file, and the space that a local store keeps for a full disk.
    """

    referenced: int
    unneeded: int
    pack_overhead: int
    unreadable: int
    index: int
    records: int
    other: int
    temporaries: int

    @property
    def bytes_total(self) -> int:
        """Bytes of all files."""
        return (
            self.referenced
            + self.unneeded
            + self.pack_overhead
            + self.unreadable
            + self.index
            + self.records
            + self.other
            + self.temporaries
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Where the bytes of a store are. `rows` are sorted by what removing them would free, the most first.

    `together` is what all of them take together, and what removing all of them at once would free: more than the sum, if
    they share what nobody else needs. `damaged` tells what could not be read; then figures are too low.
    """

    rows: tuple[UsageRow, ...]
    together: UsageRow
    totals: UsageTotals
    damaged: tuple[Damage, ...] = ()


def du(store: ModelStore, prefixes: Sequence[str] = (), *, depth: int | None = None) -> Usage:
    """Measure what refs take, all or those whose names start with one of `prefixes`, without opening packs.

    With `depth`, a row is for all refs whose names agree in so many parts. Runs and evaluations have rows only if packs hold
    something of theirs. A ref that cannot be read is left out, and `on_damage` called. Raises RefNotFound for a prefix
    with which no name starts, BackendError for a store that fails.
    """
    holdings = survey(store)
    listed = [ref for ref in holdings.refs if not prefixes or ref.name.startswith(tuple(prefixes))]
    for prefix in prefixes:
        if not any(ref.name.startswith(prefix) for ref in listed):
            raise RefNotFound(f"No ref starts with {prefix!r}. `casstore ls` lists them.")
    shown = {ref.name for ref in listed}
    others = [ref for ref in holdings.refs if ref.name not in shown]
    groups: dict[str, list[RefRow]] = defaultdict(list)
    for ref in listed:
        if holdings.of(ref).objects.size or names_model(ref.name):
            groups["/".join(ref.name.split("/")[:depth]) if depth else ref.name].append(ref)
    owners = holdings.owners([*groups.values(), others])
    packs = _Packs(holdings)
    alone = _sums(owners, holdings.costs, len(groups))
    freed = packs.freed_by(owners, len(groups))
    naming: dict[bytes, list[str]] = defaultdict(list)
    for ref in holdings.refs:
        if names_model(ref.name):
            naming[ref.target].append(ref.name)
    rows = [
        _row(holdings, name, refs, alone=int(alone[number]), freed=int(freed[number]), naming=naming)
        for number, (name, refs) in enumerate(groups.items())
    ]
    every = [ref for refs in groups.values() for ref in refs]
    owners = holdings.owners([every, others])
    together = _row(
        holdings,
        "",
        every,
        alone=int(_sums(owners, holdings.costs, 1)[0]),
        freed=int(packs.freed_by(owners, 1)[0]),
        naming=naming,
    )
    for damage in holdings.damaged:
        store.on_damage(damage)
    return Usage(
        rows=tuple(sorted(rows, key=lambda row: (-row.bytes_freed, -row.bytes_alone, row.name))),
        together=together,
        totals=_totals(store, holdings, packs),
        damaged=tuple(holdings.damaged),
    )


class _Packs:
    """What packs hold and what of it is needed, by their numbers."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        packs, table = holdings.packs, holdings.packs.table
        count = len(packs.mask([]))
        self.sizes = np.zeros(count, np.int64)
        for number in packs.numbers():
            self.sizes[number] = packs.size(number)
        self.frames = table.bytes_by_pack(np.ones(len(table), np.bool_), count).astype(np.int64)
        self._needed = np.flatnonzero(holdings.rows >= 0)
        self._pack = table.packs[holdings.rows[self._needed]].astype(np.int64)
        self._costs = holdings.costs[self._needed]
        self._live = np.bincount(self._pack, weights=self._costs, minlength=count).astype(np.int64)
        self._rows = np.bincount(self._pack, minlength=count)

    def freed_by(self, owners: NDArray[np.int32], groups: int) -> NDArray[np.int64]:
        """Return by group what a collection frees beyond what it frees anyway, without what the group alone needs."""
        owner = owners[self._needed]
        own = np.flatnonzero((owner >= 0) & (owner < groups))
        pairs, which = np.unique(
            owner[own] * np.int64(len(self.sizes)) + self._pack[own], return_inverse=True
        )
        group, pack = np.divmod(pairs, max(1, len(self.sizes)))
        bytes_own = np.bincount(which, weights=self._costs[own], minlength=len(pairs)).astype(np.int64)
        rows_own = np.bincount(which, minlength=len(pairs))
        without = self._freed(pack, self._live[pack] - bytes_own, self._rows[pack] - rows_own)
        more = without - self._freed(pack, self._live[pack], self._rows[pack])
        return np.bincount(group, weights=more, minlength=groups).astype(np.int64)

    def _freed(
        self, pack: NDArray[np.int64], live: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return what a collection frees of packs of which so much is needed: candidates.py has the rule."""
        sparse = live - ROW.itemsize * rows < GcPolicy().repack * self.frames[pack]
        freed: NDArray[np.int64] = np.where(sparse, self.sizes[pack] - live, 0)
        return freed


def _row(
    holdings: Holdings,
    name: str,
    refs: Sequence[RefRow],
    *,
    alone: int,
    freed: int,
    naming: dict[bytes, list[str]],
) -> UsageRow:
    held = {ref.manifest: holdings.of(ref) for ref in refs}
    inside = {ref.name for ref in refs}
    targets = {ref.target for ref in refs if names_model(ref.name)}
    outside = sorted({other for target in targets for other in naming[target]} - inside)
    return UsageRow(
        name=name,
        refs=len(refs),
        bytes_logical=sum(item.size for item in held.values()),
        bytes_stored=holdings.bytes_of(refs),
        bytes_alone=alone,
        bytes_freed=freed,
        held_by=tuple(outside),
        missing=sum(item.lacking for item in held.values()),
        bytes_bases=holdings.bytes_of_bases(refs),
        bytes_saved=holdings.bytes_saved(refs),
        rests_on=holdings.rests_on(refs),
    )


def _sums(owners: NDArray[np.int32], costs: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    own = np.flatnonzero((owners >= 0) & (owners < groups))
    return np.bincount(owners[own], weights=costs[own], minlength=groups).astype(np.int64)


def _totals(store: ModelStore, holdings: Holdings, packs: _Packs) -> UsageTotals:
    frames = holdings.bytes_needed + holdings.bytes_unneeded
    unreadable = sum(holdings.packs.size(number) for number in holdings.packs.unreadable)
    index = records = 0
    other = store.backend.spare_bytes()
    for entry in store.backend.list(""):
        if entry.key.startswith(INDEX_PREFIX):
            index += entry.size
        elif entry.key.startswith(REF_PREFIX):
            records += entry.size
        elif not entry.key.startswith(PACK_PREFIX):
            other += entry.size
    return UsageTotals(
        referenced=holdings.bytes_needed,
        unneeded=holdings.bytes_unneeded,
        pack_overhead=int(packs.sizes.sum()) - frames - unreadable,
        unreadable=unreadable,
        index=index,
        records=records,
        other=other,
        temporaries=sum(entry.size for entry in store.backend.list_temporaries()),
    )
