"""Plain files on this machine, of cached models and of running passes: which are in use, and which may be deleted.

Every byte of a cached model can be made again from the store, so its files go when the run that used them has ended.
Those that the run was for stay, up to a bound: the least recently used go first. Files in use by a live process stay,
and nothing is deleted that is not exactly what was cached, or that the store does not hold.

A pass writes to a folder that no other attempt has had (`new_attempt`), with a marker beside it. What attempts
of ended processes left is deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from casstore.cache.placements.placement import NOTE, Placement
from casstore.cache.placements.room import make_probe
from casstore.cache.placements.trim import OUTPUT, marker_of, size_of_files, trim, unfinished_path
from casstore.machine.uses.processes import Uses, unlock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from casstore.cache.directories import CacheDirectories

_log = logging.getLogger("casstore.cache")

_FILES = "files"


class Placements:
    """The plain files of one cache; safe in threads, and beside other processes."""

    def __init__(
        self,
        directories: CacheDirectories,
        *,
        max_bytes: int,
        keep_all: bool,
        is_stored: Callable[[Placement], bool],
    ) -> None:
        """`is_stored` says whether the store holds a model: only then may its files be deleted."""
        self._directories = directories
        self._max_bytes = max_bytes
        self._keep_all = keep_all
        self._is_stored = is_stored
        self._uses = Uses(directories.locks)
        self._handed: dict[str, None] = {}
        self._spent: set[str] = set()
        self._unnoted: set[str] = set()
        self._estimate: int | None = None
        self._trim_above = max_bytes

    def spend(self, content: str) -> None:
        """Note that a model is no output of the run: a later pass takes it as input, or its files were saved elsewhere."""
        self._spent.add(content)

    def end_run(self, outputs: Collection[str] | None = None) -> None:
        """Delete the files that this run used, except those of its outputs, which are in use until `close`.

        `outputs` are contents; by default, what was handed out and not spent.
        """
        self._release(set(outputs) if outputs is not None else self._handed.keys() - self._spent)
        self.trim()

    def close(self) -> None:
        """End the run, and give up every use."""
        self._release(self._handed.keys() - self._spent)
        self._uses.close()
        self.trim()

    def _release(self, outputs: Collection[str]) -> None:
        """Stop using everything but `outputs` and attempts; note beside the files which are which."""
        # Invariant 13: where the lock fails, they go on being in use until this process ends.
        with contextlib.suppress(OSError), self._uses.locked():
            self._uses.release(
                {name for name in self._uses.mine() if not self._is_needed(Path(name), outputs)}
            )
        self._handed, self._spent = dict.fromkeys(outputs), set()

    def _is_needed(self, folder: Path, outputs: Collection[str]) -> bool:
        placement = Placement.read(folder)
        if placement is None:
            return True  # An attempt, or a checkout that is being written.
        is_output = placement.content in outputs
        if is_output != placement.output:
            try:
                replace(placement, output=is_output).write(folder)
            except OSError:
                # Invariant 13: on a full disk, its files stay until another run ends, and are written again after that.
                if is_output:
                    self._unnoted.add(str(folder))
        return is_output

    def trim(self) -> int:
        """Delete what no run needs and the store holds, and leftovers of dead processes; return the bytes."""
        try:
            freed, left = trim(
                self._directories,
                self._uses,
                max_bytes=self._max_bytes,
                keep_all=self._keep_all,
                kept=self._unnoted,
                is_stored=self._is_stored,
            )
        except OSError as error:
            # Invariant 11: files that could not be deleted only take room.
            _log.warning("Old working files could not be deleted: %s", error)
            return 0
        # Measured again only when this process's additions may matter, not for each model.
        self._estimate, self._trim_above = left, max(self._max_bytes, left + left // 8)
        return freed

    # Cached models

    def working(self, model_id: str, content: str) -> Placement | None:
        """Return a run's files if they hold this model, and use them; None otherwise."""
        return self._find(self._directories.run(model_id), content)

    def checkout(self, content: str) -> Placement | None:
        """Return the checkout of a model if it holds what it should, and use it; None if there is none."""
        return self._find(self._directories.checkouts / content, content)

    def seems_intact(self, model_id: str, content: str) -> bool:
        """Say whether the files of a run, or the checkout, of this model are here, without reading them."""
        for folder in (self._directories.run(model_id), self._directories.checkouts / content):
            placement = Placement.read(folder)
            if placement is not None and placement.content == content and placement.seems_intact():
                return True
        return False

    def checkout_path(self, content: str) -> Path:
        """Return the folder that a model is checked out to."""
        return self._directories.checkouts / content / _FILES

    def scratch(self) -> Path:
        """Return a new folder beside the checkouts, for an unfinished one."""
        path = unfinished_path(self._directories.checkouts)
        with self._uses.locked():
            self._uses.claim(path)
            path.mkdir(parents=True)
        return path

    def keep_working(self, model_id: str, placement: Placement) -> None:
        """Note where the files of a run's cached model are, in use by this process."""
        folder = self._directories.run(model_id)
        with self._uses.locked():
            self._uses.claim(folder)
            folder.mkdir(parents=True, exist_ok=True)
            placement.write(folder)
        self._handed[placement.content] = None
        self._trim_if_full(placement)

    def finish_checkout(self, made: Path, placement: Placement) -> Placement:
        """Give a complete checkout its name, in use by this process; return it as it is there.

        `placement` has the paths in `made`, its config the final ones. One that another process
        finished first is kept if it holds what it should, replaced otherwise.
        """
        final = self._directories.checkouts / placement.content
        there = self._find(final, placement.content)
        if there is not None:
            # Invariant 4: the other one is complete, so this one is not needed.
            shutil.rmtree(made, ignore_errors=True)
            return there
        before, after = f"{made}{os.sep}", f"{final}{os.sep}"
        files = [
            replace(file, location=after + file.location.removeprefix(before)) for file in placement.files
        ]
        placement = replace(placement, files=tuple(files))
        (made / NOTE).write_bytes(placement.encode())
        replaced = unfinished_path(final.parent)
        with self._uses.locked():
            self._uses.claim(final)
            with contextlib.suppress(FileNotFoundError):
                # Invariant 4: a checkout that was changed is made again.
                os.rename(final, replaced)
            os.rename(made, final)
        self._handed[placement.content] = None
        shutil.rmtree(replaced, ignore_errors=True)
        self._trim_if_full(placement)
        return placement

    # Attempts of passes

    def new_attempt(self, model_id: str) -> Path:
        """Return a new, empty folder for one attempt to make a model, in use by this process.

        No other attempt has had it, or will. Raises OSError where the cache's disk is full or cannot be written.
        """
        run = self._directories.run(model_id)
        with self._uses.locked():
            folder = run / OUTPUT
            if os.path.lexists(folder) or os.path.lexists(marker_of(folder)):
                folder = run / f"{OUTPUT}~{uuid.uuid4().hex}"
            run.mkdir(parents=True, exist_ok=True)
            self._uses.claim(folder, needed=True)
            make_probe(marker_of(folder))
            folder.mkdir()
        return folder

    def discard_attempt(self, folder: Path) -> None:
        """Delete the files of a failed attempt. Its name stays taken, since something may still write there."""
        shutil.rmtree(folder, ignore_errors=True)  # Invariant 13: leftovers are not part of any result.

    def keep_attempt(self, folder: Path) -> None:
        """Protect the files of an attempt: they could not be stored, so there is no other copy."""
        # Invariant 13: at worst the files are deleted after this process has ended.
        with contextlib.suppress(OSError):
            marker_of(folder).unlink(missing_ok=True)

    @contextlib.contextmanager
    def committing(self, model_id: str) -> Iterator[None]:
        """Let one process at a time record what a run made; without effect where folders cannot be locked."""
        descriptor = None
        # Invariant 10: the lock is optional; the newest record counts anyway.
        with contextlib.suppress(OSError):
            run = self._directories.run(model_id)
            run.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if descriptor is not None:
                unlock(descriptor)

    def _find(self, folder: Path, content: str) -> Placement | None:
        if not os.path.lexists(folder / NOTE):
            return None
        with self._uses.locked():
            placement = Placement.read(folder)
            if placement is None or placement.content != content:
                return None
            self._uses.claim(folder)
        found = placement.verified()  # Outside the lock: this may read every byte.
        if found is not None:
            self._handed[content] = None
            with contextlib.suppress(OSError):  # Invariant 13: only the order of deletion depends on it.
                if found != placement:
                    with self._uses.locked():
                        if Placement.read(folder) == placement:
                            found.write(folder)
                else:
                    os.utime(folder / NOTE)
        return found

    def _trim_if_full(self, placement: Placement) -> None:
        """Count the bytes that were added; trim if they may be above the bound."""
        if self._estimate is None:
            # No trim yet: files that a killed run left may be hits of this one, and comparing them takes long.
            self._estimate = size_of_files(self._directories)
        else:
            self._estimate += placement.size
        if self._estimate > self._trim_above:
            self.trim()
