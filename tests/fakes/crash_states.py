"""Every state that a disk may be left in by a crash while an operation runs, taken from one run of it.

Before each call the modelled disk is asked what a power failure could leave now: any part of what was not synced, in
any order, torn or whole.
"""

from __future__ import annotations

import copy
import random
import sys
from collections import Counter
from dataclasses import dataclass

from fakes.counts import SEED
from fakes.posix_model import LOSE_ALL
from fakes.stores import Disk, visible


@dataclass(frozen=True)
class Survivor:
    """A disk after the process has stopped: by a power failure, or `killed`, with everything still unsynced."""

    disk: Disk
    acknowledged: bool
    killed: bool
    where: str


class WatchedDisk(Disk):
    """Calls `watch` before each call, and leaves out the fsyncs of the place in the code that `unsynced` names."""

    watch = None
    unsynced = None
    synced = frozenset()

    def _enter(self, name, path=None):
        if self.watch is not None:
            self.watch()
        return super()._enter(name, path)

    def fsync(self, fd):
        place = _place(sys._getframe(1))
        self.synced |= {place}
        if place != self.unsynced:
            super().fsync(fd)

    def killed(self):
        """Return a copy that keeps what is not synced."""
        twin = type(self)(_root=copy.deepcopy(self._root))
        twin.unsynced = self.unsynced
        return twin


def _place(frame):
    """Return which function of the local backend has something synced, and what that is part of, as text."""
    while True:
        code, names = frame.f_code, frame.f_locals
        if "casstore/backend/local/" in code.co_filename and code.co_name not in (
            "sync",
            "_fsync",
            "_harden",
        ):
            what = names.get("key") or names.get("directory") or names.get("path") or ""
            if not isinstance(what, str):
                what = ""
            area = what.removeprefix("/srv/store").strip("/").split("/")[0]
            return f"{code.co_qualname if hasattr(code, 'co_qualname') else code.co_name} {area}".strip()
        frame = frame.f_back


def survivors(before, act, *, count, unsynced=None, kill_every=0):
    """Run `act` on a disk with what `before` holds; return different survivors, and the places that were synced.

    `count` states are taken at random calls, besides those that lose all; a kill at every `kill_every`th call.
    """
    disk = WatchedDisk.holding(before.crash(LOSE_ALL))
    disk.unsynced = unsynced
    found, seen = [], set()
    picks = Counter()

    def keep(survivor):
        state = (survivor.acknowledged, survivor.killed, visible(survivor.disk))
        if survivor.killed:
            state = (*state, visible(survivor.disk.crash(LOSE_ALL)))
        if state not in seen:
            seen.add(state)
            found.append(survivor)

    def look(*, acknowledged=False):
        at = len(disk.calls)
        for choice in (LOSE_ALL, *(f"{at}:{number + 100_000 * SEED}" for number in range(picks[at]))):
            left = WatchedDisk.holding(disk.crash(choice))
            left.unsynced = unsynced
            keep(Survivor(left, acknowledged, False, f"call {at} ({disk.calls[-1:]}), {choice}"))
        if kill_every and at % kill_every == 0 and not acknowledged:
            keep(Survivor(disk.killed(), acknowledged, True, f"killed at call {at} ({disk.calls[-1:]})"))

    # How many calls there are is found by a run that nobody watches.
    trial = Disk.holding(before.crash(LOSE_ALL))
    act(trial)
    chance = random.Random(count + 100_000 * SEED)
    last = len(trial.calls)
    picks.update(chance.randrange(last + 1) for _ in range(count))
    disk.watch = look
    act(disk)
    disk.watch = None
    picks[len(disk.calls)] += 1 + count // 20
    look(acknowledged=True)
    return found, disk.synced
