"""Deletes files of a cache that the store holds: those of ended runs, and the least recently used of the others.

Also what ended processes left unfinished. A kill at any moment leaves what the next trim deletes: the note beside the
files, which lists them, goes last.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from casstore.cache.placements.placement import NOTE, Placement, is_below

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from casstore.cache.directories import CacheDirectories
    from casstore.machine.uses.processes import Uses

_Item = TypeVar("_Item")

OUTPUT = "models"
"""Folder of a run's first attempt; later ones have a suffix."""

_MARKER = ".attempt"
_UNFINISHED = "making-"
_BATCH = 64
"""Folders that are deleted before the lock is released once, so that others do not wait for long."""


def marker_of(folder: Path) -> Path:
    """Return the file beside an attempt's folder that says that its files may be deleted."""
    return folder.with_name(folder.name + _MARKER)


def unfinished_path(checkouts: Path) -> Path:
    """Return an unused path for a folder that will be renamed or deleted."""
    return checkouts / f"{_UNFINISHED}{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class _Entry:
    """The files of one cached model, as the note in `folder` lists them; when they were last used, and their bytes."""

    used: float
    folder: Path
    size: int
    stays: bool


def trim(
    directories: CacheDirectories,
    uses: Uses,
    *,
    max_bytes: int,
    keep_all: bool,
    kept: Collection[str],
    is_stored: Callable[[Placement], bool],
) -> tuple[int, int]:
    """Delete files that no process uses and `is_stored` does not miss, and leftovers of dead processes.

    What no run was for goes, unless `keep_all` or its folder is `kept`; of the rest, the least recently used above
    `max_bytes`. Returns the bytes that were freed, and those that are left. Raises OSError.
    """
    entries, left = _survey(directories)
    with uses.locked():
        used = uses.used()
    for leftovers in _batches([folder for folder in left if str(folder) not in used]):
        _remove_leftovers(leftovers, directories.checkouts, uses)
    # The user's own files, outside the cache, are only noted here.
    unused = [entry for entry in entries if entry.size and str(entry.folder) not in used]
    staying, going = [], []
    for entry in unused:
        if keep_all or entry.stays or str(entry.folder) in kept:
            staying.append(entry)
        else:
            going.append(entry.folder)
    freed = sum(_remove_files(folders, uses, is_stored) for folders in _batches(going))
    left_bytes = sum(entry.size for entry in entries) - freed
    going = []
    above = left_bytes - max_bytes
    for entry in sorted(staying, key=lambda entry: entry.used):
        if above <= 0:
            break
        going.append(entry.folder)
        above -= entry.size
    more = sum(_remove_files(folders, uses, is_stored) for folders in _batches(going))
    return freed + more, left_bytes - more


def size_of_files(directories: CacheDirectories) -> int:
    """Return the bytes of all files of cached models in the cache's folder."""
    return sum(entry.size for entry in _survey(directories)[0])


def _survey(directories: CacheDirectories) -> tuple[list[_Entry], list[Path]]:
    """Return all notes, and the folders without one: of attempts, and of unfinished checkouts."""
    checkouts = directories.checkouts
    roots = {checkouts, directories.runs, *checkouts.parent.glob("*/runs")}
    entries: list[_Entry] = []
    left: list[Path] = []
    for folder in itertools.chain.from_iterable(map(_folders, roots)):
        if folder.parent == checkouts and _is_unfinished(folder):
            left.append(folder)
            continue
        with contextlib.suppress(OSError):  # Another process may have deleted it since (invariant 10).
            names = os.listdir(folder)
            placement = Placement.read(folder) if NOTE in names else None
            if placement is not None:
                size = sum(file.identity.size for file in placement.files if is_below(file.location, folder))
                entries.append(_Entry((folder / NOTE).stat().st_mtime, folder, size, placement.output))
            attempts = [
                folder / name.removesuffix(_MARKER)
                for name in names
                if name.startswith(OUTPUT) and name.endswith(_MARKER)
            ]
            left += [attempt for attempt in attempts if not _has_files(placement, attempt)]
    return entries, left


def _remove_leftovers(folders: list[Path], checkouts: Path, uses: Uses) -> None:
    """Delete folders that no live process uses and no note names."""
    aside: list[Path] = []
    with uses.locked():
        used = uses.used()
        for folder in folders:
            is_attempt = not _is_unfinished(folder)
            if str(folder) in used or (is_attempt and _has_files(Placement.read(folder.parent), folder)):
                continue  # Invariant 10: another process has begun to use it meanwhile.
            aside.append(folder)
            if is_attempt:
                # Moved or gone meanwhile; a moved one is deleted under its new name.
                with contextlib.suppress(OSError):
                    moved = unfinished_path(checkouts)
                    os.rename(folder, moved)
                    aside[-1] = moved
                marker_of(folder).unlink(missing_ok=True)
    for folder in aside:
        # Invariant 4: its writer has ended, so it never becomes a result.
        shutil.rmtree(folder, ignore_errors=True)


def _remove_files(folders: list[Path], uses: Uses, is_stored: Callable[[Placement], bool]) -> int:
    """Delete unchanged files of cached models that the store holds; return their bytes."""
    known = {folder: Placement.read(folder) for folder in folders}
    going = {
        folder: [file for file in placement.verified_files() if is_below(file.location, folder)]
        for folder, placement in known.items()
        if placement is not None and is_stored(placement)
    }
    freed = 0
    with uses.locked():
        used = uses.used()
        for folder, files in going.items():
            if str(folder) in used or Placement.read(folder) != known[folder]:
                continue  # Invariant 10, as above.
            freed += sum(file.identity.size for file in files)
            _delete(folder, [file.location for file in files])
    return freed


def _delete(folder: Path, files: list[str]) -> None:
    # Invariant 1 covers the store; these are copies of its files, verified by their bytes.
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    # Other files in an attempt's folder belong to whoever put them there, and stay: its marker goes before the note.
    for name in {Path(path).relative_to(folder).parts[0] for path in files}:
        marker_of(folder / name).unlink(missing_ok=True)
    (folder / NOTE).unlink(missing_ok=True)
    for below, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # A folder that still holds other files stays.
            os.rmdir(below)


def _is_unfinished(folder: Path) -> bool:
    return folder.name.startswith(_UNFINISHED)


def _has_files(placement: Placement | None, folder: Path) -> bool:
    """Say whether files of a cached model lie in a folder."""
    return placement is not None and any(is_below(file.location, folder) for file in placement.files)


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as found:
            return [Path(item.path) for item in found if item.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []  # Nothing was ever stored there.


def _batches(items: list[_Item]) -> Iterator[list[_Item]]:
    for at in range(0, len(items), _BATCH):
        yield items[at : at + _BATCH]
