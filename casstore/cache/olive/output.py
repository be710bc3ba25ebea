"""Writes files where a user wants them: everything is copied aside first, then renamed when it is complete.

The files are the user's: writable, copies of their own, and never put over an existing file
unless the user asks for that.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import BackendError, ConfigError
from casstore.format.paths import check_path, check_paths
from casstore.machine.local_names import local_path, tree_name
from casstore.store.adding.sources import find_sources
from casstore.store.checkout.destination import check_destination
from casstore.store.checkout.staging import scratch_folder
from casstore.store.nesting import refuse_inside_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_PIECE = 1 << 30
_READ = 1 << 20


class OutputExists(ConfigError, FileExistsError):
    """A file to be written exists already, and overwriting was not asked for."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} exists already: choose another output folder, or overwrite it (overwrite=True)."
        )


@dataclass(frozen=True, slots=True)
class _Content:
    """The content of a file: a copy of `source`, or the output of `write(source, path)`, or `data`."""

    source: str = ""
    write: Callable[[str, str], None] | None = None
    data: bytes | None = None


class Output:
    """Files that are to appear in one folder. Nothing is touched before `write`.

    Paths are relative to the folder, with "/"; one that would leave it raises ConfigError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, _Content] = {}
        self._empty: list[str] = []
        self._whole: list[str] = []
        self._sources: dict[str, str] = {}
        self._roots: dict[str, str] = {}

    def at(self, path: str) -> str:
        """Return where a path will be on this machine; "" is the folder itself."""
        return local_path(self.folder, path) if path else str(self.folder)

    def holds(self, path: str) -> bool:
        """Say whether a file of this path, or below it, is to be written."""
        return path in self._files or any(name.startswith(f"{path}/") for name in self._files)

    def is_file(self, path: str) -> bool:
        """Say whether a file of this path is to be written."""
        return path in self._files

    def add_bytes(self, path: str, data: bytes) -> None:
        """Write these bytes; after all other files."""
        self._claim(path, _Content(data=data))

    def add_file(self, path: str, source: str, *, write: Callable[[str, str], None] | None = None) -> None:
        """Write a copy of the file `source`, or the output of `write(source, destination)`."""
        if not os.path.isfile(source):
            raise ConfigError(f"The model's config names {source}, which does not exist.")
        self._claim(path, _Content(source, write))
        self.map_source(source, path)

    def add_folder(
        self, path: str, source: str, *, renamed: dict[str, str] | None = None, whole: bool = False
    ) -> None:
        """Write a copy of everything in the folder `source`; `renamed` maps paths in it to other ones.

        With `whole`, the folder replaces an existing one, instead of being merged into it.
        """
        found = find_sources(source)
        prefix = f"{path}/" if path else ""
        for file in found.files:
            self.add_file(prefix + (renamed or {}).get(file.path, file.path), file.location)
        self._empty += [prefix + name for name in found.empty]
        if whole:
            check_path(path)
            self._whole.append(path)
        for name in (os.path.abspath(source), os.path.realpath(source)):
            self._roots.setdefault(name, path)

    def map_source(self, source: str, path: str) -> None:
        """Give the path of a source that is not written itself: a folder whose files are added one by one."""
        for name in (os.path.abspath(source), os.path.realpath(source)):
            self._sources.setdefault(name, path)

    def path_of(self, source: str) -> str | None:
        """Return the path under which a source file or folder will be written, None if it will not."""
        for name in (os.path.abspath(source), os.path.realpath(source)):
            if name in self._sources:
                return self._sources[name]
            for root, path in self._roots.items():
                if name == root:
                    return path
                if name.startswith(root.rstrip(os.sep) + os.sep) and os.path.isdir(name):
                    inside = tree_name(os.path.relpath(name, root))
                    return f"{path}/{inside}" if path else inside
        return None

    def same_as(self, path: str, source: str) -> bool:
        """Say whether what will be written at `path` is a copy of a file that equals `source`."""
        content = self._files.get(path)
        return (
            content is not None
            and content.write is None
            and bool(content.source)
            and same_content(content.source, source)
        )

    def write(self, *, overwrite: bool) -> None:
        """Write everything, or nothing: copies are made first, and renamed when all of them are complete.

        Without `overwrite`, raises OutputExists if a file is there already. Raises BackendError if copying
        fails; existing files are then unchanged.
        """
        check_paths([*self._files, *self._empty])
        refuse_inside_store(self.folder)
        self._check_target(overwrite=overwrite)
        doing = "written"
        try:
            os.makedirs(self.folder, exist_ok=True)
            check_destination(
                [*self._files, *self._empty],
                shown=str(self.folder),
                open_folder=lambda path: os.open(self.at(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
            )
            with scratch_folder(self.at("")) as aside:
                for path, content in self._files.items():
                    _make(content, local_path(aside, path))
                for path in self._empty:
                    os.makedirs(local_path(aside, path), exist_ok=True)
                doing = "completed"
                self._publish(aside, overwrite=overwrite)
        except FileExistsError as error:
            # As in invariant 1, for the user's files: one that appeared meanwhile is not destroyed.
            raise OutputExists(error.filename2 or error.filename) from error
        except OSError as error:
            # Invariant 11: the caller asked for this output, so the error is raised.
            raise BackendError(
                f"The output in {self.folder} could not be {doing}: {error.strerror or error}. "
                "Files that were there are unchanged or replaced whole."
            ) from error

    def _claim(self, path: str, content: _Content) -> None:
        check_path(path)
        there = self._files.get(path)
        if there is not None and (content.data is not None or not self.same_as(path, content.source)):
            raise ConfigError(
                f"{content.source or 'The config'} and {there.source} would both be saved as {self.at(path)}: "
                "choose another output name, or rename one of them."
            )
        self._files.setdefault(path, content)

    def _check_target(self, *, overwrite: bool) -> None:
        for path in (*self._whole, *self._loose(self._files)):
            target = self.at(path)
            is_folder = os.path.isdir(target)
            if is_folder and path not in self._whole:
                raise ConfigError(
                    f"{target} is a folder, but a file of this name is to be written: move it aside."
                )
            if not overwrite and (os.listdir(target) if is_folder else os.path.lexists(target)):
                raise OutputExists(target)

    def _loose(self, paths: Iterable[str]) -> list[str]:
        """Return the paths that are not in a folder that is replaced as a whole."""
        whole = tuple(f"{path}/" for path in self._whole)
        return [path for path in paths if not path.startswith(whole) and path not in self._whole]

    def _publish(self, aside: str, *, overwrite: bool) -> None:
        # As in invariant 3: files that name others come after them, the config last of all.
        for number, path in enumerate(self._whole):
            target = self.at(path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if overwrite and os.path.lexists(target):
                os.rename(target, os.path.join(aside, f".casstore-replaced-{number}"))
            # Invariant 1: a folder that holds files, made meanwhile, is not replaced by rename(2).
            os.rename(local_path(aside, path), target)
        for path in self._loose(self._empty):
            os.makedirs(self.at(path), exist_ok=True)
        for path in sorted(self._loose(self._files), key=self._turn):
            made, target = local_path(aside, path), self.at(path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if overwrite:
                # The user asked for it; at every moment either the old or the new file is there, complete.
                os.replace(made, target)
            else:
                _rename_new(made, target)
        _sync(self.at(""))

    def _turn(self, path: str) -> int:
        return 2 if self._files[path].data is not None else int(path.endswith(".onnx"))


def same_content(one: str, other: str) -> bool:
    """Say whether two files hold the same bytes."""
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def _make(content: _Content, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if content.data is not None:
        with open(target, "xb") as file:
            file.write(content.data)
    elif content.write is not None:
        content.write(content.source, target)
    else:
        _copy(content.source, target)
    _sync(target)


def _copy(source: str, target: str) -> None:
    """Copy in the kernel: file systems with copy-on-write share the blocks."""
    with open(source, "rb", buffering=0) as reader, open(target, "xb") as writer:
        status = os.fstat(reader.fileno())
        if hasattr(os, "copy_file_range"):
            # If it is not possible between these two, the plain copy below says why.
            with contextlib.suppress(OSError):
                while os.copy_file_range(reader.fileno(), writer.fileno(), _PIECE):
                    pass
        # Invariant 14: only the end of what can be read ends a file. This goes on where the kernel stopped.
        shutil.copyfileobj(reader, writer, _READ)
    if status.st_mode & stat.S_IXUSR:
        mode = os.stat(target).st_mode
        with contextlib.suppress(OSError):  # A file system that refuses modes has no executable bit.
            os.chmod(target, mode | (mode & 0o444) >> 2)


def _sync(target: str) -> None:
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Invariant 2: the bytes are durable before the file gets its name.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_new(made: str, target: str) -> None:
    """Give a file its name; raise FileExistsError rather than replace what is there."""
    try:
        os.link(made, target)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        # Invariant 2, its stated fallback: on a file system without links, which different errnos report, a check
        # and a rename follow; any other fault makes the rename fail as well.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.rename(made, target)
