"""Which packs a check reads whole: a share of the stored bytes, those that were not read for the longest time first."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import ConfigError
from casstore.machine.packs_read import PacksRead
from casstore.objects import pack_id_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.backend.base import Entry
    from casstore.machine.state import MachineState


@dataclass(frozen=True, slots=True)
class DataRead:
    """How far this machine has read the packs of a store, this time and before.

    `bytes_chosen` of `bytes_total` were to be read this time. `packs_unread` were never read whole and found good, as far as
    this machine knows; of the others, `oldest` is when the one was read that was not read for the longest time, in
    nanoseconds since 1970. Where nothing can be `remembered`, only this time counts.
    """

    bytes_chosen: int
    bytes_total: int
    packs_unread: int
    oldest: int | None
    remembered: bool


def share_of(read_data: float) -> float:
    """Return the share of the stored bytes that `read_data` means; raise ConfigError for what is none."""
    share = float(read_data)
    if not 0 <= share <= 1:
        raise ConfigError(
            f"read_data is {read_data}: give True for all stored bytes, or a share of them such as 0.05."
        )
    return share


class Reading:
    """The packs that one check reads, and what it remembers for the next one. `note` is safe in threads."""

    def __init__(self, machine: MachineState, packs: Sequence[Entry], share: float) -> None:
        self._known = PacksRead(machine)
        self._packs = {pack_id_of(entry.key): entry.size for entry in packs}
        self._good: set[bytes] = set()
        self.chosen = frozenset(self._choose(share))

    def _choose(self, share: float) -> list[bytes]:
        wanted = share * sum(self._packs.values())
        times = {pack: read.time for pack, read in self._known.last().items()}
        # At random among equals, so that where nothing is remembered, every pack is read in the end. One that was damaged
        # waits for its turn like all others, or nothing else would be read.
        order = sorted(self._packs, key=lambda pack: (times.get(pack, 0), random.random()))  # noqa: S311  # no secret
        chosen = []
        for pack in order:
            if wanted <= 0:
                break
            chosen.append(pack)
            wanted -= self._packs[pack]
        return chosen

    @property
    def bytes_chosen(self) -> int:
        """Bytes of the packs that are read."""
        return sum(self._packs[pack] for pack in self.chosen)

    def note(self, pack: bytes, *, good: bool) -> None:
        """Remember that a pack was read."""
        if good:
            self._good.add(pack)
        self._known.note(pack, good=good)

    def keep(self) -> None:
        """Write down what was read, also where the check is interrupted."""
        self._known.flush()

    def result(self) -> DataRead:
        """Return how far the store was read."""
        self._known.prune(self._packs.keys())
        good = {pack: read.time for pack, read in self._known.last().items() if read.good}
        oldest = min((at for pack, at in good.items() if pack in self._packs), default=None)
        unread = self._packs.keys() - good.keys() - self._good
        total = sum(self._packs.values())
        return DataRead(self.bytes_chosen, total, len(unread), oldest, self._known.keeps)
