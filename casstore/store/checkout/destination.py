"""Which of a tree's names a destination can hold: found by trying, since no table covers every file system.

Only names that some file system refuses, changes or confuses with another one are tried. Most trees have none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_ROOT = 0
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LONG = 100
"""Bytes of a name that every file system takes; of those in use, eCryptfs takes the fewest, 143."""

_NAMED = 20
"""Paths that a message names at most."""

# Written as what is plain: a set of all the other characters, up to the last of Unicode, takes longer to compile than all else here.
_PLAIN = re.compile(r"[ !#-)+-9;=@-\[\]-{}~]*[!#-)+-\-/-9;=@-\[\]-{}~]")
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9]) *(\..*)?", re.IGNORECASE)
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
_REFUSED = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EILSEQ,
        errno.EINVAL,
        errno.EIO,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    }
)
"""The errors with which systems refuse a name, in a folder where other names can be made."""


def _as_bytes(name: str) -> bytes:
    """Return a name as files have it: UTF-8, whatever the locale."""
    return name.encode(errors="surrogateescape")


@dataclass(frozen=True, slots=True)
class FolderCalls:
    """The system's calls by which names are tried in an open folder."""

    make: Callable[[str, int], None] = lambda name, folder: os.close(
        os.open(_as_bytes(name), _NEW_FILE, dir_fd=folder)
    )
    remove: Callable[[str, int], None] = lambda name, folder: os.unlink(_as_bytes(name), dir_fd=folder)
    list: Callable[[int], list[str]] = lambda folder: [
        os.fsencode(name).decode(errors="surrogateescape") for name in os.listdir(folder)
    ]


class _Nodes:
    """Every file and folder of a tree once, as a number; a folder's is lower than those of what it holds."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.parents = [-1]
        self.names = [""]
        self._numbers: dict[tuple[int, str], int] = {}
        for path in paths:
            at = _ROOT
            for name in path.split("/"):
                key = (at, name)
                found = self._numbers.get(key)
                if found is None:
                    found = self._numbers[key] = len(self.names)
                    self.parents.append(at)
                    self.names.append(name)
                at = found

    def path(self, node: int) -> str:
        """Return the path of a node."""
        parts = []
        while node != _ROOT:
            parts.append(self.names[node])
            node = self.parents[node]
        return "/".join(reversed(parts))

    def odd(self) -> list[int]:
        """Return the nodes whose name some file system does not take as it is."""
        return [node for node, name in enumerate(self.names) if node != _ROOT and _is_odd(name)]

    def alike(self) -> list[list[int]]:
        """Return the nodes of one folder whose names some file system takes for the same, group by group."""
        groups: dict[tuple[int, str], list[int]] = {}
        for (folder, name), node in self._numbers.items():
            folded = _fold(name)
            if folded != name:
                groups.setdefault((folder, folded), []).append(node)
        for key, group in groups.items():
            if key in self._numbers:
                group.append(self._numbers[key])
        return [group for group in groups.values() if len(group) > 1]


def check_destination(
    paths: Iterable[str],
    *,
    shown: str,
    open_folder: Callable[[str], int],
    calls: FolderCalls | None = None,
) -> None:
    """Raise ConfigError, naming them, if the destination called `shown` cannot hold some of these paths.

    `open_folder` opens a folder of the destination, whose path is "" for the whole; it raises FileNotFoundError,
    NotADirectoryError or ConfigError where there is none, and the descriptor is closed here. Names are tried where they will be: in an
    empty folder of the last folder on their way that is there. Raises OSError where that cannot be made.
    """
    nodes = _Nodes(paths)
    odd, alike = nodes.odd(), nodes.alike()
    if not odd and not alike:
        return
    places = _Places(nodes, open_folder)
    by_place: dict[int, tuple[list[int], list[list[int]]]] = {}
    for node in odd:
        by_place.setdefault(places.of(node), ([], []))[0].append(node)
    for group in alike:
        by_place.setdefault(places.of(group[0]), ([], []))[1].append(group)
    refused: dict[int, str] = {}
    for place, (single, together) in by_place.items():
        with _empty_folder(open_folder(nodes.path(place))) as folder:
            trial = _Trial(folder, calls or FolderCalls())
            for node in single:
                reason = trial.refusal(nodes.names[node])
                if reason:
                    refused[node] = reason
            for group in together:
                names = [nodes.names[node] for node in group]
                for at, reason in trial.clashes(names):
                    refused.setdefault(group[at], reason)
    if refused:
        named = [f"{nodes.path(node)!r} ({refused[node]})" for node in sorted(refused)[:_NAMED]]
        more = f", and {len(refused) - len(named)} more" if len(refused) > len(named) else ""
        raise ConfigError(
            f"{shown} cannot hold these names: {', '.join(named)}{more}. Nothing was written. "
            "Give a folder on another file system."
        )


class _Places:
    """Finds the last folder that is there on the way to each node."""

    def __init__(self, nodes: _Nodes, open_folder: Callable[[str], int]) -> None:
        self._nodes = nodes
        self._open_folder = open_folder
        self._found = {_ROOT: _ROOT}

    def of(self, node: int) -> int:
        """Return the folder of a node, or the last one above it that is there."""
        folder = self._nodes.parents[node]
        unknown = []
        while folder not in self._found:
            unknown.append(folder)
            folder = self._nodes.parents[folder]
        for below in reversed(unknown):
            above = self._nodes.parents[below]
            # Where the folder above is not there, this one is not either, and need not be looked for.
            there = self._found[above] == above and self._is_there(below)
            self._found[below] = below if there else self._found[above]
        return self._found[self._nodes.parents[node]]

    def _is_there(self, folder: int) -> bool:
        try:
            os.close(self._open_folder(self._nodes.path(folder)))
        except (FileNotFoundError, NotADirectoryError, ConfigError):
            return False  # Design §11: a link or file in the way is an error when something is written.
        return True


@dataclass(slots=True)
class _Trial:
    """Tries names in an empty folder, and leaves it empty."""

    folder: int
    calls: FolderCalls
    _known: dict[str, str] | None = None

    def refusal(self, name: str) -> str:
        """Say why a name cannot be there, "" if it can."""
        known = self._known = {} if self._known is None else self._known
        if name not in known:
            known[name] = self._try(name)
        return known[name]

    def _try(self, name: str) -> str:
        number = self._make(name)
        if number:
            return os.strerror(number)
        listed = self.calls.list(self.folder)
        self._remove(name, *listed)
        # macOS's older file system keeps every name in one Unicode form, and finds it by any.
        if any(_composed(item) == _composed(name) for item in listed):
            return ""
        for item in self.calls.list(
            self.folder
        ):  # The name may mean a part of another file, as `a:b` does on NTFS.
            self._remove(item)
        return f"would be called {listed[0]!r}" if listed else "would not be listed"

    def clashes(self, names: list[str]) -> Iterator[tuple[int, str]]:
        """Yield the positions of names that are taken for ones before them, and which those may be."""
        made: list[str] = []
        for at, name in enumerate(names):
            number = self._make(name)
            if number == 0:
                made.append(name)
            elif number == errno.EEXIST:
                yield at, f"is the same name as {' or '.join(map(repr, made[:3]))} there"
        for name in made:
            self._remove(name)

    def _make(self, name: str) -> int:
        """Make a file; return the errno with which the system refuses its name, 0 if it does not."""
        try:
            self.calls.make(name, self.folder)
        except OSError as error:
            # Design §11: the name is refused. Errors that have nothing to do with the name, like a full disk, are raised.
            if error.errno not in _REFUSED:
                raise
            return error.errno or errno.EINVAL
        return 0

    def _remove(self, *names: str) -> None:
        """Remove a file by the first of its names by which it can be."""
        for name in names:
            with contextlib.suppress(
                OSError
            ):  # Another of its names may work; if none does, removing the folder fails and says so.
                self.calls.remove(name, self.folder)
                return


@contextlib.contextmanager
def _empty_folder(parent: int) -> Iterator[int]:
    """Make and open a folder in the open folder `parent`, which is closed; remove it afterwards."""
    name = f".{os.urandom(8).hex()}.casstore"
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                yield folder
            finally:
                os.close(folder)
        finally:
            with contextlib.suppress(
                OSError
            ):  # Invariant 4: the folder is ours. If it cannot be removed, the error is raised.
                os.rmdir(name, dir_fd=parent)
    finally:
        os.close(parent)


def _is_odd(name: str) -> bool:
    return not _PLAIN.fullmatch(name) or len(name) > _LONG or _DEVICE.fullmatch(name) is not None


def _fold(name: str) -> str:
    """Return a key that is equal for any two names that some file system takes for the same, and sometimes for others."""
    if name.isascii():
        return name.lower().rstrip(". ") or name
    text = unicodedata.normalize("NFKD", name).upper().casefold()
    kept = "".join(
        item for item in _IGNORABLE.sub("", text) if item.isascii() or unicodedata.category(item) != "Cf"
    )
    return unicodedata.normalize("NFKC", kept).rstrip(". ") or name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
