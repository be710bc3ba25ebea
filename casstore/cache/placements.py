"""Plain files of cached models on this machine: which are there, unchanged and in use, and which may go.

Every byte of them can be made again from the store, so they are bounded: the least recently used go first,
what a live process uses never goes, and nothing is deleted that is not exactly what was cached.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.store.sources import StatIdentity, place_sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from casstore.cache.directories import CacheDirectories

_log = logging.getLogger("casstore.cache")

_NOTE = "placement.json"
_MAKING = "making-"
_LIST = "list.lock"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the files of one cached model lie: its model id, its config with paths here, each file's identity."""

    content: str
    model: dict[str, Any]
    files: tuple[tuple[str, StatIdentity], ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(identity.size for _, identity in self.files)

    def intact(self) -> bool:
        """Say whether every file is what was cached, by its stat identity."""
        try:
            return all(StatIdentity.of(os.stat(path)) == identity for path, identity in self.files)
        except OSError:
            return False  # Invariant 4: what cannot be looked at is not trusted; the store gives it again.

    def unchanged(self) -> Iterator[tuple[str, StatIdentity]]:
        """Yield the files that are still there and unchanged: these, and no others, may be deleted."""
        for path, identity in self.files:
            with contextlib.suppress(OSError):  # Invariant 4, as above: what changed is not ours to judge.
                if StatIdentity.of(os.stat(path)) == identity:
                    yield path, identity

    def encode(self) -> bytes:
        """Return the bytes of the note that is kept beside the files."""
        files = [[path, *identity.fields()] for path, identity in self.files]
        return json.dumps({"content": self.content, "model": self.model, "files": files}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Placement | None:
        """Read a note; None for one that cannot be used."""
        try:
            value = json.loads(data)
            files = tuple((str(path), StatIdentity(*map(int, rest))) for path, *rest in value["files"])
            return cls(str(value["content"]), dict(value["model"]), files)
        except (ValueError, KeyError, TypeError):
            return None  # The files can be made again (invariant 4), so a torn note costs time, not truth.


def identities(places: Mapping[str, str]) -> tuple[tuple[str, StatIdentity], ...]:
    """Return each file that `places` names, with its identity as it is now."""
    return tuple((file.location, file.identity) for file in place_sources(places).files)


class Placements:
    """The plain files of one cache; safe in threads, and beside other processes."""

    def __init__(self, directories: CacheDirectories, *, max_bytes: int) -> None:
        self._directories = directories
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._mine: set[str] = set()
        self._working: dict[str, Path] = {}
        self._own_list: int | None = None
        self._own_path: Path | None = None
        self._estimate: int | None = None

    def close(self) -> None:
        """Give up every use; what was used may be deleted from now on, by the bound."""
        with self._lock:
            self._mine.clear()
            self._working.clear()
            held, self._own_list = self._own_list, None
            if held is not None:
                os.close(held)  # The lock goes with it, which tells other processes that nothing is used.
        self.trim()

    def working(self, model_id: str) -> Placement | None:
        """Return the intact files in a run's working folder, and use them; None if there are none."""
        return self._find(self._directories.run(model_id))

    def checkout(self, content: str) -> Placement | None:
        """Return the intact checkout of a model, and use it; None if there is none."""
        return self._find(self._directories.checkouts / content)

    def checkout_path(self, content: str) -> Path:
        """Return where a model is checked out to."""
        return self._directories.checkouts / content / "files"

    def scratch(self) -> Path:
        """Return a new folder beside the checkouts, for one that is in the making."""
        place = self._directories.checkouts / f"{_MAKING}{uuid.uuid4().hex}"
        with self._listed():
            self._claim(place)
            place.mkdir(parents=True)
        return place

    def working_folder(self, model_id: str) -> Path:
        """Return the folder that a run of this process may write to, and keep it until `close`.

        It is the run's own, unless another process uses that one: two that write the same files would leave
        a mixture of both.
        """
        with self._listed():
            folder = self._working.get(model_id)
            if folder is None:
                folder = self._directories.run(model_id)
                if str(folder) in self._used_elsewhere():
                    folder = folder.with_name(f"{folder.name}~{uuid.uuid4().hex}")
                self._working[model_id] = folder
            self._claim(folder)
        return folder

    def keep_working(self, model_id: str, placement: Placement) -> None:
        """Note that a run's working folder holds a cached model, in use by this process."""
        self._note(self._working.get(model_id) or self._directories.run(model_id), placement)

    def finish_checkout(self, made: Path, content: str) -> Path:
        """Give a checkout that is whole its final place, in use by this process; return where its files are.

        One that another process finished first is kept if it is intact, replaced otherwise.
        """
        final = self._directories.checkouts / content
        with self._listed():
            self._claim(final)
            there = _read_note(final)
            if there is not None and there.intact():
                shutil.rmtree(
                    made, ignore_errors=True
                )  # Invariant 4: the other one is whole, this one spare.
                return final / "files"
            _remove(final)  # Invariant 4: a checkout that is not what it should be is made again.
            os.rename(made, final)
        return final / "files"

    def keep_checkout(self, content: str, placement: Placement) -> None:
        """Note what a finished checkout holds."""
        self._note(self._directories.checkouts / content, placement)

    def trim(self) -> int:
        """Delete the least recently used files above the bound; return the bytes that went."""
        freed = 0
        try:
            with self._listed():
                entries = sorted(self._entries(), key=lambda entry: entry[0])
                total = sum(identity.size for _, _, files in entries for _, identity in files)
                used = self._used()
                for made in self._directories.checkouts.glob(f"{_MAKING}*"):
                    if str(made) not in used:
                        # Invariant 4: nobody makes it any more, so it never gets its name.
                        shutil.rmtree(made, ignore_errors=True)
                for _, folder, files in entries:
                    if total <= self._max_bytes:
                        break
                    if str(folder) in used:
                        continue
                    size = sum(identity.size for _, identity in files)
                    self._delete(folder, [path for path, _ in files])
                    total, freed = total - size, freed + size
                # Looked at again only when what this process adds may pass the bound: not once for each model.
                self._estimate = total
        except OSError as error:
            # Invariant 11: files that could not go take room, nothing more.
            _log.warning("Old working files could not be deleted: %s", error)
        return freed

    def _find(self, folder: Path) -> Placement | None:
        with self._listed():
            placement = _read_note(folder)
            if placement is None or not placement.intact():
                return None
            self._claim(folder)
            with contextlib.suppress(OSError):  # Only the order in which files go depends on it.
                os.utime(folder / _NOTE)
        return placement

    def _note(self, folder: Path, placement: Placement) -> None:
        with self._listed():
            self._claim(folder)
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f"{_NOTE}.{uuid.uuid4().hex}"
            temporary.write_bytes(placement.encode())
            os.replace(temporary, folder / _NOTE)  # Whole or not at all, as invariant 2 asks of the store.
            if self._estimate is not None:
                self._estimate += placement.size
        if self._estimate is None or self._estimate > self._max_bytes:
            self.trim()

    def _entries(self) -> Iterator[tuple[float, Path, list[tuple[str, StatIdentity]]]]:
        """Yield when each group of files was last used, where its note is, and its files that may go."""
        roots = [self._directories.checkouts, *self._directories.checkouts.parent.glob("*/runs")]
        if self._directories.runs not in roots:
            roots.append(self._directories.runs)
        for root in roots:
            for note in root.glob(f"*/{_NOTE}"):
                with contextlib.suppress(
                    OSError
                ):  # Another process may have deleted it since (invariant 10).
                    placement = Placement.decode(note.read_bytes())
                    if placement is not None:
                        below = f"{note.parent}{os.sep}"
                        files = [item for item in placement.unchanged() if item[0].startswith(below)]
                        yield note.stat().st_mtime, note.parent, files

    def _delete(self, folder: Path, files: list[str]) -> None:
        # Invariant 1 is about the store: these are copies of what it holds, and told so by their identity.
        (folder / _NOTE).unlink(missing_ok=True)
        for path in files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for place, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # A folder that still holds other files stays.
                os.rmdir(place)

    @contextlib.contextmanager
    def _listed(self) -> Iterator[None]:
        """Hold the one short lock under which uses are claimed and files go."""
        with self._lock:
            descriptor = os.open(
                self._directories.locks / _LIST, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def _claim(self, folder: Path) -> None:
        name = str(folder)
        if name in self._mine:
            return
        if self._own_list is None:
            self._own_path = self._directories.locks / f"{os.getpid()}-{uuid.uuid4().hex}.uses"
            self._own_list = os.open(
                self._own_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666
            )
            fcntl.flock(self._own_list, fcntl.LOCK_EX)
        os.write(self._own_list, os.fsencode(name) + b"\0")
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


def _read_note(folder: Path) -> Placement | None:
    try:
        return Placement.decode((folder / _NOTE).read_bytes())
    except OSError:
        return None  # No note, no trust: the store gives the files again (invariant 4).


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
