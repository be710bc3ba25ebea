"""Plans a sync: which refs it would write, and what would have to move for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.concurrency.fan_out import ask_all
from casstore.errors import ConfigError, IntegrityError
from casstore.format import names
from casstore.format.rows import Kind
from casstore.objects import frame_sizes, pack_target
from casstore.ops.sync.chosen import bases_first, choose_refs
from casstore.ops.sync.culprits import Culprits
from casstore.ops.sync.frames import ranges_of
from casstore.ops.sync.needs import Needs, needs_of, split
from casstore.ops.sync.ref_state import RefState, compare, same_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.errors import CasstoreError
    from casstore.format.record import Record
    from casstore.objects import Damage
    from casstore.store.model_store import ModelStore

MAX_CONCURRENCY = 8
"""Requests that are under way at once, unless the caller says otherwise."""

_FEW_NAMES = 8


@dataclass(frozen=True, slots=True)
class RefToWrite:
    """A ref that the destination would get.

    `record` is the source's; `seen` the number of the destination's newest record when that was looked at, 0
    if it showed none. `bytes_stored` are those that no ref before this one moves.
    """

    name: str
    record: Record
    state: RefState
    seen: int
    bytes_stored: int
    ids: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RefConflictFound:
    """A ref whose values in the two stores do not descend from one another; targets in hex."""

    name: str
    src_target: str
    dst_target: str
    reason: str = "each side has a value that the other one has not seen"


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What `execute` would move from `src` to `dst`, as things stood when this was made.

    `refs` would be written; `equal` have the same value already; `ahead` are newer in `dst` and left alone;
    `conflicts` are left alone, too. `objects`, of which `chunks` are chunks, would be new: `bytes_stored` as they are
    stored, `bytes_plain` as files. `reads` are requests to `src`, `puts` those to `dst`. With `keep_going`, what
    cannot be read is in `damaged` and left out.
    """

    src: ModelStore = field(repr=False)
    dst: ModelStore = field(repr=False)
    refs: tuple[RefToWrite, ...]
    equal: tuple[str, ...]
    ahead: tuple[str, ...]
    conflicts: tuple[RefConflictFound, ...]
    objects: int
    chunks: int
    bytes_stored: int
    bytes_plain: int
    reads: int
    puts: int
    overwrite: bool = False
    keep_going: bool = False
    damaged: tuple[Damage, ...] = ()

    @property
    def requests(self) -> int:
        """Requests that move data, to either side."""
        return self.reads + self.puts

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.refs

    def seconds(
        self,
        bandwidth_bytes_per_s: float,
        round_trip_s: float = 0.0,
        *,
        max_concurrency: int = MAX_CONCURRENCY,
    ) -> float:
        """Estimate how long `execute` takes on a link."""
        return self.bytes_stored / bandwidth_bytes_per_s + round_trip_s * self.requests / max_concurrency


def plan_sync(
    src: ModelStore,
    dst: ModelStore,
    refs: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    keep_going: bool = False,
    with_bases: bool = False,
) -> SyncPlan:
    """Plan what would have to move so that `dst` has these refs of `src`; changes nothing.

    `refs` are names, prefixes that end with "/", or model ids; None means all. A ref that has another value
    in `dst` is written if `src` has seen that value, and is a conflict otherwise unless `overwrite` is set
    (README.md), which also rewrites objects that `dst` only has in quarantined or truncated packs. `with_bases` copies the
    bases of deltas as well, so that those stay deltas whatever `dst` has. Raises RefNotFound
    for one that `src` does not have, IntegrityError for a model of `src` that is not whole; with `keep_going`,
    such models, and refs whose record cannot be read on either side, are named in the plan's `damaged`, and
    in the report's, and the rest is done.
    """
    if src.backend.url == dst.backend.url:
        raise ConfigError(f"{src.backend.url} is on both sides of this sync. Name two stores.")
    culprits = Culprits(keep_going=keep_going)
    chosen = choose_refs(src, refs, culprits)
    states = _RefStates(src, dst, chosen, overwrite=overwrite, culprits=culprits)
    condemned = dst.objects.quarantined() if overwrite else None
    if condemned is not None:
        states.mend(src, dst, chosen, condemned)
    to_write = bases_first(chosen, states.to_write)
    moves = _Moves.nothing()
    needs = Needs()
    if any(chosen[name].manifest is not None for name in to_write):
        dst.objects.refresh()
        src.objects.expect(list(dict.fromkeys(pack for name in to_write for pack in chosen[name].packs)))
        needs = needs_of(src, dst, (chosen[name] for name in to_write))
        if with_bases:
            needs.add_bases(src)
        if keep_going:
            needs.fail(_lost(src, dst, set().union(*map(split, needs.found.values())), condemned))
        to_write = _whole(chosen, to_write, needs, culprits)
        moves = _moves(src, dst, [needs.of(chosen[name]) for name in to_write], condemned)
    planned = tuple(
        RefToWrite(
            name,
            chosen[name],
            *states.to_write[name],
            size,
            needs.of(chosen[name]),
        )
        for name, size in zip(to_write, moves.shares or [0] * len(to_write), strict=True)
    )
    packs = -(-moves.bytes_stored // pack_target(dst.backend))
    return SyncPlan(
        src=src,
        dst=dst,
        refs=planned,
        equal=tuple(states.equal),
        ahead=tuple(states.ahead),
        conflicts=tuple(states.conflicts),
        objects=moves.objects,
        chunks=moves.chunks,
        bytes_stored=moves.bytes_stored,
        bytes_plain=moves.bytes_plain,
        reads=moves.reads,
        puts=2 * packs + len(planned),
        overwrite=overwrite,
        keep_going=keep_going,
        damaged=tuple(culprits.found),
    )


def _whole(chosen: dict[str, Record], wanted: Sequence[str], needs: Needs, culprits: Culprits) -> list[str]:
    """Return the wanted refs without damage, and report the others."""
    whole = []
    for name in wanted:
        error = needs.error(chosen[name])
        if error is None:
            whole.append(name)
        else:
            culprits.blame(name, error)
    return whole


def _lost(
    src: ModelStore, dst: ModelStore, ids: set[bytes], condemned: frozenset[bytes] | None
) -> dict[bytes, CasstoreError]:
    """Return objects that `dst` lacks (`ObjectStore.missing`) and no pack of `src` holds."""
    return src.objects.absent(sorted(dst.objects.missing(ids, condemned=condemned)))


class _RefStates:
    """How each chosen ref stands in `dst`."""

    def __init__(
        self,
        src: ModelStore,
        dst: ModelStore,
        chosen: dict[str, Record],
        *,
        overwrite: bool,
        culprits: Culprits,
    ) -> None:
        self._culprits = culprits
        self.equal: list[str] = []
        self.ahead: list[str] = []
        self.conflicts: list[RefConflictFound] = []
        self.to_write: dict[str, tuple[RefState, int]] = {}
        theirs, unread = _records_of(dst, chosen)
        differing: list[str] = []
        for name, record in sorted(chosen.items()):
            other = theirs.get(name)
            if name in unread and not overwrite:
                # Invariant 8: its value is unknown, so only a person may decide to replace it.
                culprits.blame(name, unread[name])
            elif other is None:
                self.to_write[name] = (RefState.ABSENT, 0)
            elif same_value(record, other):
                self.equal.append(name)
            else:
                differing.append(name)
        for name, histories in zip(differing, _histories(src, dst, differing, culprits), strict=True):
            if histories is None:
                continue
            ours, others = histories
            state = compare(ours, others) if ours and ours[-1].target is not None else RefState.EQUAL
            if state is RefState.CONFLICT and not overwrite:
                self.conflicts.append(conflict_of(chosen[name], theirs[name]))
            elif state is RefState.AHEAD and not overwrite:
                self.ahead.append(name)
            elif state is not RefState.EQUAL:
                self.to_write[name] = (state, others[-1].seq if others else 0)
        self._theirs = theirs

    def mend(
        self, src: ModelStore, dst: ModelStore, chosen: dict[str, Record], condemned: frozenset[bytes]
    ) -> None:
        """Write equal refs, too, of which `dst` has an object in no pack that is whole and not `condemned`."""
        dst.objects.refresh()
        theirs = self._theirs
        # Where the manifests of one model differ, the objects of `dst`'s manifest count there.
        differ = {name for name in self.equal if theirs[name].manifest != chosen[name].manifest}
        same = [name for name in self.equal if name not in differ]
        needs = needs_of(src, dst, (chosen[name] for name in same))
        there = needs_of(dst, dst, (theirs[name] for name in differ))
        whole = _whole(chosen, same, needs, self._culprits)
        joined = {name: split(needs.of(chosen[name])) for name in whole}
        joined |= {
            name: split(there.of(theirs[name])) for name in differ if there.error(theirs[name]) is None
        }
        lacking = dst.objects.missing(set().union(*joined.values()), condemned=condemned)
        good = {name for name, ids in joined.items() if lacking.isdisjoint(ids)}
        for name in {*whole, *differ} - good:
            self.to_write[name] = (RefState.EQUAL, theirs[name].seq)
        self.equal = [name for name in self.equal if name in good]


def conflict_of(record: Record, other: Record) -> RefConflictFound:
    """Describe a conflict between a record of the source and one of the destination."""
    return RefConflictFound(record.name, (record.target or b"").hex(), (other.target or b"").hex())


def _records_of(
    store: ModelStore, chosen: dict[str, Record]
) -> tuple[dict[str, Record], dict[str, CasstoreError]]:
    """Return the store's records of these refs, and why others cannot be read."""
    unread: dict[str, CasstoreError] = {}
    if len(chosen) <= _FEW_NAMES:

        def look(name: str) -> Record | None:
            try:
                return store.record(name)
            except IntegrityError as error:
                # Invariant 11: the error is not lost: the caller raises or reports it.
                unread[name] = error
                return None

        found = ask_all(look, list(chosen))
        return {record.name: record for record in found if record is not None}, unread
    namespaces = sorted({name.partition("/")[0] for name in chosen})
    prefixes = [""] if len(namespaces) == len(names.NAMESPACES) else [f"{item}/" for item in namespaces]

    def note(damage: Damage) -> None:
        unread[damage.name] = IntegrityError(damage.reason)

    return {
        name: record for item in prefixes for name, record in store.refs(item, on_damage=note).items()
    }, unread


def _histories(
    src: ModelStore, dst: ModelStore, wanted: Sequence[str], culprits: Culprits
) -> list[tuple[list[Record], list[Record]] | None]:
    def read(name: str) -> tuple[list[Record], list[Record]] | None:
        found = []
        with culprits.about(name):
            found.append((src.history(name), dst.history(name)))
        return found[0] if found else None

    return ask_all(read, wanted)


class _Moves(NamedTuple):
    """What moves: `shares` are stored bytes for each ref that no earlier one moves."""

    shares: list[int]
    objects: int
    chunks: int
    bytes_stored: int
    bytes_plain: int
    reads: int

    @classmethod
    def nothing(cls) -> _Moves:
        return cls([], 0, 0, 0, 0, 0)


def _moves(
    src: ModelStore, dst: ModelStore, needs: Sequence[bytes], condemned: frozenset[bytes] | None
) -> _Moves:
    """Measure what `dst` lacks (`ObjectStore.missing`) of what each ref needs, joined ids."""
    owner: dict[bytes, int] = {}
    for number, joined in enumerate(needs):
        for object_id in split(joined):
            owner.setdefault(object_id, number)
    lacking = dst.objects.missing(owner, condemned=condemned)
    missing = {object_id: number for object_id, number in owner.items() if object_id in lacking}
    if not missing:
        return _Moves([0] * len(needs), 0, 0, 0, 0, 0)
    located = src.objects.locate(b"".join(missing))
    wanted = np.arange(len(missing))
    sizes = frame_sizes(located, wanted)
    shares = np.bincount(list(missing.values()), weights=sizes, minlength=len(needs)).astype(np.int64)
    return _Moves(
        shares=shares.tolist(),
        objects=len(missing),
        chunks=int((located.rows["kind"] == Kind.CHUNK).sum()),
        bytes_stored=int(sizes.sum()),
        bytes_plain=int(located.rows["raw"].sum(dtype=np.int64)),
        reads=len(ranges_of(located, wanted)),
    )
