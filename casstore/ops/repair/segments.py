"""Finds damaged index segments, and packs that none covers, and writes them anew from the packs (invariant 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import FormatError, IntegrityError, ObjectNotFound, UnsupportedVersion
from casstore.objects import INDEX_PREFIX
from casstore.ops.check.places import Place, place_of

if TYPE_CHECKING:
    from casstore.objects import Footer, ObjectStore
    from casstore.store.model_store import ModelStore


@dataclass(frozen=True, slots=True)
class IndexDamage:
    """Damaged segments with the reasons, and readable packs that no other segment covers."""

    segments: dict[str, IntegrityError]
    uncovered: list[bytes]


class _Footers(Mapping[bytes, "Footer"]):
    """The footers of packs, each read when it is asked for: those of a large store do not fit into memory."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def __getitem__(self, pack: bytes) -> Footer:
        try:
            return self._objects.footer(pack)
        except (ObjectNotFound, FormatError) as error:
            raise KeyError(
                pack
            ) from error  # Invariant 5: rows about a pack that cannot be read mean nothing.

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def __len__(self) -> int:
        return 0


def find_index_damage(store: ModelStore, packs: list[bytes]) -> IndexDamage:
    """Check every segment; `packs` are those of the store that can be read."""
    objects = store.objects
    damaged: dict[str, IntegrityError] = {}
    for key in store.backend.list_keys(INDEX_PREFIX):
        if place_of(key) is not Place.SEGMENT:
            continue
        try:
            objects.check_segment(key, _Footers(objects))
        except UnsupportedVersion:
            continue  # Written by a newer casstore: no damage (design §3).
        except IntegrityError as error:
            damaged[key] = error  # Invariant 13: a hint, which is written again.
    return IndexDamage(damaged, objects.uncovered(packs, without=damaged.keys()))


def mend_index(store: ModelStore, damage: IndexDamage) -> None:
    """Remove the damaged segments, and cover every pack that can be read."""
    footers = _Footers(store.objects)
    covered = [(pack, footer) for pack in damage.uncovered if (footer := footers.get(pack)) is not None]
    store.objects.replace_segments(damage.segments, covered)
