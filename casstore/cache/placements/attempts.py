"""Chooses the folder that an attempt to make a model writes to: an empty one that no other attempt has had.

A pipeline asks for a folder by the model's id, and may ask again for the one that it has; it does not say when an
attempt ends. So an attempt begins where a thread asks for the folder after it asked whether the model is there
(`asked`), and lasts until that thread asks again, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from casstore.cache.placements.recent import Recent
from casstore.cache.placements.room import has_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from casstore.cache.placements.placements import Placements

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_TEXT = os.strerror(errno.ENOSPC)
_CAUSES = 10


class Attempts:
    """The attempts of one cache. Safe in threads: each has attempts of its own."""

    def __init__(self, placements: Placements, *, note: Callable[[str, BaseException], None]) -> None:
        """`note(doing, error)` is called when a folder cannot be in the cache."""
        self._placements = placements
        self._note = note
        self._thread = _Thread()
        self._lock = threading.Lock()
        self._begun: dict[str, list[Path]] = {}
        self._finished: dict[str, Path] = {}
        self._only_copies: dict[str, Path] = {}
        self._outside: set[Path] = set()

    def asked(self, model_id: str) -> None:
        """End this thread's attempt: the thread asks whether the model is there, or knows that it is not."""
        self._thread.folders.pop(model_id, None)
        self._thread.asked.put(model_id, None)

    def found(self, model_id: str) -> None:
        """Undo `asked`: the model is there, and with it the folder that it was made in."""
        self._thread.asked.pop(model_id, None)

    def folder(self, model_id: str) -> Path:
        """Return the folder of this thread's attempt, else that of the model, else a new, empty one.

        It is in the system's temporary directory where the cache's disk is full or cannot be written. Raises
        OSError where that one cannot be written either.
        """
        folder = self._thread.folders.get(model_id)
        if folder is None and model_id not in self._thread.asked:
            with self._lock:
                folder = self._finished.get(model_id)
            if folder is not None and not folder.is_dir():
                folder = None  # Its files went when a run ended.
        return folder or self.begin(model_id)

    def begin_outside(self, model_id: str, failed: Path, error: Exception) -> Path | None:
        """Return a new folder elsewhere if an attempt failed because the cache's disk is full, else None."""
        with self._lock:
            inside = failed not in self._outside
        if not inside or not (_names_full_disk(error) or not has_room(failed.parent)):
            return None
        self.discard(model_id, failed)
        self._note(f"make {model_id} in the cache, so it is made in {tempfile.gettempdir()}", error)
        return self.begin(model_id, outside=True)

    def resume(self, model_id: str, folder: Path) -> None:
        """Make the attempt with this folder this thread's current one again, whatever was asked meanwhile."""
        self._thread.asked.pop(model_id, None)
        self._thread.folders[model_id] = folder

    def begin(self, model_id: str, *, outside: bool = False) -> Path:
        """Return a new folder; with `outside`, one that is not in the cache."""
        folder = None if outside else self._inside(model_id)
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="casstore-pass-")) / "models"
            folder.mkdir()
            with self._lock:
                self._outside.add(folder)
        with self._lock:
            self._begun.setdefault(model_id, []).append(folder)
        self.resume(model_id, folder)
        return folder

    def finish(self, model_id: str, texts: Iterable[str], *, stored: bool) -> None:
        """Record that a model was made, whose config holds these texts, and whether the store has it.

        If only its folder has the model, that is never deleted.
        """
        with self._lock:
            folders = self._begun.get(model_id, ())
            named = next((folder for text in texts for folder in folders if _is_in(text, folder)), None)
            folder = named or self._thread.folders.get(model_id)
            if folder is None:
                return
            self._finished[model_id] = folder
            self._only_copies.pop(model_id, None)
            if not stored:
                self._only_copies[model_id] = folder
                self._outside.discard(folder)
        if not stored:
            self._placements.keep_attempt(folder)

    def only_copy(self, model_id: str) -> Path | None:
        """Return the folder of a model that was made and could not be stored, None for any other."""
        with self._lock:
            return self._only_copies.get(model_id)

    def fail(self, model_id: str) -> None:
        """Record that this thread's attempt failed; its files are deleted."""
        folder = self._thread.folders.get(model_id)
        if folder is not None:
            self.discard(model_id, folder)

    def discard(self, model_id: str, folder: Path) -> None:
        """Delete the files of an attempt."""
        with self._lock:
            outside = folder in self._outside
            self._outside.discard(folder)
            with contextlib.suppress(ValueError):
                self._begun.get(model_id, []).remove(folder)
            if self._finished.get(model_id) == folder:
                del self._finished[model_id]
        if self._thread.folders.get(model_id) == folder:
            del self._thread.folders[model_id]
        self._placements.discard_attempt(folder)
        if outside:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def close(self) -> None:
        """Delete the folders outside the cache, except those with the only copy of a model."""
        with self._lock:
            outside, self._outside = self._outside, set()
            self._finished.clear()
            self._only_copies.clear()
            self._begun.clear()
        for folder in outside:
            # Invariant 13: the system cleans its temporary directory.
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _inside(self, model_id: str) -> Path | None:
        try:
            return self._placements.new_attempt(model_id)
        except OSError as error:
            # Invariant 11: the pass works elsewhere rather than fail because of the cache.
            self._note(
                f"give {model_id} a folder in the cache, so it is made in {tempfile.gettempdir()}", error
            )
            return None


class _Thread(threading.local):
    """One thread's state: its attempts' folders, and the models that it asked for since."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        # Most models that are asked for are hits, and never need a folder.
        self.asked: Recent[None] = Recent()


def _is_in(text: str, folder: Path) -> bool:
    return text == str(folder) or text.startswith(f"{folder}{os.sep}")


def _names_full_disk(error: BaseException | None) -> bool:
    """Say whether an error, or one of its causes, is about a full disk: libraries wrap the system's errors."""
    for _ in range(_CAUSES):
        if error is None:
            return False
        if (isinstance(error, OSError) and error.errno in _FULL) or _FULL_TEXT in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
