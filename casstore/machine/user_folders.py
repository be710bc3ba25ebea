"""The user's folders on this machine: for settings, for data, and for caches.

A container may have no home directory, and a user no entry in the password file: then there are none.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import TYPE_CHECKING

import platformdirs

from casstore.backend.local.mount_types import is_network
from casstore.backend.local.syscalls import SystemCalls
from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("casstore")

NO_HOME = "there is no home directory: set HOME"


def config_folder() -> str | None:
    """Return the folder for casstore's settings, None where the user has none; it need not exist."""
    return _folder(lambda: platformdirs.user_config_dir("casstore", appauthor=False))


def data_folder() -> str | None:
    """Return the folder for the user's data, None where there is none; it need not exist."""
    return _folder(lambda: platformdirs.user_data_dir("casstore", appauthor=False))


def state_folder() -> str | None:
    """Return the folder for what this machine knows and cannot find out again, None where there is none to use.

    It need not exist.
    """
    folder = _folder(lambda: platformdirs.user_state_dir("casstore", appauthor=False))
    return None if folder is None or _is_somebody_elses(folder) else folder


def cache_folder() -> str | None:
    """Return the cache folder; None, with a warning, if there is none to use."""
    folder = _folder(lambda: platformdirs.user_cache_dir("casstore"))
    if folder is None:
        _warn("Nothing is cached on this machine: there is no home directory. Set HOME or XDG_CACHE_HOME.")
    elif _is_somebody_elses(folder):
        _warn(f"Nothing is cached in {folder}: it belongs to another user, who could not use it any more.")
        return None
    return folder


def keeps_databases(folder: str) -> bool:
    """Say whether SQLite is safe in `folder`; warn where it is not: on a network file system."""
    # The journal of SQLite is shared memory, which hosts of a network file system do not share; its other journals
    # need locks that work there.
    kind = SystemCalls().file_system_type(folder)
    if is_network(kind):
        _warn(
            f"{folder} is on a network file system ({kind}), so the state of files and refs is not kept there. "
            "Set XDG_CACHE_HOME to a local folder to make casstore faster."
        )
        return False
    return True


def expand_home(place: str) -> str:
    """Return a path that a person typed with `~` or `~user` written out; URLs and other paths stay as they are.

    Raises ConfigError where that user has no home directory.
    """
    expanded = os.path.expanduser(place)
    if expanded.startswith("~"):
        raise ConfigError(
            f"There is no home directory for {place.split('/', 1)[0]!r}. Give the whole path; a folder whose own name "
            f"begins so is ./{place}."
        )
    return expanded


def _folder(find: Callable[[], str]) -> str | None:
    try:
        folder = find()
    except (RuntimeError, KeyError, OSError):
        return None  # Each caller works without such a folder.
    # Where it cannot be expanded, `~` may be left in it; the XDG variables must be absolute to count.
    return folder if os.path.isabs(folder) else None


def _is_somebody_elses(folder: str) -> bool:
    """Say whether root would make files in the folder of a user, who could not change them (sudo may keep HOME)."""
    if os.geteuid() != 0:
        return False
    while True:
        try:
            return os.stat(folder).st_uid != 0
        except OSError:
            parent = os.path.dirname(folder)  # The folder does not exist yet: its parent's owner decides.
        if parent == folder:
            return False
        folder = parent


@lru_cache(maxsize=64)
def _warn(text: str) -> None:
    """Log a warning, once in this process."""
    _log.warning("%s", text)
