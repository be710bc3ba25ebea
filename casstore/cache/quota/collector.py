"""The process that makes a cache's store fit its bound: at a low priority, one for each store at a time.

A process, since a thread would take the interpreter's lock from the passes. It may outlive the pipeline that started it, and be
killed at any moment, as any collector may (casstore/ops/gc/README.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from casstore.api.store import Store
from casstore.cache.quota.ledger import Ledger, Measured
from casstore.errors import CasstoreError
from casstore.machine.this_machine import store_folder
from casstore.machine.uses.leases import Leases
from casstore.ops.gc import GcPolicy
from casstore.ops.gc.execution import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK = "store-collector.lock"
_ROUNDS = 4
"""Collections of one process; after so many, the next pass that is cached starts another one."""

PRIORITY = 10
"""How nice the process is: a tenth of a pass's share of a busy processor, and not less, since passes may wait for the lock."""


def slack(max_bytes: int) -> int:
    """Return the room that a collection makes below the bound, so that not every pass starts another one."""
    return max_bytes // 10


def keep_bound(store: Store, ledger: Ledger, max_bytes: int) -> None:
    """Make a store fit if it is larger than its bound, and note its size. Raises what a collection raises."""
    for _ in range(_ROUNDS):
        ledger.begin()
        size, start_above, notes = measure(store), max_bytes, []
        in_use = False
        if size > max_bytes:
            in_use = _in_use(store)
            try:
                report = store.gc(GcPolicy(max_size=max_bytes - slack(max_bytes)))
            except (CasstoreError, OSError) as error:
                # Invariant 11: it is raised. Other passes must not try again for nothing.
                ledger.finish(
                    Measured(size, size + slack(max_bytes), max_bytes, time.time(), error=str(error))
                )
                raise
            notes = report.problems
            size = measure(store)
            if size > max_bytes - slack(max_bytes) and report.mode != Mode.BUSY.value:
                # The rest is in use, or not a cache's to delete: only what is added from now on could go.
                start_above = max(max_bytes, size + slack(max_bytes))
        # A run that ended meanwhile has kept something from this collection, and not from another one.
        in_use = start_above > max_bytes and (in_use or _in_use(store))
        ledger.finish(Measured(size, start_above, max_bytes, time.time(), in_use, "; ".join(notes)))
        if size + ledger.written() <= start_above and (not in_use or _in_use(store)):
            return


def measure(store: Store) -> int:
    """Return the bytes of a store's packs, index and records."""
    return sum(entry.size for prefix in ("packs/", "index/", "refs/") for entry in store.backend.list(prefix))


def _in_use(store: Store) -> bool:
    with Leases(store_folder(store.store_id)).held() as leased:
        return bool(leased)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Hold the lock of the one collector; say whether this is it. Raises OSError."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False  # Another one is at work, or this file system has no locks.
        else:
            yield True
    finally:
        os.close(descriptor)


def main() -> int:
    """Keep the bound of the store at argv[1], whose ledger is in argv[2]; argv[3] is the bound in bytes."""
    folder = Path(sys.argv[2])
    try:
        with alone(folder) as is_alone, contextlib.ExitStack() as stack:
            if is_alone:
                store = stack.enter_context(Store(sys.argv[1]))
                keep_bound(store, Ledger(folder), int(sys.argv[3]))
    except (CasstoreError, OSError) as error:
        # Invariant 11: the pipeline that started this reads it from standard error, and logs it.
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
