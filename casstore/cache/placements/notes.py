"""Notes beside the files of cached models: which model they belong to, and the id that each file should have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from casstore.cache.placements.placement import Placement
from casstore.machine.atomic_write import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

NOTE = "placement.json"


def is_below(location: str, folder: Path) -> bool:
    """Say whether a place is below a folder."""
    return location.startswith(f"{folder}{os.sep}")


def holds(folder: Path, placement: Placement | None) -> bool:
    """Say whether a folder holds files of a cached model."""
    return placement is not None and any(is_below(file.location, folder) for file in placement.files)


def size_below(placement: Placement, folder: Path) -> int:
    """Return the bytes of a placement's files below a folder."""
    return sum(file.identity.size for file in placement.files if is_below(file.location, folder))


def write_note(folder: Path, placement: Placement) -> None:
    """Write the note beside a placement's files, whole or not at all."""
    with atomic_write(folder / NOTE) as file:
        file.write(placement.encode())


def read_note(folder: Path) -> Placement | None:
    """Return what a folder's note says; None for a folder without one that can be used."""
    try:
        return Placement.decode((folder / NOTE).read_bytes())
    except OSError:
        return None  # Without a note the files are not trusted: they come from the store again (invariant 4).
