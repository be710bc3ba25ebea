"""What live processes use, by name: each process locks a list of its own, and the kernel unlocks a dead one's."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import uuid
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("casstore")


class Uses:
    """The names that this process uses, and those of others, by lists in `folder`. Safe in threads."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._mine: set[str] = set()
        self._list: int | None = None
        self._list_path: Path | None = None
        _all.add(self)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the one short lock under which names are claimed, and what they name is moved and deleted."""
        with self._lock:
            descriptor = os.open(self._folder / "list.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                unlock(descriptor)

    def claim(self, used: str | os.PathLike[str], *, needed: bool = False) -> None:
        """Put a name on this process's list; `needed` raises OSError where that cannot be written."""
        name = os.fspath(used)
        if name in self._mine:
            return
        try:
            if self._list is None:
                self._list_path = self._folder / f"{os.getpid()}-{uuid.uuid4().hex}.uses"
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                self._list = os.open(self._list_path, flags, 0o666)
                fcntl.flock(self._list, fcntl.LOCK_EX)
            write_whole(self._list, os.fsencode(name) + b"\0")
        except OSError as error:
            if needed:
                raise
            # Invariant 13: on a full disk, things are used without telling other processes so.
            _log.warning("%s is used, but could not be listed as in use: %s", name, error)
        self._mine.add(name)

    def mine(self) -> set[str]:
        """Return what this process uses."""
        return set(self._mine)

    def release(self, names: set[str]) -> None:
        """Give up some uses; call it while `locked`, since the list is written anew."""
        self._mine -= names
        if self._list is None or self._list_path is None:
            return
        data = b"".join(os.fsencode(name) + b"\0" for name in sorted(self._mine))
        # Invariant 13: at worst these go on being listed until this process ends.
        with contextlib.suppress(OSError), open(self._list_path, "r+b") as file:
            # No longer than before, so that a full disk cannot cut it short.
            if len(data) <= os.fstat(file.fileno()).st_size:
                file.write(data)
                file.truncate()

    def used(self) -> set[str]:
        """Return every name that a live process uses; lists of processes that ended are removed."""
        used = set(self._mine)
        for path in self._folder.glob("*.uses"):
            if path == self._list_path:
                continue
            used.update(_names_in(path))
        return used

    def close(self) -> None:
        """Give up every use, and remove this process's list."""
        with self._lock:
            self._mine.clear()
            held, self._list = self._list, None
            path, self._list_path = self._list_path, None
            if held is not None and path is not None:
                # The lock goes with it, so other processes see that nothing is used.
                os.close(held)
                with contextlib.suppress(OSError):
                    # Invariant 13: what stays, the next process removes that looks. A child that was forked meanwhile
                    # holds the lock as well, and then the list stays with what it uses.
                    _names_in(path)


def _names_in(path: Path) -> list[str]:
    """Return what a list says is used; one that no process holds any more is removed, and says nothing."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            return list(map(os.fsdecode, file.read().split(b"\0")[:-1]))
        path.unlink(missing_ok=True)  # Its processes are gone, and with them every use (invariant 10).
    return []


_all: weakref.WeakSet[Uses] = weakref.WeakSet()


def _after_fork() -> None:
    """Give the child locks of its own: the parent's thread that held one does not exist there."""
    for uses in list(_all):
        uses._lock = threading.Lock()  # noqa: SLF001  # of this module


os.register_at_fork(after_in_child=_after_fork)


def write_whole(descriptor: int, data: bytes) -> None:
    """Write a few bytes; raise OSError if there is no room for all of them."""
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unlock(descriptor: int) -> None:
    """Unlock and close: a child that was forked meanwhile has the descriptor as well, and would keep the lock."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
