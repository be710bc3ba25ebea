"""What is to be added: the files under a path, links followed, each named by its place in the tree."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from casstore.chunking import LAYOUT_VERSION
from casstore.digest import digest
from casstore.errors import AccessDenied, BackendUnavailable, ConfigError, ConflictError
from casstore.format.manifest import Mode
from casstore.format.paths import check_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

RACY_NANOSECONDS = 2_000_000_000
"""A file touched this recently may change again without its times showing it (git's racy entries)."""


@dataclass(frozen=True, slots=True)
class StatIdentity:
    """What tells an unchanged file: device, inode, bytes, and both times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> StatIdentity:
        """Return the identity in a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def packed(self) -> bytes:
        """Return the identity as bytes."""
        return b"%d,%d,%d,%d,%d" % self.fields()

    def fields(self) -> tuple[int, int, int, int, int]:
        """Return the five numbers in the order in which the class takes them."""
        return (self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns)

    def settled(self, now_ns: int) -> bool:
        """Say whether the file was last touched long enough before `now_ns` to be trusted by its times."""
        return max(self.mtime_ns, self.ctime_ns) + RACY_NANOSECONDS < now_ns


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to add: `path` in the tree, `location` on this machine."""

    path: str
    location: str
    mode: Mode
    identity: StatIdentity


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything to add, in the tree's order; `empty` are the directories that hold nothing."""

    files: tuple[SourceFile, ...]
    empty: tuple[str, ...]

    def stat_key(self, file: SourceFile) -> bytes:
        """Return the key under which the stat cache knows what `file` is.

        It covers the .onnx files beside it, for they say where the tensors in external data lie.
        """
        onnx = b"" if _is_onnx(file) else b";".join(f.identity.packed() for f in self.files if _is_onnx(f))
        return digest(b"%d|%b|%b" % (LAYOUT_VERSION, file.identity.packed(), onnx))


def find_sources(path: str, *, follow: bool = True, exclude: str | None = None) -> Sources:
    """List the file or directory at `path`.

    Links are followed, for a Hugging Face snapshot consists of them; `follow=False` refuses them. Refused
    by name: broken links, cycles, special files, names that are not UTF-8 or unsafe elsewhere, and a
    directory that contains `exclude`, the store itself. Raises ConfigError or AccessDenied.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error  # Invariant 8: what cannot be listed is an error.
    except ValueError as error:
        # Invariant 8, as above: the system has no words for a path with a NUL.
        raise ConfigError(f"{path!r} is not a path: {error}.") from error
    if not follow and os.path.islink(path):
        raise ConfigError(f"{path} is a link, and following links is switched off.")
    files: list[SourceFile] = []
    empty: list[str] = []
    if stat.S_ISDIR(status.st_mode):
        _walk(path, status, files, empty, follow=follow, exclude=exclude)
    else:
        name = os.path.basename(os.path.abspath(path))
        files.append(_source_file(path, _checked_name(name, path), status))
    files.sort(key=lambda file: file.path.encode())
    check_paths([*(file.path for file in files), *empty])
    return Sources(tuple(files), tuple(empty))


def place_sources(places: Mapping[str, str], *, follow: bool = True, exclude: str | None = None) -> Sources:
    """List several files and directories, each under the path in the tree that `places` gives it."""
    files: list[SourceFile] = []
    empty: list[str] = []
    for path, location in places.items():
        found = find_sources(location, follow=follow, exclude=exclude)
        if os.path.isdir(location):
            files += [replace(file, path=f"{path}/{file.path}") for file in found.files]
            empty += [f"{path}/{name}" for name in found.empty]
            if not found.files and not found.empty:
                empty.append(path)
        else:
            files.append(replace(found.files[0], path=path))
    files.sort(key=lambda file: file.path.encode())
    check_paths([*(file.path for file in files), *empty])
    return Sources(tuple(files), tuple(empty))


def check_unchanged(file: SourceFile, status: os.stat_result) -> None:
    """Raise ConflictError if the file is not what it was when it was listed."""
    if StatIdentity.of(status) != file.identity:
        raise ConflictError(f"{file.location} changed while it was read. Nothing was added; add it again.")


def _walk(
    top: str,
    status: os.stat_result,
    files: list[SourceFile],
    empty: list[str],
    *,
    follow: bool,
    exclude: str | None,
) -> None:
    """Collect what lies below `top`; a stack of its own, for folders nest deeper than Python calls."""
    store = _store_place(exclude)
    above: list[tuple[int, int]] = []
    waiting = [(top, "", 0, _place(status))]
    while waiting:
        folder, prefix, depth, place = waiting.pop()
        del above[depth:]
        if place == store:
            raise ConfigError(f"{folder} is the store itself. Add a folder that does not contain the store.")
        if place in above:
            raise ConfigError(f"{folder} links to a folder that it lies in. Remove the link.")
        above.append(place)
        try:
            with os.scandir(folder) as listing:
                children = sorted(listing, key=lambda child: os.fsencode(child.name))
        except OSError as error:
            raise _unreadable(folder, error) from error  # Invariant 8: what cannot be listed is an error.
        if not children and prefix:
            empty.append(prefix.rstrip("/"))
        below = []
        for child in children:
            path = prefix + _checked_name(child.name, child.path)
            try:
                if not follow and child.is_symlink():
                    raise ConfigError(f"{child.path} is a link, and following links is switched off.")
                status = os.stat(child.path)
            except OSError as error:
                raise _unreadable(child.path, error) from error  # Invariant 8, as above.
            if stat.S_ISDIR(status.st_mode):
                below.append((child.path, f"{path}/", depth + 1, _place(status)))
            else:
                files.append(_source_file(child.path, path, status))
        waiting += reversed(below)


def _place(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


def _store_place(path: str | None) -> tuple[int, int] | None:
    try:
        return _place(os.stat(path)) if path is not None else None
    except OSError:
        return None  # Invariant 8: a store that is out of reach is an error as soon as it is written to.


def _source_file(location: str, path: str, status: os.stat_result) -> SourceFile:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(
            f"{location} is neither a file nor a folder: sockets, pipes and devices are not stored."
        )
    mode = Mode.EXECUTABLE if status.st_mode & stat.S_IXUSR else Mode.FILE
    return SourceFile(path, location, mode, StatIdentity.of(status))


def _checked_name(name: str, location: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        # Invariant 1: a name that is not text cannot be kept for every system, so it is refused by name.
        raise ConfigError(f"The name of {location!r} is not valid UTF-8. Rename it and try again.") from error
    return name


def _is_onnx(file: SourceFile) -> bool:
    return file.path.endswith(".onnx")


def _unreadable(path: str, error: OSError) -> ConfigError | AccessDenied:
    if os.path.islink(path) and isinstance(error, FileNotFoundError):
        return ConfigError(
            f"{path} is a link to {os.readlink(path)}, which does not exist. Mend or remove the link."
        )
    if isinstance(error, PermissionError):
        return AccessDenied(f"{path} cannot be read: {error.strerror}. Check its permissions.")
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{path} does not exist.")
    return ConfigError(f"{path} cannot be read: {error.strerror or error}.")


def open_source(file: SourceFile) -> int:
    """Open a source for reading; return the descriptor, which the caller closes."""
    try:
        # Without O_NONBLOCK, a pipe that took the file's place would never let us go.
        return os.open(file.location, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        # Invariant 8: a file that cannot be read stops the add, it is not left out.
        raise AccessDenied(
            f"{file.location} cannot be read: {error.strerror}. Check its permissions."
        ) from error
    except OSError as error:
        raise ConflictError(f"{file.location} went away while it was added: {error.strerror}.") from error


def read_full(descriptor: int, room: memoryview, position: int, location: str) -> int:
    """Read until `room` is full or the file ends; return the bytes read."""
    done = 0
    try:
        while done < len(room):
            count = os.preadv(descriptor, [room[done:]], position + done)
            if count == 0:
                break
            done += count
    except OSError as error:
        raise _read_failed(error, location) from error  # Invariant 8: it stops the add.
    return done


def read_range(descriptor: int, offset: int, length: int, location: str) -> bytes:
    """Return `length` bytes from `offset`, fewer at the end of the file."""
    try:
        return os.pread(descriptor, length, offset)
    except OSError as error:
        raise _read_failed(error, location) from error  # Invariant 8: it stops the add.


def _read_failed(error: OSError, location: str) -> BackendUnavailable:
    return BackendUnavailable(f"{location} cannot be read: {error.strerror}.", retryable=False)


def read_source(file: SourceFile, offset: int, length: int) -> bytes:
    """Open a source, and return `length` of its bytes from `offset`."""
    descriptor = open_source(file)
    try:
        return read_range(descriptor, offset, length, file.location)
    finally:
        os.close(descriptor)
