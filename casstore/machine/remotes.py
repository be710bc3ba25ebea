"""Names for other stores, kept for each store in the user's config directory. URLs only, no credentials."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any

from casstore.backend.location import parse_location
from casstore.backend.oserrors import from_os_error
from casstore.errors import ConfigError
from casstore.machine.atomic_write import atomic_write
from casstore.machine.user_folders import NO_HOME, config_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Remotes:
    """The remotes of one store: name → URL or absolute path. Any number of processes may change them."""

    def __init__(self, store_id: str, *, path: str | None = None) -> None:
        """`path` is the JSON file that holds the remotes of all the user's stores."""
        self._store_id = store_id
        folder = config_folder() if path is None else None
        self._path = os.path.join(folder, "remotes.json") if folder is not None else path

    def list(self) -> dict[str, str]:
        """Return all remotes in the order of their names; raises ConfigError for a file that is damaged."""
        return dict(sorted(self._read().get(self._store_id, {}).items()))

    def add(self, name: str, url_or_path: str) -> str:
        """Keep a remote and return its URL or absolute path; nothing is connected to.

        Raises ConfigError for a name that is taken or could be a path, and for a URL with user info or a query.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot name a remote: use up to 64 letters, digits, '.', '_' and '-'."
            )
        location = parse_location(url_or_path)
        place = os.path.abspath(location.target) if location.kind == "local" else url_or_path

        def change(remotes: dict[str, str]) -> None:
            if remotes.setdefault(name, place) != place:
                raise ConfigError(f"There is a remote {name!r} already, {remotes[name]}. Remove it first.")

        self._change(change)
        return place

    def remove(self, name: str) -> str:
        """Forget a remote and return what it was; raises ConfigError if there is none of this name."""
        removed: list[str] = []

        def change(remotes: dict[str, str]) -> None:
            if name not in remotes:
                raise ConfigError(self._unknown(name, remotes))
            removed.append(remotes.pop(name))

        self._change(change)
        return removed[0]

    def resolve(self, remote: str) -> str:
        """Return the URL or path that `remote` (a name, URL or path) means.

        A URL or path does not need the list of remotes, which may be unreadable; otherwise a configured name comes
        first. Raises ConfigError for anything else.
        """
        if not _NAME.fullmatch(remote) and is_place(remote):
            return remote
        remotes = self.list()
        if remote in remotes:
            return remotes[remote]
        if is_place(remote):
            return remote
        raise ConfigError(self._unknown(remote, remotes))

    @staticmethod
    def _unknown(name: str, remotes: dict[str, str]) -> str:
        known = f"Known remotes: {', '.join(sorted(remotes))}." if remotes else "There are no remotes yet."
        return (
            f"No remote named {name!r}. {known} `casstore remote add NAME URL` adds one; for a folder, write "
            f"./{name}."
        )

    def _change(self, change: Callable[[dict[str, str]], None]) -> None:
        if self._path is None:
            raise ConfigError(f"Names of remotes cannot be kept: {NO_HOME}, or use the remote's path or URL.")
        try:
            _make_folder(os.path.dirname(self._path))
            with _locked(self._path):
                stores = self._read()
                remotes = stores.setdefault(self._store_id, {})
                change(remotes)
                if not remotes:
                    del stores[self._store_id]
                _write(self._path, json.dumps(stores, indent=2, sort_keys=True).encode() + b"\n")
        except OSError as error:
            raise from_os_error(
                error, f"write {self._path}", retryable=False, place=self._path
            ) from error  # design §12

    def _read(self) -> dict[str, dict[str, str]]:
        if self._path is None:
            return {}  # Without a home directory no remote was ever added.
        try:
            # A pipe or a device would never let go.
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                raise self._damaged()
            with open(self._path, "rb") as file:
                stores: Any = json.load(file)
        except FileNotFoundError:
            return {}  # The file is made when the first remote is added.
        except OSError as error:
            # Invariant 11: settings that cannot be read are an error, not an empty list.
            raise ConfigError(
                f"The names of remotes are in {self._path}, which cannot be read: {error.strerror or error}. Repair or "
                "remove it, or give the remote's URL, or its path with a '/' in it."
            ) from error
        except (ValueError, RecursionError) as error:
            raise self._damaged() from error  # Invariant 11, as above.
        if not isinstance(stores, dict) or not all(_is_table(item) for item in stores.values()):
            raise self._damaged()
        return stores

    def _damaged(self) -> ConfigError:
        return ConfigError(
            f"{self._path}, with the names of remotes, is not in casstore's format: repair or remove it, or give the "
            "remote's URL, or its path with a '/' in it."
        )


def _make_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    _make_folder(os.path.dirname(folder))
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _give(descriptor, folder)
        finally:
            os.close(descriptor)


def _give(descriptor: int, path: str) -> None:
    """Give what root made at `path` to whom the folder belongs: sudo may keep HOME, and lock its user out."""
    if os.geteuid() == 0:
        folder, made = os.stat(os.path.dirname(path)), os.fstat(descriptor)
        if folder.st_uid not in (0, made.st_uid):
            os.fchown(descriptor, folder.st_uid, folder.st_gid)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Let one process at a time read, change and write; where locks do not work, the last writer wins."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(f"{path}.lock", flags, 0o600)
    try:
        _give(descriptor, path)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: str, data: bytes) -> None:
    with atomic_write(path, durable=True) as file:
        _give(file.fileno(), path)
        file.write(data)


def is_place(text: str) -> bool:
    """Say whether this is a URL or a path rather than a name."""
    return "://" in text or os.sep in text or text.startswith((".", "~")) or os.path.isdir(text)


def _is_table(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(value, str) for value in item.values())
