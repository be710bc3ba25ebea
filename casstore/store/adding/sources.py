"""The files to add: those under a path, links followed, each with its path in the tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from casstore.chunking import LAYOUT_VERSION
from casstore.digest import digest
from casstore.errors import AccessDenied, BackendUnavailable, ConfigError, ConflictError, PathNotFound
from casstore.format.paths import check_paths
from casstore.machine.local_names import system_path
from casstore.machine.long_paths import list_folder, open_path, read_link, stat_path
from casstore.machine.stat_identity import StatIdentity
from casstore.store.adding.exclusion import Exclusion

if TYPE_CHECKING:
    from casstore.machine.unchanged import UnchangedFiles


_GRAPH_NAMES = (".onnx", ".pb")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to add: `path` in the tree, `place` on this machine, `executable` as its mode shows it.

    `place` is as the system spells it.
    """

    path: str
    place: bytes
    executable: bool
    identity: StatIdentity

    @property
    def location(self) -> str:
        """The place in the form that Python's own calls take."""
        return os.fsdecode(self.place)

    @property
    def shown(self) -> str:
        """The place as text for people, whatever the locale."""
        return shown(self.place)


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything to add, in the tree's order; `empty` are the directories that hold nothing."""

    files: tuple[SourceFile, ...]
    empty: tuple[str, ...]

    def stat_keys(self, unchanged: UnchangedFiles) -> list[bytes | None]:
        """Return for each file its key in the stat cache, None if no change could be detected.

        A key covers the ONNX graphs beside the file, since they say where the tensors in external data lie.
        """
        own = [unchanged.key(file.place, file.identity) for file in self.files]
        graphs = [key for file, key in zip(self.files, own, strict=True) if is_onnx(file)]
        beside = None if None in graphs else digest(b"".join(filter(None, graphs)))
        keys: list[bytes | None] = []
        for file, key in zip(self.files, own, strict=True):
            onnx = b"" if is_onnx(file) else beside
            if key is None or onnx is None:
                keys.append(None)
            else:
                keys.append(digest(b"%d|%b|%b" % (LAYOUT_VERSION, key, onnx)))
        return keys


def list_sources(
    path: str | os.PathLike[str] | Mapping[str, str],
    *,
    follow: bool = True,
    store: str | None = None,
    exclusion: Exclusion | None = None,
) -> Sources:
    """List one path or several, as `find_sources` and `place_sources` do.

    The ignore file of a folder counts only where the folder is what is added, not a part that a map names.
    """
    if isinstance(path, Mapping):
        parts = exclusion.without_ignore_file() if exclusion is not None else None
        return place_sources(path, follow=follow, store=store, exclusion=parts)
    return find_sources(os.fspath(path), follow=follow, store=store, exclusion=exclusion)


def find_sources(
    path: str, *, follow: bool = True, store: str | None = None, exclusion: Exclusion | None = None
) -> Sources:
    """List the file or directory at `path`; `exclusion` says what of a directory is left out.

    Names are bytes that are UTF-8, whatever the locale. Links are followed, for a Hugging Face snapshot consists
    of them; `follow=False` refuses them. Refused by name: broken links, cycles, special files, names that are
    not UTF-8, and a directory that contains `store`. Raises ConfigError or AccessDenied.
    """
    try:
        place = system_path(path)
        status = stat_path(place)
    except OSError as error:
        raise _unreadable(place, error) from error  # Invariant 8: a folder that cannot be listed is an error.
    except ValueError as error:
        # Invariant 8, as above: the system cannot take a path with a NUL.
        raise ConfigError(f"{path!r} is not a path: {error}.") from error
    if not follow and os.path.islink(place):
        raise ConfigError(f"{shown(place)} is a link, and following links is switched off.")
    files: list[SourceFile] = []
    empty: list[str] = []
    if stat.S_ISDIR(status.st_mode):
        exclusion = (exclusion or Exclusion()).within(place)
        _walk(place, status, files, empty, follow=follow, store=store, exclusion=exclusion)
    else:
        name = os.path.basename(os.path.abspath(place))
        files.append(_source_file(place, _checked_name(name, place), status))
    files.sort(key=lambda file: file.path.encode())
    check_paths([*(file.path for file in files), *empty])
    return Sources(tuple(files), tuple(empty))


def place_sources(
    places: Mapping[str, str],
    *,
    follow: bool = True,
    store: str | None = None,
    exclusion: Exclusion | None = None,
) -> Sources:
    """List several files and directories, each under the path in the tree that `places` gives it."""
    files: list[SourceFile] = []
    empty: list[str] = []
    for path, location in places.items():
        found = find_sources(location, follow=follow, store=store, exclusion=exclusion)
        if stat.S_ISDIR(stat_path(system_path(location)).st_mode):
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
        raise ConflictError(f"{file.shown} changed while it was read. Nothing was added; add it again.")


def _walk(
    top: bytes,
    status: os.stat_result,
    files: list[SourceFile],
    empty: list[str],
    *,
    follow: bool,
    store: str | None,
    exclusion: Exclusion,
) -> None:
    """Collect what lies below `top`; with a stack of its own, since folders can nest deeper than Python's calls."""
    store_place = _store_place(store)
    above: list[tuple[int, int]] = []
    waiting = [(top, b"", 0, _place(status))]
    while waiting:
        folder, prefix, depth, place = waiting.pop()
        del above[depth:]
        if place == store_place:
            raise ConfigError(
                f"{shown(folder)} is the store itself. Add a folder that does not contain the store."
            )
        if place in above:
            raise ConfigError(f"{shown(folder)} links to a folder that it lies in. Remove the link.")
        above.append(place)
        try:
            children = list_folder(folder, kinds=not exclusion.is_empty)
        except OSError as error:
            raise _unreadable(
                folder, error
            ) from error  # Invariant 8: a folder that cannot be listed is an error.
        if not children and prefix:
            empty.append(_checked_name(prefix.rstrip(b"/"), folder))
        below = []
        for child in children:
            path = prefix + child.name
            location = os.path.join(folder, child.name)
            if not exclusion.is_empty and exclusion.leaves_out(path, is_folder=child.is_folder):
                continue
            name = _checked_name(path, location)
            if not follow and child.is_link:
                raise ConfigError(f"{shown(location)} is a link, and following links is switched off.")
            try:
                status = stat_path(location)
            except OSError as error:
                raise _unreadable(location, error) from error  # Invariant 8, as above.
            if stat.S_ISDIR(status.st_mode):
                below.append((location, path + b"/", depth + 1, _place(status)))
            else:
                files.append(_source_file(location, name, status))
        waiting += reversed(below)


def _place(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


def _store_place(path: str | None) -> tuple[int, int] | None:
    try:
        return _place(os.stat(path)) if path is not None else None
    except OSError:
        return None  # Invariant 8: an unreachable store is an error as soon as it is written to.


def _source_file(place: bytes, path: str, status: os.stat_result) -> SourceFile:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(
            f"{shown(place)} is neither a file nor a folder: sockets, pipes and devices are not stored."
        )
    return SourceFile(path, place, bool(status.st_mode & stat.S_IXUSR), StatIdentity.of(status))


def _checked_name(name: bytes, place: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        # Invariant 1: a name that is not text cannot be kept for every system, so it is refused.
        raise ConfigError(
            f"The name of {shown(place)!r} is not valid UTF-8. Rename it and try again."
        ) from error


def shown(place: bytes) -> str:
    """Return a place for people: as UTF-8, whatever the locale, and other bytes as numbers."""
    return place.decode(errors="backslashreplace")


def is_onnx(file: SourceFile) -> bool:
    """Say whether a file has the name of an ONNX graph, which may tell where tensors lie in other files.

    Only names count: a graph's own key is part of the keys of the files beside it, before anything is read.
    """
    return file.path.lower().endswith(_GRAPH_NAMES)


def _unreadable(place: bytes, error: OSError) -> ConfigError | AccessDenied:
    path = shown(place)
    target = read_link(place) if isinstance(error, FileNotFoundError) else None
    if target is not None:
        return ConfigError(
            f"{path} is a link to {shown(target)}, which does not exist. Repair or remove the link."
        )
    if isinstance(error, PermissionError):
        return AccessDenied(f"{path} cannot be read: {error.strerror}. Check its permissions.")
    if isinstance(error, FileNotFoundError):
        return PathNotFound(f"{path} does not exist.")
    return ConfigError(f"{path} cannot be read: {error.strerror or error}.")


def open_source(file: SourceFile) -> int:
    """Open a source for reading; return the descriptor, which the caller closes."""
    try:
        # Without O_NONBLOCK, opening a pipe that took the file's place would block for ever.
        return open_path(file.place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        # Invariant 8: a file that cannot be read stops the add rather than being left out.
        raise AccessDenied(
            f"{file.shown} cannot be read: {error.strerror}. Check its permissions."
        ) from error
    except OSError as error:
        raise ConflictError(f"{file.shown} disappeared while it was added: {error.strerror}.") from error


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
        raise _read_failed(error, location) from error  # Invariant 8: the error stops the add.
    return done


def read_range(descriptor: int, offset: int, length: int, location: str) -> bytes:
    """Return `length` bytes from `offset`, fewer at the end of the file."""
    try:
        return os.pread(descriptor, length, offset)
    except OSError as error:
        raise _read_failed(error, location) from error  # Invariant 8: the error stops the add.


def _read_failed(error: OSError, location: str) -> BackendUnavailable:
    return BackendUnavailable(f"{location} cannot be read: {error.strerror}.", retryable=False)


def read_source(file: SourceFile, offset: int, length: int) -> bytes:
    """Open a source, and return `length` of its bytes from `offset`, fewer at its end."""
    descriptor = open_source(file)
    try:
        room = bytearray(length)
        return bytes(room[: read_full(descriptor, memoryview(room), offset, file.shown)])
    finally:
        os.close(descriptor)
