"""How large a store is about: its size when it was last measured, and what was written since. Files in one folder.

Every process that adds to the store appends to one file, which costs no listing. Removing and measuring is the collector's
alone. All of it is a hint (invariant 5): a wrong one only starts a collection too early or too late.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from casstore.cache.views import write_file

if TYPE_CHECKING:
    from pathlib import Path

MAX_AGE = 24 * 3600.0
"""Seconds after which a measured size counts as unknown: others may have added or removed something."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the last collector found: bytes of the store, and from where on another collection may find something to do.

    `max_bytes` is the bound that it kept, `error` why it could not. While something is `in_use`, it stays: when its run has
    ended, a collection may find more. `time` is in POSIX seconds.
    """

    size: int
    start_above: int
    max_bytes: int
    time: float
    in_use: bool = False
    error: str = ""


class Ledger:
    """The files of one store. Safe in threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._measured = folder / "store-size.json"
        self._written = folder / "store-written"

    def add(self, size: int) -> None:
        """Count bytes that were written, once anyone has begun to measure: before, the size is unknown anyway."""
        # Invariant 13: what is not counted is found when the store is measured again.
        with contextlib.suppress(OSError):
            descriptor = os.open(self._written, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"%d\n" % size)
            finally:
                os.close(descriptor)

    def read(self) -> Measured | None:
        """Return what was measured last, None if that is unknown or too old."""
        try:
            found = Measured(**json.loads(self._measured.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None  # Invariant 13: it is measured again.
        return found if abs(time.time() - found.time) < MAX_AGE else None

    def written(self) -> int:
        """Return how many bytes were written since the store was measured."""
        try:
            lines = self._written.read_bytes().split()
        except OSError:
            return 0  # Invariant 13, as above.
        return sum(int(line) for line in lines if line.isdigit())

    def begin(self) -> None:
        """Forget what was written: the store is measured now. What is written meanwhile counts twice at worst."""
        with contextlib.suppress(
            OSError
        ):  # Invariant 13: on a full disk, a collection is needed all the more.
            self._written.write_bytes(b"")

    def finish(self, measured: Measured) -> None:
        """Keep what was found. Raises OSError."""
        write_file(self._measured, json.dumps(asdict(measured)).encode())
