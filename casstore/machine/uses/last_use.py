"""When this machine last read each model of a private store: the times of empty files that have the models' ids."""

from __future__ import annotations

import contextlib
import os
import time

_SECONDS = 3600.0
"""Seconds for which a use that was noted counts for later ones: a hot hit costs nothing."""


class LastUse:
    """The last uses of one store's models, in `folder`; without one, or where it is not there, none is noted.

    Files, and not rows of a database: no reader ever waits for another one, and a use costs two calls of the system.
    Safe in threads and processes. Never raises OSError.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else os.path.join(folder, "used")
        self._noted: dict[bytes, float] = {}

    def keep(self) -> None:
        """Note uses from now on, also those of other processes."""
        self._noted.clear()
        if self._folder is not None:
            # Invariant 13: without the folder, the times of records count.
            with contextlib.suppress(OSError):
                os.makedirs(self._folder, mode=0o700, exist_ok=True)

    def note(self, model_id: bytes) -> None:
        """Note that a model is used now; at most once an hour for each."""
        now = time.monotonic()
        if self._folder is None or now - self._noted.get(model_id, -_SECONDS) < _SECONDS:
            return
        self._noted[model_id] = now
        path = os.path.join(self._folder, model_id.hex())
        # Invariant 13: a use that is not noted only makes a model seem older.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.utime(path)

    def time(self, model_id: bytes) -> float:
        """Return when a model was last used, in POSIX seconds by this machine's clock; 0 if that is not known."""
        if self._folder is None:
            return 0.0
        try:
            return os.stat(os.path.join(self._folder, model_id.hex())).st_mtime
        except OSError:
            return 0.0  # Invariant 13: then the time of its record counts.

    def times(self) -> dict[bytes, float]:
        """Return the last use of every model that is known, by model id."""
        found: dict[bytes, float] = {}
        if self._folder is None:
            return found
        # Invariant 13, as above.
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError, ValueError):
                    found[bytes.fromhex(entry.name)] = entry.stat().st_mtime
        return found

    def forget(self, model_id: bytes) -> None:
        """Remove the note on a model that is gone."""
        if self._folder is not None:
            with contextlib.suppress(OSError):  # Invariant 13: it only takes a little space.
                os.unlink(os.path.join(self._folder, model_id.hex()))
