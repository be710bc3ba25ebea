"""Finds the packs that a model cannot be read from, and quarantines them so that it can be stored again."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from casstore.errors import FormatError, IntegrityError, ObjectExists, ObjectNotFound, UnsupportedVersion
from casstore.format import marks
from casstore.format.rows import row_ids
from casstore.objects import pack_key
from casstore.store.dependencies import needs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from casstore.format.record import Record
    from casstore.objects import Located
    from casstore.store.model_store import ModelStore


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a model.

    `packs` cannot be relied on, each with the reason; `missing` objects are in no other pack. `complete` is False
    if the description of the model cannot be read, so that not all of its objects are known.
    """

    packs: dict[bytes, str]
    missing: int
    complete: bool


def quarantine_damaged(store: ModelStore, record: Record) -> dict[str, str]:
    """Quarantine the damaged packs that a record depends on; return the reasons by pack id in hex.

    Raises BackendError if the store cannot be read or written.
    """
    damage = find_damage(store, record)
    set_apart(store, damage.packs)
    return {pack.hex(): reason for pack, reason in damage.packs.items()}


def find_damage(store: ModelStore, record: Record) -> Damage:
    """Read all that a record depends on, from each pack until one has it whole; change nothing.

    Where the description of a model is damaged itself, the packs that its record names are read whole.
    Packs that are gone or quarantined count only where the record lacks something.
    """
    search = Search(store, store.objects.quarantined())
    needs = needs_of(record, store.objects.read)
    search.read(needs.ids)
    if not needs.complete:
        for pack in record.packs:
            search.read_pack(pack)
    found = search.found
    if search.lost or not needs.complete:
        found = found | search.gone | search.noted_before()
    return Damage(found, len(search.lost), needs.complete)


def set_apart(store: ModelStore, packs: dict[bytes, str]) -> None:
    """Write a note on each pack, with the reason, so that nothing new relies on it; the pack stays where it is.

    Adding its objects again writes them to a fresh pack, and the undamaged ones are still read. A pack that has
    a note already keeps it.
    """
    for pack, reason in packs.items():
        # Notes are UTF-8, and not every error message is.
        note = marks.Quarantine(pack, reason.encode(errors="replace").decode(), time.time_ns())
        store.objects.avoid(pack)
        key = marks.quarantine_key(pack)
        try:
            store.backend.put(key, [marks.encode_quarantine(note)])
        except ObjectExists:
            # Invariant 1: someone may have found the damage before, and nothing is overwritten. Whatever is there
            # but is not a file would hide notes from others, so it is an error.
            store.backend.stat(key)


@dataclass(slots=True)
class Search:
    """Reads objects from each pack until one has them whole. `apart` are packs with a note, which are not read again.

    `found` are damaged packs, and `gone` those that are not there, each with the reason; `lost` are objects that no pack has
    whole, bases of deltas included.
    """

    store: ModelStore
    apart: frozenset[bytes]
    found: dict[bytes, str] = field(default_factory=dict)
    gone: dict[bytes, str] = field(default_factory=dict)
    lost: set[bytes] = field(default_factory=set)
    _seen: set[bytes] = field(default_factory=set)
    _whole: set[bytes] = field(default_factory=set)
    _good: set[bytes] = field(default_factory=set)
    _looked: bool = False

    def read(self, ids: Iterable[bytes]) -> None:
        """Read objects and their bases, each until a pack gives it whole."""
        left = [object_id for object_id in dict.fromkeys(ids) if object_id not in self._seen]
        self._seen.update(left)
        while left:
            resolved = self.store.objects.resolve(left, usable=self.is_usable)
            if not resolved.found.all() and self._looks_harder():
                resolved = self.store.objects.resolve(left, usable=self.is_usable)
            located = resolved.located
            again: list[bytes] = []
            for pack, positions in self.store.objects.packs_of(located).items():
                if not self._read(located, pack, positions):
                    again += [left[at] for at in positions]
            self.lost.update(left[at] for at in np.flatnonzero(~located.found).tolist())
            bases = {*row_ids(resolved.needed), *resolved.stranded} - self._seen
            self._seen |= bases
            left = [*again, *sorted(bases)]

    def read_pack(
        self, pack: bytes, *, size: int | None = None, pace: Callable[[int], None] | None = None
    ) -> None:
        """Read every frame of a pack; with `size`, which a listing has just said, every other byte of it as well.

        `pace` is told how many bytes are read next, and may wait. Safe in threads, for different packs.
        """
        if pack in self._good or not self.is_usable(pack):
            return
        objects = self.store.objects
        try:
            if size is not None:
                objects.read_whole(pack, size=size, pace=pace or (lambda _: None))
                self._good.add(pack)
                return
            footer = objects.footer(pack)
        except UnsupportedVersion:
            return  # Written by a newer casstore, not damaged (design §3).
        except IntegrityError as error:
            # Invariant 9: a frame that fails verification is never copied or relied on.
            self.found[pack] = str(error)
            return
        except ObjectNotFound:
            return  # Invariant 5: the hint names a pack that is gone; looking up the objects shows what is missing.
        if self._read(objects.located_in(pack, footer), pack, range(len(footer.rows))):
            self._good.add(pack)

    def noted_before(self) -> dict[bytes, str]:
        """Return the packs with a note that alone hold lost objects, with the reasons."""
        packs = self.store.objects.packs_of(self.store.objects.find(sorted(self.lost))).keys() & self.apart
        reasons = {}
        for pack in sorted(packs):
            key = marks.quarantine_key(pack)
            try:
                reasons[pack] = marks.decode_quarantine(self.store.backend.read(key), key=key).reason
            except (FormatError, ObjectNotFound) as error:
                # Invariant 9: the name of a note says which pack to avoid; only the reason is lost with it.
                reasons[pack] = f"{pack_key(pack)} was quarantined, and why is not known: {error}"
        return reasons

    def _looks_harder(self) -> bool:
        """Load new segments and the footers of packs that none covers, once; say whether there may be any."""
        if self._looked:
            return False
        self._looked = True
        # Invariant 8: `check` names damaged ones; an object that only they hold is reported lost.
        with contextlib.suppress(FormatError):
            self.store.objects.look_for_packs()
        return True

    def is_usable(self, pack: bytes) -> bool:
        """Say whether a pack may be relied on, as far as was read."""
        return pack not in self.found and pack not in self.gone and pack not in self.apart

    def _read(self, located: Located, pack: bytes, positions: Sequence[int]) -> bool:
        """Verify objects in one pack; say whether all of them are whole."""
        if pack in self._good:
            return True
        try:
            reason = self._wrong_form(pack) or self._wrong_frame(located, positions)
        except ObjectNotFound:
            self.gone[pack] = f"{pack_key(pack)} is gone."  # Invariant 5: its objects may be elsewhere.
            return False
        if reason is not None:
            # Invariant 9: a frame that fails verification is never copied or relied on.
            self.found[pack] = reason
        return reason is None

    def _wrong_form(self, pack: bytes) -> str | None:
        """Say what is wrong with a pack beside its frames: `check` looks at the same."""
        if pack in self._whole:
            return None
        try:
            self.store.objects.check_pack(pack)
        except UnsupportedVersion:
            pass  # Written by a newer casstore: no damage (design §3).
        except FormatError as error:
            return str(error)  # Invariant 5: without its footer, only hints tell what is in it.
        self._whole.add(pack)
        return None

    def _wrong_frame(self, located: Located, positions: Sequence[int]) -> str | None:
        try:
            self.store.objects.verify(located, positions)
        except UnsupportedVersion:
            return None  # Written by a newer casstore, not damaged (design §3).
        except IntegrityError as error:
            return str(error)  # Invariant 4: damage is reported.
        return None
