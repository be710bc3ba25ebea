"""Plain files on this machine, of cached models and of running passes: which are in use, and which may be deleted.

Every byte of a cached model can be made again from the store, so these are bounded: the least recently used go
first, files in use by a live process stay, and nothing is deleted that is not exactly what was cached.

A pass writes to a folder that no other attempt has had (`new_attempt`), with a marker beside it. What attempts
of ended processes left is deleted; the kernel drops a dead process's lock on its list of uses.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import shutil
import threading
import uuid
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from casstore.cache.passes.room import make_probe, write_whole
from casstore.cache.placements.notes import NOTE, holds, is_below, read_note, size_below, write_note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.cache.directories import CacheDirectories
    from casstore.cache.placements.placement import Placement

_log = logging.getLogger("casstore.cache")

_Item = TypeVar("_Item")

_MAKING = "making-"
_LIST = "list.lock"
_OUTPUT = "models"
_MARKER = ".attempt"
_FILES = "files"
_BATCH = 64
"""Folders that are deleted before the lock is released once, so that others do not wait for long."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """The files of one cached model, as its note has them."""

    used: float
    folder: Path
    size: int


class Placements:
    """The plain files of one cache; safe in threads, and beside other processes."""

    def __init__(self, directories: CacheDirectories, *, max_bytes: int) -> None:
        self._directories = directories
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._mine: set[str] = set()
        self._own_list: int | None = None
        self._own_path: Path | None = None
        self._estimate: int | None = None
        self._trim_above = max_bytes
        _all.add(self)

    def close(self) -> None:
        """Give up every use; from now on the files may be deleted, by the bound."""
        with self._lock:
            self._mine.clear()
            held, self._own_list = self._own_list, None
            if held is not None:
                os.close(held)  # The lock goes with it, so other processes see that nothing is used.
        self.trim()

    # Cached models

    def working(self, model_id: str, content: str) -> Placement | None:
        """Return a run's files if they hold this model, and use them; None otherwise."""
        return self._find(self._directories.run(model_id), content)

    def checkout(self, content: str) -> Placement | None:
        """Return the checkout of a model if it holds what it should, and use it; None if there is none."""
        return self._find(self._directories.checkouts / content, content)

    def stands(self, model_id: str, content: str) -> bool:
        """Say whether the files of a run, or the checkout, of this model are here, without reading them."""
        for folder in (self._directories.run(model_id), self._directories.checkouts / content):
            placement = read_note(folder)
            if placement is not None and placement.content == content and placement.stands():
                return True
        return False

    def checkout_path(self, content: str) -> Path:
        """Return the folder that a model is checked out to."""
        return self._directories.checkouts / content / _FILES

    def scratch(self) -> Path:
        """Return a new folder beside the checkouts, for an unfinished one."""
        place = self._directories.checkouts / f"{_MAKING}{uuid.uuid4().hex}"
        with self._listed():
            self._claim(place)
            place.mkdir(parents=True)
        return place

    def keep_working(self, model_id: str, placement: Placement) -> None:
        """Note where the files of a run's cached model are, in use by this process."""
        self._note(self._directories.run(model_id), placement)

    def finish_checkout(self, made: Path, placement: Placement) -> Placement:
        """Move a complete checkout to its final place, in use by this process; return it as it is there.

        `placement` has the paths in `made`, its config those of the final place. One that another process
        finished first is kept if it holds what it should, replaced otherwise.
        """
        final = self._directories.checkouts / placement.content
        there = self._find(final, placement.content)
        if there is not None:
            shutil.rmtree(
                made, ignore_errors=True
            )  # Invariant 4: the other one is complete, so this one is not needed.
            return there
        before, after = f"{made}{os.sep}", f"{final}{os.sep}"
        placement = replace(
            placement,
            files=tuple(
                replace(file, location=after + file.location.removeprefix(before)) for file in placement.files
            ),
        )
        (made / NOTE).write_bytes(placement.encode())
        replaced = self.scratch() / "replaced"
        with self._listed():
            self._claim(final)
            with contextlib.suppress(FileNotFoundError):
                # Invariant 4: a checkout that was changed is made again.
                os.rename(final, replaced)
            os.rename(made, final)
        shutil.rmtree(replaced.parent, ignore_errors=True)
        self._count(placement.size)
        return placement

    # Attempts of passes

    def new_attempt(self, model_id: str) -> Path:
        """Return a new, empty folder for one attempt to make a model, in use by this process.

        No other attempt has had it, or will. Raises OSError where the cache's disk is full or cannot be written.
        """
        run = self._directories.run(model_id)
        with self._listed():
            folder = run / _OUTPUT
            if os.path.lexists(folder) or os.path.lexists(_marker(folder)):
                folder = run / f"{_OUTPUT}~{uuid.uuid4().hex}"
            run.mkdir(parents=True, exist_ok=True)
            self._claim(folder, needed=True)
            make_probe(_marker(folder))
            folder.mkdir()
        return folder

    def discard_attempt(self, folder: Path) -> None:
        """Delete the files of a failed attempt. Its name stays taken, since something may still write there."""
        shutil.rmtree(folder, ignore_errors=True)  # Invariant 13: leftovers are not part of any result.

    def keep_attempt(self, folder: Path) -> None:
        """Protect the files of an attempt: they could not be stored, so there is no other copy."""
        with contextlib.suppress(
            OSError
        ):  # Invariant 13: at worst the files are deleted after this process has ended.
            _marker(folder).unlink(missing_ok=True)

    @contextlib.contextmanager
    def committing(self, model_id: str) -> Iterator[None]:
        """Let one process at a time record what a run made; without effect where folders cannot be locked."""
        descriptor = None
        with contextlib.suppress(
            OSError
        ):  # Invariant 10: the lock is optional; the newest record counts anyway.
            run = self._directories.run(model_id)
            run.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if descriptor is not None:
                _unlock(descriptor)

    # The bound

    def trim(self) -> int:
        """Delete the least recently used files above the bound, and leftovers of dead processes; return the bytes."""
        freed = 0
        try:
            entries, left = self._survey()
            with self._listed():
                used = self._used()
            for leftovers in _batches([folder for folder in left if str(folder) not in used]):
                self._remove_leftovers(leftovers)
            total = sum(entry.size for entry in entries)
            above = total - self._max_bytes
            going: list[_Entry] = []
            for entry in sorted(entries, key=lambda entry: entry.used):
                if above <= 0:
                    break
                if str(entry.folder) not in used:
                    going.append(entry)
                    above -= entry.size
            for old in _batches(going):
                freed += self._remove_files(old)
            # Measured again only when this process's additions may matter, not for each model.
            self._estimate = total - freed
            self._trim_above = max(self._max_bytes, self._estimate + self._estimate // 8)
        except OSError as error:
            # Invariant 11: files that could not be deleted only take room.
            _log.warning("Old working files could not be deleted: %s", error)
        return freed

    def _survey(self) -> tuple[list[_Entry], list[Path]]:
        """Return all notes, and the folders without one: of attempts, and of unfinished checkouts."""
        checkouts = self._directories.checkouts
        roots = {checkouts, self._directories.runs, *checkouts.parent.glob("*/runs")}
        entries: list[_Entry] = []
        left: list[Path] = []
        for folder in itertools.chain.from_iterable(map(_folders, roots)):
            if folder.parent == checkouts and folder.name.startswith(_MAKING):
                left.append(folder)
                continue
            with contextlib.suppress(OSError):  # Another process may have deleted it since (invariant 10).
                names = os.listdir(folder)
                placement = read_note(folder) if NOTE in names else None
                if placement is not None:
                    entries.append(
                        _Entry((folder / NOTE).stat().st_mtime, folder, size_below(placement, folder))
                    )
                left += [
                    folder / name.removesuffix(_MARKER)
                    for name in names
                    if _is_marker(name) and not holds(folder / name.removesuffix(_MARKER), placement)
                ]
        return entries, left

    def _remove_leftovers(self, folders: list[Path]) -> None:
        """Delete folders that no live process uses and no note names."""
        aside: list[Path] = []
        with self._listed():
            used = self._used()
            for folder in folders:
                making = folder.name.startswith(_MAKING)
                if str(folder) in used or (not making and holds(folder, read_note(folder.parent))):
                    continue  # Invariant 10: another process has begun to use it meanwhile.
                aside.append(folder)
                if not making:
                    with contextlib.suppress(
                        OSError
                    ):  # Moved or gone meanwhile; a moved one is deleted at its new place.
                        place = self._directories.checkouts / f"{_MAKING}{uuid.uuid4().hex}"
                        os.rename(folder, place)
                        aside[-1] = place
                    _marker(folder).unlink(missing_ok=True)
        for folder in aside:
            # Invariant 4: its writer has ended, so it never becomes a result.
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_files(self, entries: list[_Entry]) -> int:
        """Delete unchanged files of cached models; return their bytes."""
        known = {entry.folder: read_note(entry.folder) for entry in entries}
        going = {
            folder: [file for file in placement.verified_files() if is_below(file.location, folder)]
            for folder, placement in known.items()
            if placement is not None
        }
        freed = 0
        with self._listed():
            used = self._used()
            for folder, files in going.items():
                if str(folder) in used or read_note(folder) != known[folder]:
                    continue  # Invariant 10, as above.
                freed += sum(file.identity.size for file in files)
                _delete(folder, [file.location for file in files])
        return freed

    # How it works

    def _find(self, folder: Path, content: str) -> Placement | None:
        if not os.path.lexists(folder / NOTE):
            return None
        with self._listed():
            placement = read_note(folder)
            if placement is None or placement.content != content:
                return None
            self._claim(folder)
        found = placement.verified()  # Outside the lock: this may read every byte.
        if found is not None:
            with contextlib.suppress(OSError):  # Invariant 13: only the order of deletion depends on it.
                if found != placement:
                    self._replace_note(folder, placement, found)
                else:
                    os.utime(folder / NOTE)
        return found

    def _note(self, folder: Path, placement: Placement) -> None:
        with self._listed():
            self._claim(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_note(folder, placement)
        self._count(placement.size)

    def _replace_note(self, folder: Path, old: Placement, new: Placement) -> None:
        with self._listed():
            if read_note(folder) == old:
                write_note(folder, new)

    def _count(self, size: int) -> None:
        with self._lock:
            if self._estimate is not None:
                self._estimate += size
            due = self._estimate is None or self._estimate > self._trim_above
        if due:
            self.trim()

    @contextlib.contextmanager
    def _listed(self) -> Iterator[None]:
        """Hold the one short lock under which uses are claimed and files deleted."""
        with self._lock:
            descriptor = os.open(
                self._directories.locks / _LIST, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                _unlock(descriptor)

    def _claim(self, folder: Path, *, needed: bool = False) -> None:
        """Put a folder on this process's list; `needed` raises OSError where that cannot be written."""
        name = str(folder)
        if name in self._mine:
            return
        try:
            if self._own_list is None:
                self._own_path = self._directories.locks / f"{os.getpid()}-{uuid.uuid4().hex}.uses"
                self._own_list = os.open(
                    self._own_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666
                )
                fcntl.flock(self._own_list, fcntl.LOCK_EX)
            line = os.fsencode(name) + b"\0"
            write_whole(self._own_list, line)
        except OSError as error:
            if needed:
                raise
            # Invariant 13: on a full disk, files are used without telling other processes so.
            _log.warning("%s is used, but could not be marked as in use: %s", name, error)
        self._mine.add(name)

    def _used(self) -> set[str]:
        return self._mine | self._used_elsewhere()

    def _used_elsewhere(self) -> set[str]:
        """Return every folder that another live process uses; lists of processes that ended are removed."""
        used: set[str] = set()
        for path in self._directories.locks.glob("*.uses"):
            if path == self._own_path:
                continue
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                        raise
                    used.update(map(os.fsdecode, file.read().split(b"\0")[:-1]))
                else:
                    path.unlink(missing_ok=True)  # Its process is gone, and with it every use (invariant 10).
        return used


_all: weakref.WeakSet[Placements] = weakref.WeakSet()


def _after_fork() -> None:
    """Give the child locks of its own: the parent's thread that held one does not exist there."""
    for placements in list(_all):
        placements._lock = threading.RLock()  # noqa: SLF001  # of this module


os.register_at_fork(after_in_child=_after_fork)


def _marker(folder: Path) -> Path:
    return folder.with_name(folder.name + _MARKER)


def _is_marker(name: str) -> bool:
    return name.startswith(_OUTPUT) and name.endswith(_MARKER)


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as found:
            return [Path(item.path) for item in found if item.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []  # Nothing was ever stored there.


def _batches(items: list[_Item]) -> Iterator[list[_Item]]:
    for at in range(0, len(items), _BATCH):
        yield items[at : at + _BATCH]


def _delete(folder: Path, files: list[str]) -> None:
    # Invariant 1 covers the store; these are copies of its files, verified by their bytes.
    (folder / NOTE).unlink(missing_ok=True)
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        # Other files in an attempt's folder belong to whoever put them there, and stay.
        inside = Path(path).relative_to(folder)
        _marker(folder / inside.parts[0]).unlink(missing_ok=True)
    for place, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # A folder that still holds other files stays.
            os.rmdir(place)


def _unlock(descriptor: int) -> None:
    # Unlock explicitly: a child that was forked meanwhile has the descriptor as well, and would keep the lock.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
