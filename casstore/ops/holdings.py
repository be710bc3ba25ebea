"""What the refs of a store hold: which frames each needs, and which of those nobody else does.

Measured by the index, without opening packs: enough for whoever deletes nothing (invariant 5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from casstore.errors import FormatError
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format.names import names_model
from casstore.format.rows import ROW
from casstore.objects import Damage, id_keys
from casstore.ops.descriptions import LAYOUTS, MANIFESTS, Descriptions, kept_copies

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.errors import CasstoreError
    from casstore.format.layout import Layout
    from casstore.objects import ListedPacks
    from casstore.refs.rows import RefRow
    from casstore.store.model_store import ModelStore

    Numbers = NDArray[np.int32]
    Amounts = NDArray[np.int64]

NOBODY, SEVERAL = -1, -2
"""Owners of an object that no group needs, or more than one."""

_LISTINGS = 2


@dataclass(frozen=True, slots=True)
class Held:
    """What one manifest needs: objects by number in the table, once each, with the bases of deltas; `own` are those without.

    `size` is that of a model's files in bytes. `lacking` objects are in no pack. Unless `is_whole`, something that
    describes it could not be read, and it may need more.
    """

    objects: Numbers
    size: int = 0
    lacking: int = 0
    is_whole: bool = True
    own: Numbers = field(default_factory=lambda: np.zeros(0, np.int32))


class Holdings:
    """What every ref holds. Arrays are by object, or by the number of a pack.

    `rows` is the frame that counts for an object, -1 if it is not needed; `costs` the bytes that this frame takes in its
    pack: header, payload, and its row in the footer. `plain` are the bytes of chunks, 0 for all else. `damaged` tells which
    refs' descriptions cannot be read.
    """

    def __init__(self, refs: Sequence[RefRow], packs: ListedPacks) -> None:
        self.refs = refs
        self.packs = packs
        self.damaged: list[Damage] = []
        self._held: dict[bytes, Held] = {}
        self.rows: Amounts = np.zeros(0, np.int64)
        self.costs: Amounts = np.zeros(0, np.int64)
        self.plain: NDArray[np.uint32] = np.zeros(0, np.uint32)

    def of(self, ref: RefRow) -> Held:
        """Return what a ref holds: nothing, where its manifest lies inside its record."""
        return self._held.get(ref.manifest or b"") or Held(np.zeros(0, np.int32))

    def hold(self, held: dict[bytes, Held], plain: NDArray[np.uint32]) -> None:
        """Take what every manifest needs, and the plain bytes of chunks, and choose the frames of it that count."""
        table = self.packs.table
        self.plain = plain
        counts = table.decodes(self.packs.mask(self.packs.numbers()))
        for item in held.values():
            table.need(item.objects)
        weights = table.bytes_by_pack(counts & table.live[table.objects], len(self.packs.mask([])))
        keepers = table.keepers(counts, weights)
        self.rows = np.full(len(table.live), -1, np.int64)
        self.rows[table.objects[keepers]] = keepers
        self.costs = np.zeros(len(table.live), np.int64)
        self.costs[table.objects[keepers]] = table.sizes[keepers] + np.int64(ROW.itemsize)
        for manifest, item in held.items():
            undecodable = int((self.rows[item.objects] < 0).sum())
            objects = table.with_bases(item.objects, self.rows).astype(np.int32)
            lacking = item.lacking + undecodable
            self._held[manifest] = Held(objects, item.size, lacking, item.is_whole, item.objects)

    @property
    def bytes_needed(self) -> int:
        """Bytes of all frames that count."""
        return int(self.costs.sum())

    @property
    def bytes_unneeded(self) -> int:
        """Bytes of frames that no ref needs, and of second copies, in whatever pack."""
        table = self.packs.table
        return int(table.sizes.sum(dtype=np.int64)) + ROW.itemsize * len(table) - self.bytes_needed

    @property
    def is_complete(self) -> bool:
        """Whether everything that may need anything was read."""
        return not self.damaged

    def owners(self, groups: Iterable[Iterable[RefRow]]) -> NDArray[np.int32]:
        """Return by object the position of the only group whose refs need it, NOBODY or SEVERAL."""
        owner = np.full(len(self.rows), NOBODY, np.int32)
        for number, refs in enumerate(groups):
            for ref in refs:
                objects = self.of(ref).objects
                before = owner[objects]
                owner[objects] = np.where((before == NOBODY) | (before == number), number, SEVERAL)
        return owner

    def bytes_of(self, refs: Iterable[RefRow]) -> int:
        """Return the bytes of all frames that these refs need, each once."""
        parts = [self.of(ref).objects for ref in refs]
        objects = parts[0] if len(parts) == 1 else np.unique(np.concatenate([*parts, np.zeros(0, np.int32)]))
        return int(self.costs[objects].sum())

    def bytes_of_bases(self, refs: Iterable[RefRow]) -> int:
        """Return the bytes of frames that these refs need only because deltas rest on them."""
        held = [self.of(ref) for ref in refs]
        nothing = np.zeros(0, np.int32)
        own = np.concatenate([*(item.own for item in held), nothing])
        objects = np.setdiff1d(np.concatenate([*(item.objects for item in held), nothing]), own)
        return int(self.costs[objects].sum())

    def bytes_saved(self, refs: Iterable[RefRow]) -> int:
        """Return about what the deltas among the chunks of these refs save: as if they compressed as other chunks do."""
        deltas = self._deltas
        parts = [self.of(ref).own for ref in refs]
        own = np.unique(np.concatenate([*parts, np.zeros(0, np.int32)]))
        chosen = own[deltas[own]]
        plain, costs = self.plain[chosen].sum(dtype=np.int64), self.costs[chosen].sum()
        return max(0, int(self._plain_share * int(plain)) - int(costs))

    def rests_on(self, refs: Sequence[RefRow]) -> tuple[str, ...]:
        """Return the refs that have the chunks on which deltas of these refs rest, but for these: the most of them first.

        Of several that have a chunk, the oldest counts, a model's own ref before tags.
        """
        held = [self.of(ref) for ref in refs]
        nothing = np.zeros(0, np.int32)
        own = np.concatenate([*(item.own for item in held), nothing])
        bases = np.setdiff1d(np.concatenate([*(item.objects for item in held), nothing]), own)
        if not bases.size:
            return ()
        holders, counts = np.unique(self._holders[bases], return_counts=True)
        most = holders[np.argsort(-counts, kind="stable")].tolist()
        return tuple(self.refs[at].name for at in most if at >= 0)

    @cached_property
    def _deltas(self) -> NDArray[np.bool_]:
        """By object: whether the frame that counts is a delta of a chunk."""
        found = np.zeros(len(self.rows), np.bool_)
        there = np.flatnonzero((self.rows >= 0) & (self.plain > 0))
        found[there] = self.packs.table.are_deltas(self.rows[there])
        return found

    @cached_property
    def _plain_share(self) -> float:
        """The share that encodings without bases leave of chunks."""
        alone = (self.rows >= 0) & (self.plain > 0) & ~self._deltas
        plain = int(self.plain[alone].sum(dtype=np.int64))
        return int(self.costs[alone].sum()) / plain if plain else 1.0

    @cached_property
    def _holders(self) -> Numbers:
        """By object: the position of the ref that counts as its owner, -1 where it is in none."""
        found = np.full(len(self.rows), -1, np.int32)
        order = sorted(
            range(len(self.refs)),
            key=lambda at: (not self.refs[at].name.startswith("models/"), self.refs[at].order),
            reverse=True,
        )
        for at in order:
            found[self.of(self.refs[at]).own] = at
        return found

    def unneeded_packs(self) -> list[int]:
        """Return the packs of which no ref needs any frame, or only frames that another pack has as well."""
        table = self.packs.table
        needed = self.packs.mask([])
        needed[table.packs[self.rows[self.rows >= 0]]] = True
        return [
            number
            for number in self.packs.numbers()
            if not needed[number] and number not in self.packs.unreadable
        ]


def survey(store: ModelStore, *, strict: bool = False) -> Holdings:
    """Find out what every ref of a store holds.

    A ref that cannot be read is left out, and the store's `on_damage` called; with `strict`, that is an error. Raises
    BackendError for a store that fails.
    """
    packs = store.objects.listed_packs(copies=kept_copies(store, "footers"), by_index=True)
    packs.read()
    # In the order of writing (invariant 3): the packs of a ref that appears meanwhile are listed below.
    holdings = Holdings(store.find(strict=strict), packs)
    for listing in range(_LISTINGS):
        reader = _Reader(store, packs)
        held, plain = reader.read(holdings.refs)
        if listing + 1 == _LISTINGS or not any(item.lacking for item in held.values()):
            break
        packs.read()
    holdings.hold(held, plain)
    for ref in holdings.refs:
        if not holdings.of(ref).is_whole:
            holdings.damaged.append(reader.damage(ref))
    return holdings


class _Reader:
    """Reads what manifests need, as far as it can be read."""

    def __init__(self, store: ModelStore, packs: ListedPacks) -> None:
        self._descriptions = Descriptions(store)
        self._packs = packs
        self._errors: dict[bytes, CasstoreError] = {}
        self._layouts: dict[bytes, tuple[bytes, ...]] = {}

    def read(self, refs: Iterable[RefRow]) -> tuple[dict[bytes, Held], NDArray[np.uint32]]:
        """Return by manifest what these refs need, and by object the plain bytes of chunks."""
        plain = np.zeros(len(self._packs.table.live), np.uint32)
        named = {ref.manifest: ref for ref in refs if ref.manifest is not None}
        models = [item for item, ref in named.items() if names_model(ref.name)]
        for manifest_id, data in self._read(models, batch=MANIFESTS):
            try:
                self._layouts[manifest_id] = manifest_format.decode_model(data).layouts
            except FormatError as error:  # noqa: PERF203  # a try costs nothing here
                self._errors[manifest_id] = error  # Invariant 11: reported for each of its refs.
        wanted = dict.fromkeys(item for found in self._layouts.values() for item in found)
        sizes: dict[bytes, int] = {}
        chunks: dict[bytes, Numbers] = {}
        for layout_id, data in self._read(list(wanted), batch=LAYOUTS):
            try:
                layout = layout_format.decode(data)
            except FormatError as error:  # noqa: PERF203  # as above
                self._errors[layout_id] = error  # Invariant 11: as above.
            else:
                sizes[layout_id] = layout.size
                chunks[layout_id] = self._chunks(layout, plain)
        held: dict[bytes, Held] = {}
        for manifest_id, ref in named.items():
            found = self._layouts.get(manifest_id, ())
            own = self._numbers(
                b"".join([manifest_id, *([ref.target] if names_model(ref.name) else []), *found])
            )
            parts = [own, *(chunks[item] for item in found if item in chunks)]
            objects = np.unique(np.concatenate(parts))
            held[manifest_id] = Held(
                objects[objects >= 0],
                size=sum(sizes.get(item, 0) for item in found),
                lacking=sum(int((part < 0).sum()) for part in parts),
                is_whole=not self._errors.keys() & {manifest_id, *found},
            )
        return held, plain

    def damage(self, ref: RefRow) -> Damage:
        """Say what of a ref's description cannot be read."""
        assert ref.manifest is not None
        parts = (ref.manifest, *self._layouts.get(ref.manifest, ()))
        broken = next(item for item in parts if item in self._errors)
        return Damage(ref.name, broken.hex(), str(self._errors[broken]))

    def _read(self, ids: Sequence[bytes], *, batch: int) -> Iterator[tuple[bytes, bytes]]:
        return self._descriptions.read(ids, batch=batch, failed=self._errors.__setitem__)

    def _chunks(self, layout: Layout, plain: NDArray[np.uint32]) -> Numbers:
        found = self._numbers(layout.ids)
        there = found >= 0
        plain[found[there]] = layout.lengths[there]
        return found

    def _numbers(self, ids: bytes) -> Numbers:
        return self._packs.table.find(id_keys(ids)).astype(np.int32)
