"""What a sync would do: which refs it would write, and what would have to move for them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.errors import ConfigError, IntegrityError, RefNotFound
from casstore.format import names
from casstore.format.rows import Kind, id_words
from casstore.ops.sync.needs import needs_of, split
from casstore.ops.sync.ranges import frame_sizes, plan_ranges
from casstore.ops.sync.standing import Standing, compare, same_value
from casstore.store.packs import PACK_TARGET
from casstore.store.publish import read_quarantine
from casstore.store.round_trips import ask_all, ask_each, is_far

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casstore.format.record import Record
    from casstore.store.store import Store

REMOTE_PACK_TARGET = 32 << 20
"""Bytes at which a pack for a remote store is closed: several are sent at once, each from a spool."""

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
    standing: Standing
    seen: int
    bytes_stored: int
    ids: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RefConflictFound:
    """A ref whose values in the two stores do not follow from one another; targets in hex."""

    name: str
    src_target: str
    dst_target: str
    reason: str = "each side has a value that the other one has not seen"


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What `execute` would move from `src` to `dst`, as things stood when this was made.

    `refs` would be written; `equal` say the same already; `ahead` are newer in `dst` and left alone;
    `conflicts` are left alone, too. `objects`, of which `chunks` are chunks, would be new: `bytes_stored` as they are
    stored, `bytes_plain` as files. `reads` are requests to `src`, `puts` those to `dst`.
    """

    src: Store = field(repr=False)
    dst: Store = field(repr=False)
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
    src: Store, dst: Store, refs: Sequence[str] | None = None, *, overwrite: bool = False
) -> SyncPlan:
    """Say what would have to move so that `dst` has these refs of `src`; changes nothing.

    `refs` are names, prefixes that end with "/", or model ids; None means all. A ref that has another value
    in `dst` is written if `src` has seen that value, and is a conflict otherwise unless `overwrite` is set
    (README.md), which also stores anew what `dst` only has in packs that were set apart. Raises RefNotFound
    for one that `src` does not have, IntegrityError for a model of `src` that is not whole.
    """
    if src.backend.url == dst.backend.url:
        raise ConfigError(f"{src.backend.url} is both sides of this sync. Name two stores.")
    chosen = _choose(src, refs)
    standings = _Standings(src, dst, chosen, overwrite=overwrite)
    usable = _standing_packs(dst) if overwrite else None
    if usable is not None:
        standings.mend(src, dst, chosen, usable)
    to_write = sorted(standings.to_write, key=lambda name: (not names.names_model(name), name))
    moves = _Moves.nothing()
    needs: dict[bytes, bytes] = {}
    if any(chosen[name].manifest is not None for name in to_write):
        dst.index.refresh()
        src.index.learn(list(dict.fromkeys(pack for name in to_write for pack in chosen[name].packs)))
        needs = needs_of(src, dst, (chosen[name] for name in to_write))
        moves = _moves(src, dst, [needs.get(chosen[name].manifest or b"", b"") for name in to_write], usable)
    planned = tuple(
        RefToWrite(
            name,
            chosen[name],
            *standings.to_write[name],
            size,
            needs.get(chosen[name].manifest or b"", b""),
        )
        for name, size in zip(to_write, moves.shares or [0] * len(to_write), strict=True)
    )
    packs = -(-moves.bytes_stored // pack_target(dst))
    return SyncPlan(
        src=src,
        dst=dst,
        refs=planned,
        equal=tuple(standings.equal),
        ahead=tuple(standings.ahead),
        conflicts=tuple(standings.conflicts),
        objects=moves.objects,
        chunks=moves.chunks,
        bytes_stored=moves.bytes_stored,
        bytes_plain=moves.bytes_plain,
        reads=moves.reads,
        puts=2 * packs + len(planned),
        overwrite=overwrite,
    )


def pack_target(dst: Store) -> int:
    """Return the size at which packs for this store are closed."""
    return REMOTE_PACK_TARGET if is_far(dst.backend) else PACK_TARGET


def _choose(src: Store, refs: Sequence[str] | None) -> dict[str, Record]:
    """Return the source's records that are meant, by name."""
    if refs is None:
        return src.refs()
    found = ask_each(src.backend, lambda item: _meant(src, item), refs)
    return {name: record for part in found for name, record in part.items()}


def _meant(src: Store, item: str) -> dict[str, Record]:
    """Return the records that one name, prefix or model id means."""
    if item.endswith("/"):
        found = src.refs(item)
        if not found and item[:-1] not in names.NAMESPACES:
            raise RefNotFound(f"No ref of {src.backend.url} starts with {item!r}.")
        return found
    if item.partition("/")[0] in names.NAMESPACES and (record := src.record(item)) is not None:
        return {item: record}
    resolved = src.resolve(item)
    if resolved.ref.partition("/")[2] == item:
        return {resolved.ref: resolved.record}
    # An id says which model, not under which of its names: the one that adding it gives, else the first.
    named = [row.name for row in src.find(target=resolved.model_id) if names.names_model(row.name)]
    name = min(named, key=lambda name: (name != f"models/{resolved.model_id}", name), default=resolved.ref)
    record = src.record(name)
    return {resolved.ref: resolved.record} if record is None else {name: record}


class _Standings:
    """How each chosen ref stands in `dst`."""

    def __init__(self, src: Store, dst: Store, chosen: dict[str, Record], *, overwrite: bool) -> None:
        self.equal: list[str] = []
        self.ahead: list[str] = []
        self.conflicts: list[RefConflictFound] = []
        self.to_write: dict[str, tuple[Standing, int]] = {}
        theirs = _records_of(dst, chosen)
        differing: list[str] = []
        for name, record in sorted(chosen.items()):
            other = theirs.get(name)
            if other is None:
                self.to_write[name] = (Standing.ABSENT, 0)
            elif same_value(record, other):
                self.equal.append(name)
            else:
                differing.append(name)
        for name, (ours, others) in zip(differing, _histories(src, dst, differing), strict=True):
            standing = compare(ours, others) if ours and ours[-1].target is not None else Standing.EQUAL
            if standing is Standing.CONFLICT and not overwrite:
                self.conflicts.append(conflict_of(chosen[name], theirs[name]))
            elif standing is Standing.AHEAD and not overwrite:
                self.ahead.append(name)
            elif standing is not Standing.EQUAL:
                self.to_write[name] = (standing, others[-1].seq if others else 0)
        self._theirs = theirs

    def mend(self, src: Store, dst: Store, chosen: dict[str, Record], usable: Callable[[int], bool]) -> None:
        """Write equal refs, too, of which `dst` has an object in no pack that is `usable`."""
        dst.index.refresh()
        theirs = self._theirs
        differ = [name for name in self.equal if theirs[name].manifest != chosen[name].manifest]
        needs = needs_of(src, dst, (chosen[name] for name in set(self.equal).difference(differ)))
        # Where the manifests of one model differ, it is that of `dst` whose objects count there.
        needs.update(_needs_there(dst, [theirs[name] for name in differ]))
        equal = []
        for name in self.equal:
            ids = needs.get(theirs[name].manifest or b"") if theirs[name].manifest else b""
            if ids is not None and dst.index.locate(ids, usable=usable).found.all():
                equal.append(name)
            else:
                self.to_write[name] = (Standing.EQUAL, theirs[name].seq)
        self.equal = equal


def _needs_there(store: Store, records: list[Record]) -> dict[bytes, bytes]:
    """Return what `needs_of` does of one store's own records, without those that are not whole."""
    try:
        return needs_of(store, store, records)
    except IntegrityError:
        # Invariant 9: a model that is damaged there is written anew; which one it is, is asked one by one.
        found: dict[bytes, bytes] = {}
        for record in records:
            with contextlib.suppress(IntegrityError):
                found.update(needs_of(store, store, [record]))
        return found


def _standing_packs(store: Store) -> Callable[[int], bool] | None:
    """Return what says of a pack's number that it was not set apart; None if none was."""
    damaged = read_quarantine(store.backend)
    return (lambda number: store.index.pack_id(number) not in damaged) if damaged else None


def conflict_of(record: Record, other: Record) -> RefConflictFound:
    """Describe a conflict between a record of the source and one of the destination."""
    return RefConflictFound(record.name, (record.target or b"").hex(), (other.target or b"").hex())


def _records_of(store: Store, chosen: dict[str, Record]) -> dict[str, Record]:
    if len(chosen) <= _FEW_NAMES:
        found = ask_all(store.record, list(chosen))
        return {record.name: record for record in found if record is not None}
    namespaces = sorted({name.partition("/")[0] for name in chosen})
    if len(namespaces) == len(names.NAMESPACES):
        return store.refs()
    return {name: record for item in namespaces for name, record in store.refs(f"{item}/").items()}


def _histories(src: Store, dst: Store, wanted: Sequence[str]) -> list[tuple[list[Record], list[Record]]]:
    return ask_all(lambda name: (src.history(name), dst.history(name)), wanted)


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


def _moves(src: Store, dst: Store, needs: Sequence[bytes], usable: Callable[[int], bool] | None) -> _Moves:
    """Measure what `dst` lacks, in `usable` packs, of the objects that each ref needs, joined ids."""
    owner: dict[bytes, int] = {}
    for number, joined in enumerate(needs):
        for object_id in split(joined):
            owner.setdefault(object_id, number)
    ids = b"".join(owner)
    missing = np.flatnonzero(~dst.index.locate(ids, usable=usable).found)
    if not missing.size:
        return _Moves([0] * len(needs), 0, 0, 0, 0, 0)
    words = id_words(ids)[missing]
    located = src.objects.locate(words.astype(">u8").tobytes())
    sizes = frame_sizes(located)
    owners = np.fromiter(owner.values(), np.int64, len(owner))[missing]
    shares = np.bincount(owners, weights=sizes, minlength=len(needs)).astype(np.int64)
    return _Moves(
        shares=shares.tolist(),
        objects=len(missing),
        chunks=int((located.rows["kind"] == Kind.CHUNK).sum()),
        bytes_stored=int(sizes.sum()),
        bytes_plain=int(located.rows["raw"].sum(dtype=np.int64)),
        reads=len(plan_ranges(located, np.arange(len(missing)))),
    )
