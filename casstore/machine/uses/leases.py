"""Refs of a store that running pipelines of this machine have hit or made, and that no policy may delete meanwhile."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from casstore.machine.uses.processes import Uses

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("casstore")


class Leases:
    """The leases of one store, as lists in `folder`; without one, there are none. Safe in threads and processes.

    A pipeline takes a lease on a ref and then reads it; a collector deletes a ref only while nobody can take one. So the
    ref is there for as long as the pipeline runs, or it was gone when the pipeline looked.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else os.path.join(folder, "leases")
        self._uses = None if self._folder is None else Uses(self._folder)
        self._taken: set[str] = set()

    def take(self, ref: str) -> None:
        """Keep a ref until this process ends or calls `close`; call it before the ref is read."""
        if self._uses is None or self._folder is None or ref in self._taken:
            return
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with self._uses.locked():
                self._uses.claim(ref)
        except OSError as error:
            # Invariant 13: without it, the worst is that a policy deletes the ref, and a pass runs again.
            _log.debug("%s is used, and no lease on it could be taken: %s", ref, error)
        self._taken.add(ref)

    @contextlib.contextmanager
    def held(self) -> Iterator[frozenset[str]]:
        """Give the refs on which any live process has a lease; until the end of the block nobody can take another one.

        Raises OSError where they cannot be read: then nobody knows what is in use.
        """
        if self._uses is None or self._folder is None:
            yield frozenset()
            return
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
        except OSError:
            if os.path.isdir(self._folder):
                raise
            # There is none, and nobody of this user can make one.
            yield frozenset()
            return
        with self._uses.locked():
            yield frozenset(self._uses.used())

    def close(self) -> None:
        """Give up every lease of this process."""
        self._taken.clear()
        if self._uses is not None:
            self._uses.close()
