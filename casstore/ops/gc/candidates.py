"""Chooses the packs that may go: those that nothing needs, and those of which little is needed."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.format import marks
from casstore.objects import pack_overhead
from casstore.ops.gc.policy import HOUR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from casstore.backend.base import Backend
    from casstore.ops.gc.survey import Survey

_SHORT_SHARE = 20
_SHORT_BYTES = 10 << 30


@dataclass(frozen=True, slots=True)
class Candidates:
    """Packs by number. `unneeded` hold nothing that only they have, `sparse` little; `young` must wait.

    `kept_bytes` is what the `kept_frames` that are needed of sparse packs take in a fresh pack.
    """

    unneeded: tuple[int, ...] = ()
    sparse: tuple[int, ...] = ()
    young: tuple[int, ...] = ()
    kept_bytes: int = 0
    kept_frames: int = 0


@dataclass(frozen=True, slots=True)
class _Shares:
    """How many bytes of each pack's frames there are, and how many are needed, by the pack's number.

    `keepers` are the rows that are needed. Only packs in `choice` may go.
    """

    total: NDArray[np.float64]
    needed: NDArray[np.float64]
    keepers: NDArray[np.int64]
    choice: tuple[int, ...]


def choose(survey: Survey) -> Candidates:
    """Choose among the packs that no tombstone names; all of it is a proposal, and is decided once more later."""
    shares = _shares(survey)
    now, limit = survey.now(), _least_age(survey)
    unneeded, sparse, young = [], [], []
    for number in shares.choice:
        is_unneeded = shares.needed[number] == 0
        if not is_unneeded and (
            shares.needed[number] >= survey.repack * shares.total[number] or number in survey.quarantined
        ):
            continue
        if not _is_old_enough(survey, number, now=now, limit=limit):
            young.append(number)
        elif is_unneeded:
            unneeded.append(number)
        else:
            sparse.append(number)
    moved = _moved(survey)
    sparse = _without_bases_of_deltas(survey, sparse, moved)
    if not sparse:
        return Candidates(tuple(unneeded), young=tuple(young))
    copied = to_copy(survey, without=sparse, of=sparse, moved=moved)
    return Candidates(tuple(unneeded), tuple(sparse), tuple(young), copied.packed, len(copied.rows))


def _without_bases_of_deltas(survey: Survey, sparse: list[int], moved: NDArray[np.bool_] | None) -> list[int]:
    """Leave out packs without which deltas, theirs or others', would be encoded anew: that takes more than rewriting them frees."""
    packs, table = survey.packs, survey.packs.table
    condemned = packs.mask(survey.condemned() & set(packs.numbers()))
    while sparse:
        copied = to_copy(survey, without=sparse, moved=moved)
        # Those of condemned packs are encoded anew in any case.
        anew = copied.rows[~copied.as_stored & ~condemned[table.packs[copied.rows]]]
        objects = table.covered(anew)
        objects |= table.bases_of(objects)
        held = packs.mask([])
        held[table.packs[objects[table.objects]]] = True
        left = [number for number in sparse if not held[number]]
        if len(left) == len(sparse):
            break
        sparse = left
    return sparse


def _shares(survey: Survey) -> _Shares:
    table = survey.packs.table
    good = survey.good()
    counts = table.decodes(good)
    # Of frames, not of the file: a pack of many small frames has a large directory, however much of it is needed.
    total = table.bytes_by_pack(np.ones(len(table), np.bool_), len(good))
    moved = _moved(survey)
    there = counts if moved is None else table.decodes(good, also=moved)
    live = table.bytes_by_pack(there & table.live[table.objects], len(good))
    # Of several copies, the one stays that lies among most of what is needed: so the other packs get empty.
    keepers = table.keepers(there, live)
    return _Shares(
        total=total,
        needed=table.bytes_by_pack(keepers, len(good)),
        keepers=keepers,
        choice=_choice(survey, lonely=table.live & ~table.covered(counts)),
    )


def _moved(survey: Survey) -> NDArray[np.bool_] | None:
    """Return the rows that are copied out of condemned packs as they are, None for none: what deltas among them rest on stays."""
    if survey.condemned().isdisjoint(survey.packs.numbers()):
        return None
    copied = to_copy(survey)
    if not copied.rows.size:
        return None
    moved = np.zeros(len(survey.packs.table), np.bool_)
    moved[copied.rows[copied.as_stored]] = True
    return moved


def _choice(survey: Survey, *, lonely: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the packs that may go: not those that hold, or may hold, `lonely` objects, of which no good pack has a frame."""
    packs, table = survey.packs, survey.packs.table
    # A quarantined pack may go once all that is needed of it is elsewhere.
    held = packs.mask([])
    held[table.packs[lonely[table.objects]]] = True
    condemned = survey.condemned()
    spared = {packs.number_of(pack) for pack in survey.mark.spared}
    opaque = packs.unreadable.keys() - superfluous(survey, once_copied=True)
    return tuple(
        number
        for number in packs.numbers()
        if not (number in condemned or number in spared or number in opaque or held[number])
    )


def superfluous(survey: Survey, *, once_copied: bool = False) -> set[int]:
    """Return the packs that may go though their footer cannot be read: quarantined ones, if nothing at all is lost.

    Whatever such a pack holds is either not needed, or in a good pack as well; or will be, `once_copied` from condemned ones.
    """
    mark, packs, table = survey.mark, survey.packs, survey.packs.table
    if not packs.unreadable or mark.absent or mark.spared or mark.replaced_lack:
        return set()  # Invariant 8: what is absent may be in it.
    counts = table.decodes(survey.readable() if once_copied else survey.good())
    if (table.live & ~table.covered(counts)).any():
        return set()  # Invariant 8: as above.
    return packs.unreadable.keys() & survey.quarantined


def unmovable(survey: Survey) -> set[int]:
    """Return the packs that stay whatever is needed, though no tombstone names them."""
    return set(survey.packs.numbers()) - set(_shares(survey).choice) - survey.condemned()


def repack_to_free(survey: Survey, size: int) -> None:
    """Let packs be rewritten of which more is needed than `survey.repack` says, until that frees so many more bytes.

    Those of which the least is needed come first; all of them, where that is not enough.
    """
    shares = _shares(survey)
    packs = np.array([item for item in shares.choice if item not in survey.quarantined], np.int64)
    needed, total = shares.needed[packs], shares.total[packs]
    partly = (needed > 0) & (needed < total) & (needed >= survey.repack * total)
    share = needed[partly] / total[partly]
    order = np.argsort(share)
    freed = np.cumsum((total - needed)[partly][order])
    enough = int(np.searchsorted(freed, size))
    if enough < len(order):
        # A little more than this pack's share, whatever the division rounded.
        survey.repack = float(share[order[enough]]) * (1 + 1e-9)
    else:
        survey.repack = 1.0


@dataclass(frozen=True, slots=True)
class Copying:
    """Rows of frames to copy. Those that are not copied `as_stored` are deltas, which are encoded without bases.

    `size` is what they take in a fresh pack, beside its overhead: an estimate where deltas are encoded anew.
    """

    rows: NDArray[np.int64]
    as_stored: NDArray[np.bool_]
    size: int

    @property
    def packed(self) -> int:
        """The bytes of a fresh pack of them, 0 for nothing."""
        return self.size + pack_overhead(len(self.rows)) if self.rows.size else 0


def to_copy(
    survey: Survey,
    *,
    without: Iterable[int] = (),
    of: Iterable[int] | None = None,
    moved: NDArray[np.bool_] | None = None,
) -> Copying:
    """Return what to copy so that everything that is needed is in good packs other than `without`; only `of` these packs.

    Rows that are `moved` are in a good pack by then. A delta stays one if its bases are in good packs or copied as well
    (invariant 7).
    """
    without = tuple(without)
    table = survey.packs.table
    rows = rows_to_copy(survey, without=without, moved=moved)
    also = np.zeros(len(table), np.bool_) if moved is None else moved.copy()
    also[rows] = True
    as_stored = table.decodes(survey.good(without=without), also=also)[rows]
    if of is not None:
        chosen = survey.packs.mask(list(of))[table.packs[rows]]
        rows, as_stored = rows[chosen], as_stored[chosen]
    size = int(table.sizes[rows[as_stored]].sum(dtype=np.int64)) + table.bytes_of_lists(rows[as_stored])
    # Without its bases, a chunk takes about as much as they do.
    return Copying(rows, as_stored, size + table.bytes_of_bases(rows[~as_stored]))


def rows_to_copy(
    survey: Survey, *, without: Iterable[int] = (), moved: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Return rows of frames to copy so that everything that is needed is in good packs other than `without`.

    Rows that are `moved` are in a good pack by then. Where a delta only lacks a base, the base is copied; what has no
    frame without bases is encoded anew. Objects of which no readable pack has a frame that decodes are left out.
    """
    table = survey.packs.table
    good = survey.good(without=without)
    lost = table.live & ~table.covered(table.decodes(good, also=moved))
    if not lost.any():
        return np.zeros(0, np.int64)
    sources = table.decodes(survey.readable())
    alone = sources & table.are_plain()
    there = good[table.packs] if moved is None else good[table.packs] | moved
    bases = table.bases_of(lost, good, also=moved) & ~table.covered(alone & there)
    rows = table.rows_of(bases, among=alone)
    if rows.size:
        also = np.zeros(len(table), np.bool_) if moved is None else moved.copy()
        also[rows] = True
        lost = table.live & ~table.covered(table.decodes(good, also=also))
    return np.union1d(rows, table.rows_of(lost, among=sources))


def _is_old_enough(survey: Survey, number: int, *, now: float, limit: float) -> bool:
    modified = survey.packs.modified(number)
    if math.isnan(modified):
        return limit == 0
    if now - modified >= limit:
        return True
    # A pack that a record has named is nobody's failed add: somebody deleted that record.
    return limit == HOUR and survey.is_named(survey.packs.id_of(number))


def _least_age(survey: Survey) -> float:
    """Return the age in seconds from which a pack that nothing needs may go.

    Younger ones may belong to an add that failed and is tried again, or is under way.
    """
    if survey.policy.orphans_now:
        return 0.0
    if survey.two_phases:
        return survey.policy.grace
    return 0.0 if survey.is_short or is_space_short(survey.store.backend) else HOUR


def is_space_short(backend: Backend) -> bool:
    """Say whether the disk of a local store is nearly full."""
    path = backend.local_path(marks.FORMAT_KEY)
    if path is None or not hasattr(os, "statvfs"):
        return False
    try:
        found = os.statvfs(os.path.dirname(path))
    except OSError:
        return False  # Invariant 13: only a hint at how urgent it is.
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return free < min(total // _SHORT_SHARE, _SHORT_BYTES)
