"""Finds the packs that a model cannot be read from, and quarantines them so that it can be stored again."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.buffers import new_buffer
from casstore.errors import FormatError, IntegrityError, ObjectExists, ObjectNotFound, UnsupportedVersion
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format import marks, names
from casstore.format import pack as pack_format
from casstore.format.rows import row_ids
from casstore.objects.bases import resolve
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.footers import read_footer
from casstore.objects.index.index import Located
from casstore.objects.keys import pack_key
from casstore.objects.publication import read_quarantine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casstore.format.layout import Layout
    from casstore.format.record import Record
    from casstore.store.model_store import ModelStore

_BATCH_BYTES = 8 << 20


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
    search = _Search(store, read_quarantine(store.backend))
    complete = _search_all(search, record)
    if not complete:
        for pack in record.packs:
            search.read_pack(pack)
    found = search.found
    if search.lost or not complete:
        found = found | search.gone | search.noted_before()
    return Damage(found, len(search.lost), complete)


def set_apart(store: ModelStore, packs: dict[bytes, str]) -> None:
    """Write a note on each pack, with the reason, so that nothing new relies on it; the pack stays where it is.

    Adding its objects again writes them to a fresh pack, and the undamaged ones are still read. A pack that has
    a note already keeps it.
    """
    for pack, reason in packs.items():
        # Notes are UTF-8, and not every error message is.
        note = marks.Quarantine(pack, reason.encode(errors="replace").decode(), time.time_ns())
        store.index.avoid_pack(store.index.number_of(pack))
        key = marks.quarantine_key(pack)
        try:
            store.backend.put(key, [marks.encode_quarantine(note)])
        except ObjectExists:
            # Invariant 1: someone may have found the damage before, and nothing is overwritten. Whatever is there
            # but is not a file would hide notes from others, so it is an error.
            store.backend.stat(key)


def _search_all(search: _Search, record: Record) -> bool:
    """Read all objects that a record depends on; say whether all of them are known."""
    if record.manifest is None:
        return True
    search.read([record.manifest])
    if not names.names_model(record.name):
        return True
    reader = search.store.objects
    try:
        manifest = manifest_format.decode_model(reader.read(record.manifest))
    except IntegrityError:
        # Invariant 4: it is damaged, so it is not used; the rest is still examined.
        search.read([] if record.target is None else [record.target])
        return False
    search.read([manifest.model_id, *manifest.layouts])
    layouts: list[Layout] = []
    for layout_id in dict.fromkeys(manifest.layouts):
        # Invariant 4: as above, for one file.
        with contextlib.suppress(IntegrityError):
            layouts.append(layout_format.decode(reader.read(layout_id)))
    search.read([chunk for layout in layouts for chunk in layout.chunk_ids()])
    return len(layouts) == len(set(manifest.layouts))


@dataclass(slots=True)
class _Search:
    """What was found so far. `apart` are packs with a note, which are not read again."""

    store: ModelStore
    apart: frozenset[bytes]
    found: dict[bytes, str] = field(default_factory=dict)
    gone: dict[bytes, str] = field(default_factory=dict)
    lost: set[bytes] = field(default_factory=set)
    _seen: set[bytes] = field(default_factory=set)
    _whole: set[int] = field(default_factory=set)
    _looked: bool = False

    def read(self, ids: Iterable[bytes]) -> None:
        """Read objects and their bases, each until a pack gives it whole."""
        left = [object_id for object_id in dict.fromkeys(ids) if object_id not in self._seen]
        self._seen.update(left)
        while left:
            resolved = resolve(self._locate, left)
            if not resolved.found.all() and self._looks_harder():
                resolved = resolve(self._locate, left)
            located = resolved.located
            again: list[bytes] = []
            for number, positions in _by_pack(located):
                if not self._read(located, number, positions):
                    again += [left[at] for at in positions]
            self.lost.update(left[at] for at in np.flatnonzero(~located.found).tolist())
            bases = {*row_ids(resolved.needed), *resolved.stranded} - self._seen
            self._seen |= bases
            left = [*again, *sorted(bases)]

    def read_pack(self, pack: bytes) -> None:
        """Read every frame of a pack."""
        if pack in self.found or pack in self.gone or pack in self.apart:
            return
        try:
            footer = read_footer(self.store.backend, pack)
        except UnsupportedVersion:
            return  # Written by a newer casstore, not damaged (design §3).
        except FormatError as error:
            # Invariant 9: a frame that fails verification is never copied or relied on.
            self.found[pack] = str(error)
            return
        except ObjectNotFound:
            return  # Invariant 5: the hint names a pack that is gone; looking up the objects shows what is missing.
        rows = footer.rows.copy()
        number = self.store.index.number_of(pack)
        rows["pack"] = number
        located = Located(rows, np.zeros(len(rows), np.int32), (footer.bases,))
        self._read(located, number, list(range(len(rows))))

    def noted_before(self) -> dict[bytes, str]:
        """Return the packs with a note that alone hold lost objects, with the reasons."""
        lost = sorted(self.lost)
        located = self.store.index.locate(lost)
        packs = {self.store.index.pack_id(number) for number, _ in _by_pack(located)} & self.apart
        reasons = {}
        for pack in sorted(packs):
            key = marks.quarantine_key(pack)
            try:
                reasons[pack] = marks.decode_quarantine(self.store.backend.read(key), key=key).reason
            except (FormatError, ObjectNotFound) as error:
                # Invariant 9: the name of a note says which pack to avoid; only the reason is lost with it.
                reasons[pack] = f"{pack_key(pack)} was set apart, and why is not known: {error}"
        return reasons

    def _looks_harder(self) -> bool:
        """Load new segments and the footers of packs that none covers, once; say whether there may be any."""
        if self._looked:
            return False
        self._looked = True
        self.store.index.refresh()
        # Invariant 8: `check` names damaged ones; an object that only they hold is reported lost.
        with contextlib.suppress(FormatError):
            self.store.index.read_uncovered()
        return True

    def _locate(self, ids: Sequence[bytes] | bytes) -> Located:
        return self.store.index.locate(ids, usable=self._may_be_whole)

    def _may_be_whole(self, number: int) -> bool:
        pack = self.store.index.pack_id(number)
        return pack not in self.found and pack not in self.gone and pack not in self.apart

    def _read(self, located: Located, number: int, positions: Sequence[int]) -> bool:
        """Verify objects in one pack; say whether all of them are whole."""
        pack = self.store.index.pack_id(number)
        try:
            reason = self._wrong_form(number) or self._wrong_frame(located, positions)
        except ObjectNotFound:
            self.gone[pack] = f"{pack_key(pack)} is gone."  # Invariant 5: its objects may be elsewhere.
            return False
        if reason is not None:
            # Invariant 9: a frame that fails verification is never copied or relied on.
            self.found[pack] = reason
        return reason is None

    def _wrong_form(self, number: int) -> str | None:
        """Say what is wrong with a pack beside its frames: `check` looks at the same."""
        if number in self._whole:
            return None
        pack = self.store.index.pack_id(number)
        key = pack_key(pack)
        expected = self.store.index.pack_size(number)
        try:
            with bad_file_is_damage(self.store.backend):
                size = self.store.backend.stat(key).size
                if size != expected:
                    return f"{key} has {size} bytes, and its index says {expected}."
                head = self.store.backend.read(key, start=0, length=pack_format.HEADER_SIZE)
            pack_format.check_header(head, key=key)
            read_footer(self.store.backend, pack, size=size)
        except UnsupportedVersion:
            pass  # Written by a newer casstore: no damage (design §3).
        except FormatError as error:
            return str(error)  # Invariant 5: without its footer, only hints tell what is in it.
        self._whole.add(number)
        return None

    def _wrong_frame(self, located: Located, positions: Sequence[int]) -> str | None:
        for group in _batches(located, positions):
            edges = [0, *accumulate(int(located.rows["raw"][at]) for at in group)]
            try:
                self.store.objects.fill(located, group, new_buffer(edges[-1]), edges, elsewhere=False)
            except UnsupportedVersion:
                return None  # Written by a newer casstore, not damaged (design §3).
            except IntegrityError as error:
                return str(error)  # Invariant 4: damage is reported.
        return None


def _by_pack(located: Located) -> Iterator[tuple[int, list[int]]]:
    present = np.flatnonzero(located.found)
    packs = located.rows["pack"][present]
    order = np.argsort(packs, kind="stable")
    present, packs = present[order], packs[order]
    edges = [0, *(np.flatnonzero(np.diff(packs)) + 1).tolist(), len(packs)]
    for begin, end in pairwise(edges):
        if begin < end:
            yield int(packs[begin]), present[begin:end].tolist()


def _batches(located: Located, positions: Sequence[int]) -> Iterator[list[int]]:
    group: list[int] = []
    size = 0
    for at in positions:
        raw = int(located.rows["raw"][at])
        if group and size + raw > _BATCH_BYTES:
            yield group
            group, size = [], 0
        group.append(at)
        size += raw
    if group:
        yield group
